"""Trained networks on disk: what was written with an older format is read, and means the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from unike.core.errors import UnikeError
from unike.core.files import seal
from unike.core.folders import replace_folder
from unike.data.leaks import ImageHashes, Trace
from unike.editors.trained.artifact import CONFIG_FILE, TENSOR_FILE, Trained

PICTURE = ImageHashes("ab" * 8, "0f" * 96)
SOURCES = (Trace("What?", PICTURE), Trace("Why?", PICTURE), Trace("Who?", None))
DESCRIPTION = {
    "editor": "mend",
    "backbone": {"source": "tiny", "fingerprint": "0" * 16},
    "network": {"rank": 3},
    "sources": [trace.to_json() for trace in SOURCES],
}
TENSORS = {"scale": torch.arange(3.0)}


def write(folder: Path, version: int, sources: object) -> None:
    described = {"format": version, **DESCRIPTION, "sources": sources}
    content = save(TENSORS)
    described["sha256"] = seal(described, content)
    files = {CONFIG_FILE: json.dumps(described).encode(), TENSOR_FILE: content}
    replace_folder(folder, files, known_by=CONFIG_FILE)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    replace_folder(tmp_path / "net", Trained(DESCRIPTION, TENSORS).files(), known_by=CONFIG_FILE)
    found = Trained.from_pretrained(tmp_path / "net")
    assert (found.description, found.sources, found.settings) == (DESCRIPTION, SOURCES, {"rank": 3})
    assert torch.equal(found.tensors["scale"], TENSORS["scale"])


def test_format_1_is_read(tmp_path: Path) -> None:
    """It kept each picture once, apart from the questions about it."""
    images = {PICTURE.content: PICTURE.perceptual}
    questions = [["What?", PICTURE.content], ["Why?", PICTURE.content], ["Who?", None]]
    write(tmp_path / "net", 1, {"images": images, "questions": questions})
    found = Trained.from_pretrained(tmp_path / "net")
    assert (found.description, found.sources) == (DESCRIPTION, SOURCES)
    write(tmp_path / "torn", 1, {"images": {}, "questions": questions})
    with pytest.raises(UnikeError, match=r"trained.json is damaged: KeyError.*; make the trained network anew"):
        Trained.from_pretrained(tmp_path / "torn")


@pytest.mark.parametrize(("version", "remedy"), [(0, "make the trained network anew"), (3, "update unike")])
def test_other_formats_are_refused(tmp_path: Path, version: int, remedy: str) -> None:
    write(tmp_path / "net", version, [])
    with pytest.raises(UnikeError, match=f"has format {version}, this version reads 2; {remedy}"):
        Trained.from_pretrained(tmp_path / "net")
