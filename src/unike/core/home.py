"""Where the library keeps what it can make again: built models and unpacked data sets."""

import os
from pathlib import Path

import platformdirs


def folder() -> Path:
    """The cache folder: ``$UNIKE_HOME`` if set, else the platform's own place for caches."""
    chosen = os.environ.get("UNIKE_HOME")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("unike"))
