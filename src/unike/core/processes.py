"""Processes of ours that end with the one that started them, however that ends."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

KILLED_BY_SYSTEM = 1
"""``PR_SET_PDEATHSIG`` of ``prctl``."""


def end_with_parent() -> None:
    """Called in a process of `multiprocessing`: it ends when its parent does, even when that is killed.

    The system sees to it where it can; a thread that watches the parent does elsewhere, and where the parent was gone
    before the system was told.
    """
    parent: Any = multiprocessing.parent_process()  # its type lacks `join`
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(KILLED_BY_SYSTEM, signal.SIGKILL)

    def watch() -> None:
        parent.join()
        os._exit(1)  # what this process has finished is on disk

    threading.Thread(target=watch, name="ends with its parent", daemon=True).start()
