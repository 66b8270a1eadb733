"""Parts of MiniGPT-4 that are missing, spoiled or something else: one line each, and nothing is written."""

import pickle
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from unike.backbones.convert import minigpt4 as conversion
from unike.backbones.convert.minigpt4 import RECORD, Parts, convert_minigpt4
from unike.core.errors import UnikeError

Cli = Callable[..., Any]


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    change(state)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


LLM_FILE, BLIP2_FILE = "pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"

SPOILED: dict[str, tuple[Callable[[Parts], Any], list[str]]] = {
    "llm lacks": (
        lambda parts: rewrite(parts.llm / LLM_FILE, lambda state: state.pop("model.norm.weight")),
        ["vicuna: model.norm.weight is missing; "],
    ),
    "llm lacks several": (
        lambda parts: rewrite(parts.llm / LLM_FILE, dict.clear),
        ["vicuna: model.embed_tokens.weight (and 2 more) is missing; "],
    ),
    "llm has more": (
        lambda parts: rewrite(parts.llm / LLM_FILE, lambda state: state.update({"lora.A": torch.ones(2)})),
        ["vicuna: lora.A has no place in MiniGPT-4"],
    ),
    "blip2 lacks": (
        lambda parts: rewrite(parts.blip2 / BLIP2_FILE, lambda state: state.pop("query_tokens")),
        ["blip2: query_tokens is missing"],
    ),
    "blip2 has more": (
        lambda parts: rewrite(parts.blip2 / BLIP2_FILE, lambda state: state.update({"itm_head": torch.ones(2)})),
        ["blip2: itm_head has no place"],
    ),
    "blip2 is misshapen": (
        lambda parts: rewrite(parts.blip2 / BLIP2_FILE, lambda state: state.update(query_tokens=torch.ones(1, 3, 16))),
        ["blip2: query_tokens has the shape [1, 3, 16]", "should be [1, 4, 16]"],
    ),
    "blip2 is quantised": (
        lambda parts: rewrite(
            parts.blip2 / BLIP2_FILE, lambda state: state.update(query_tokens=state["query_tokens"].to(torch.int8))
        ),
        ["query_tokens is stored as I8", "quantised"],
    ),
    "llm is quantised": (
        lambda parts: rewrite(
            parts.llm / LLM_FILE, lambda state: state.update({"lm_head.weight": torch.ones(2, dtype=torch.uint8)})
        ),
        ["lm_head.weight is stored as torch.uint8", "quantised"],
    ),
    "projection lacks": (
        lambda parts: rewrite(parts.projection, lambda state: state["model"].pop("llama_proj.bias")),
        ["minigpt4.pth: llama_proj.bias is missing"],
    ),
    "projection has more": (
        lambda parts: rewrite(parts.projection, lambda state: state["model"].update(query_tokens=torch.ones(2))),
        ["minigpt4.pth: query_tokens has no place"],
    ),
    "projection is of another size": (
        lambda parts: rewrite(
            parts.projection, lambda state: state["model"].update({"llama_proj.weight": torch.ones(80, 16)})
        ),
        ["minigpt4.pth: llama_proj.weight has the shape [80, 16]", "should be [64, 16]"],
    ),
    "projection without model": (
        lambda parts: torch.save({"llama_proj.weight": torch.ones(2)}, parts.projection),
        ["minigpt4.pth holds no 'model'"],
    ),
    "projection is a tensor": (
        lambda parts: torch.save(torch.ones(2), parts.projection),
        ["minigpt4.pth holds no 'model'"],
    ),
    "projection is nested": (
        lambda parts: torch.save({"model": {"llama_proj": {"weight": torch.ones(2)}}}, parts.projection),
        ["minigpt4.pth is not a checkpoint"],
    ),
    "projection runs code": (
        lambda parts: parts.projection.write_bytes(pickle.dumps(Touch(parts.projection.with_name("touched")))),
        ["cannot read ", "minigpt4.pth", "more than tensors"],
    ),
    "projection is cut": (
        lambda parts: parts.projection.write_bytes(parts.projection.read_bytes()[:900]),
        ["cannot read ", "minigpt4.pth", "damaged"],
    ),
    "projection is empty": (lambda parts: parts.projection.write_bytes(b""), ["cannot read ", "minigpt4.pth"]),
    "projection is not there": (
        lambda parts: parts.projection.unlink(),
        ["no file ", "--projection is the checkpoint"],
    ),
    "shard is cut": (
        lambda parts: (parts.blip2 / BLIP2_FILE).write_bytes((parts.blip2 / BLIP2_FILE).read_bytes()[:900]),
        ["cannot read ", BLIP2_FILE],
    ),
    "shard is not there": (lambda parts: (parts.llm / LLM_FILE).unlink(), [f"{LLM_FILE} is missing", "the index of"]),
    "index is damaged": (
        lambda parts: (parts.blip2 / "model.safetensors.index.json").write_text("{}"),
        ["cannot read ", "model.safetensors.index.json"],
    ),
    "no weights": (
        lambda parts: [path.unlink() for path in parts.llm.glob("*.bin*")],
        ["no weights in ", "vicuna"],
    ),
    "no config": (lambda parts: (parts.llm / "config.json").unlink(), ["cannot load the folder ", "vicuna"]),
    "no tokenizer": (
        lambda parts: [path.unlink() for path in parts.llm.glob("tokenizer*")],
        ["cannot load the folder ", "vicuna"],
    ),
    "no folder": (lambda parts: parts.blip2.rename(parts.blip2.with_name("x")), ["no folder ", "--blip2 is a folder"]),
    "not a llama": (
        lambda parts: (parts.llm / "config.json").write_text('{"model_type": "opt"}'),
        ["vicuna holds a model of type 'opt'; --llm is a folder with Vicuna"],
    ),
    "not blip2": (
        lambda parts: (parts.blip2 / "config.json").write_text('{"model_type": "blip"}'),
        ["blip2 holds a model of type 'blip'; --blip2 is a folder"],
    ),
}


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("case", SPOILED)
def test_bad_parts_are_told(parts: Parts, tmp_path: Path, case: str) -> None:
    spoil, messages = SPOILED[case]
    spoil(parts)
    with pytest.raises(UnikeError) as caught:
        convert_minigpt4(*astuple(parts), tmp_path / "out")
    told = str(caught.value)
    assert all(message in told for message in messages) and "\n" not in told, told
    assert not (tmp_path / "out").exists()
    assert not parts.projection.with_name("touched").exists()


def test_what_an_original_tokenizer_needs_is_told(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (parts.llm / "tokenizer.json").rename(parts.llm / "tokenizer.model")
    monkeypatch.setattr(conversion, "is_protobuf_available", lambda: False)
    with pytest.raises(UnikeError, match="pip install sentencepiece protobuf"):
        convert_minigpt4(*astuple(parts), tmp_path / "out")


def test_they_are_one_line_of_the_command(call: Cli, parts: Parts) -> None:
    rewrite(parts.projection, lambda state: state["model"].pop("llama_proj.bias"))
    assert call().is_error("minigpt4.pth: llama_proj.bias is missing")
    parts.projection.write_bytes(b"not a pickle")
    assert call("--json").is_error("cannot read ", "minigpt4.pth")


def test_a_folder_of_others_is_refused(call: Cli, parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert call().is_error("exists and is something else")
    (tmp_path / "out" / "thesis.txt").rename(tmp_path / "out" / RECORD)
    assert call().code == 0, "made here, so it may be replaced"


def test_what_fails_leaves_the_old_folder(
    call: Cli, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call().code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise conversion.SafetensorError("No space left on device")

    for name, change, message in [
        ("save_file", full, "cannot write model.safetensors: No space left on device; nothing was changed"),
        ("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}), "no disk space: "),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(f"unike.backbones.convert.minigpt4.{name}", change)
            assert call().is_error(message)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        assert {path.name for path in tmp_path.iterdir()} == {"parts", "out", "home", "cwd"}
