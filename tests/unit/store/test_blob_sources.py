"""Where tensors of a store's edits are read again: in their file, or in memory where reading takes long."""

import uuid
from pathlib import Path

import pytest

from unike.core.errors import UnikeError
from unike.edits.saved import BytesSource, FileSource
from unike.store.blobs import Blobs


def test_a_blob_on_this_machine_is_read_from_its_file(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path))
    name = blobs.put(b"tensors")
    source = blobs.source(name, b"tensors")
    assert isinstance(source, FileSource) and source.read() == b"tensors"
    Path(source.path).write_bytes(b"others")
    with pytest.raises(UnikeError, match="was changed since"):
        source.read()
    blobs.drop(name)
    with pytest.raises(UnikeError, match="cannot read"):
        source.read()


def test_another_blob_stays_in_memory() -> None:
    blobs = Blobs(f"memory://{uuid.uuid4().hex}")
    name = blobs.put(b"tensors")
    source = blobs.source(name, b"tensors")
    blobs.drop(name)
    assert isinstance(source, BytesSource) and source.read() == b"tensors"
