"""Workers do not outlive whoever started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import multiprocessing, os, sys, time
from unike.core import processes

def work(watched_by_system):
    if not watched_by_system:
        processes.sys = type(sys)("sys")
        processes.sys.platform = "another"
    processes.end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(sys.argv[1] == "system",), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
"""


@pytest.mark.parametrize("watched_by", ["system", "thread"])
def test_workers_end_with_a_killed_parent(tmp_path: Path, watched_by: str) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), watched_by]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(lives, workers))
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while any(map(lives, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(lives, workers))


def lives(number: int) -> bool:
    """A process that has ended and waits for somebody to notice does not."""
    try:
        os.kill(number, 0)
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
