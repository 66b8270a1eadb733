"""Folders of saved models, as files: whether they are what was saved."""

import json
from pathlib import Path

from unike.core.files import open_file, read_file


def is_whole(folder: Path) -> bool:
    """Whether a saved model lies there with no file cut short since; reads no weights."""
    try:
        paths = [path for path in folder.iterdir() if not path.is_dir()]
        for path in paths:
            if path.suffix == ".safetensors" and path.stat().st_size != told_size(path):
                return False
            if path.suffix == ".json":
                json.loads(read_file(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    return bool(paths)


def told_size(path: Path) -> int:
    """How long a safetensors file is, by its own header.

    Raises:
        OSError: It cannot be read.
        ValueError, LookupError, TypeError, AttributeError: It has no such header.
    """
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + int(max(ends, default=0))
