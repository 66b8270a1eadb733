"""Who may read what was written: as of any new file, whatever the library that wrote it thinks."""

import os
from pathlib import Path


def as_new_files(folder: Path) -> None:
    """Give every file below a folder the permissions that a new file gets here.

    safetensors writes for its owner alone, and a cache that several people share could not be read.
    """
    probe = folder / f".permissions-{os.getpid()}"
    probe.touch()  # to ask for the umask is to set it, for all threads
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
