"""Where a model is put and what it is kept in: several devices, fewer bits."""

import importlib.util
from pathlib import Path

import accelerate
import pytest
import torch
from tinies import tiny_backbone
from typer.testing import CliRunner

from unike.backbones import load_backbone
from unike.bench.runner import checksum
from unike.cli import app
from unike.core import registry
from unike.core.errors import UnikeError
from unike.editors import checks as laws


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("model")
    tiny_backbone("llava").save_pretrained(place)
    return str(place)


def test_a_split_model_is_the_model(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU all of it is on the cpu; that it is spread over GPUs is transformers' to see to."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    split = load_backbone(folder, device="split")
    assert split.fingerprint() == load_backbone(folder, device="cpu").fingerprint()
    assert split.dtype == torch.float32


def test_weights_that_are_kept_elsewhere(folder: str, tmp_path: Path) -> None:
    """As on a GPU that is too small: between passes no weight is where it is needed."""
    whole = load_backbone(folder, device="cpu")
    model = accelerate.cpu_offload(load_backbone(folder, device="cpu").model, torch.device("cpu"))
    offloaded = whole.around(model)
    assert offloaded.head.weight.is_meta and offloaded.attention(0).q_proj.weight.is_meta
    assert offloaded.device == torch.device("cpu")
    assert offloaded.fingerprint() == whole.fingerprint()
    questions = laws.some_questions(tmp_path)
    assert all(finding.holds for finding in laws.check(offloaded, questions))
    edits = [registry.editors.get("ft")(steps=2).edit(backbone, questions[0]) for backbone in (offloaded, whole)]
    assert all(torch.equal(edits[0].tensors[name], tensor) for name, tensor in edits[1].tensors.items())
    assert torch.equal(checksum(offloaded), checksum(whole))
    whole.head.weight.data[0, 0] += 1
    assert not torch.equal(checksum(offloaded), checksum(whole))


def test_bits_that_there_are_not_are_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnikeError, match="unknown quantization '3bit'; use 8bit or 4bit"):
        load_backbone(folder, device="cpu", quantize="3bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnikeError, match="bitsandbytes is needed; run: pip install bitsandbytes"):
        load_backbone(folder, device="cpu", quantize="4bit")
    result = CliRunner().invoke(app, ["models", "check", folder, "--device", "cpu", "--quantize", "8bit"])
    assert result.exit_code == 2
    assert "pip install bitsandbytes" in result.stderr


def test_a_quantised_model_is_edited_in_full_precision(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In 8 bits; on the cpu, bitsandbytes' 4 bits need matrices of other sizes than the tiny model's."""
    pytest.importorskip("bitsandbytes")
    few = load_backbone(folder, device="cpu", quantize="8bit")
    assert not few.attention(0).q_proj.weight.is_floating_point()
    assert (few.quantize, load_backbone(folder, device="cpu").quantize) == ("8bit", None)
    assert few.fingerprint() != load_backbone(folder, device="cpu").fingerprint()
    questions = laws.some_questions(tmp_path)
    assert all(finding.holds for finding in laws.check(few, questions))
    edit = registry.editors.get("ft")(steps=2).edit(few, questions[0])
    assert {tensor.dtype for tensor in edit.tensors.values()} == {torch.float32}
    assert "will be cast" not in caplog.text, "a line for each matrix of each pass"


def test_no_device_of_that_name(folder: str) -> None:
    with pytest.raises(UnikeError, match="use auto, cpu, cuda, cuda:1, mps or split"):
        load_backbone(folder, device="gpu")
