"""Checkpoints that lack weights, are damaged, or bring code along: one clear line, never an answer at random."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tinies import TINIES, tiny_backbone

from unike.backbones import load_backbone
from unike.core.errors import UnikeError

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["llava", "blip2-opt", "qwen3_vl", "mini", "instructblip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / request.param
    TINIES[request.param]().save_pretrained(place)
    return place


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: each for name, each in weights.items() if not any(part in name for part in parts)}


PARTS = {
    "one decoder layer": "layers.2.",
    "one matrix": "layers.0.self_attn.q_proj",
    "the vision tower": "vision",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_that_lacks_tensors_is_refused(copy: Path, part: str) -> None:
    names = {"the vision tower": ("visual.", "vision")}.get(part, (PARTS[part],))
    rewrite(copy, without(*names))
    with pytest.raises(
        UnikeError, match=r"is incomplete: it lacks \d+ of the model's weights \(.*\); get it anew"
    ) as caught:
        load_backbone(copy, device="cpu")
    assert "\n" not in str(caught.value)


def test_what_stands_between_eyes_and_words_is_missed_too(tmp_path: Path) -> None:
    for number, (name, part) in enumerate(
        [("llava", "multi_modal_projector"), ("llava", "lm_head"), ("blip2-opt", "qformer")]
    ):
        place = tmp_path / str(number)
        tiny_backbone(name).save_pretrained(place)
        rewrite(place, without(part))
        with pytest.raises(UnikeError, match="is incomplete"):
            load_backbone(place, device="cpu")


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    backbone = tiny_backbone("llava")
    backbone.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    backbone.model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    assert load_backbone(tmp_path, device="cpu").fingerprint() == backbone.fingerprint()
    entry = json.loads(index.read_text())
    gone = next(name for name in entry["weight_map"] if "projector" in name)
    shard = tmp_path / entry["weight_map"].pop(gone)
    save_file({n: t for n, t in load_file(shard).items() if n != gone}, shard, metadata={"format": "pt"})
    index.write_text(json.dumps(entry))
    with pytest.raises(UnikeError, match="lacks 1 of the model's weights"):
        load_backbone(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"),
    ],
)
def test_names_of_peft_are_told(tmp_path: Path, renamed: Callable[[str], str]) -> None:
    tiny_backbone("llava").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: {renamed(name): each for name, each in weights.items()})
    with pytest.raises(UnikeError, match="it was saved with its PEFT adapter: merge that and save again"):
        load_backbone(tmp_path, device="cpu")


def test_another_shape_is_refused(tmp_path: Path) -> None:
    tiny_backbone("llava").save_pretrained(tmp_path)
    rewrite(
        tmp_path,
        lambda weights: {n: t[:-1].clone() if "projector.linear_2.bias" in n else t for n, t in weights.items()},
    )
    with pytest.raises(UnikeError, match=r"shape|size mismatch"):
        load_backbone(tmp_path, device="cpu")


def test_surplus_alone_passes_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_backbone("llava").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: weights | {"model.extra.weight": torch.zeros(2)})
    with caplog.at_level(logging.WARNING, logger="unike"):
        load_backbone(tmp_path, device="cpu")
    (said,) = (record.getMessage() for record in caplog.records if record.name == "unike")
    assert said == f"{tmp_path} has 1 weights that the model has no use for (model.extra.weight)"


def damages() -> Iterator[tuple[str, bytes, str]]:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123\n"
    yield "a Git LFS pointer", pointer, "Git LFS pointer"
    yield "nothing", b"", "damaged"
    yield "a header that is longer than the file", (2**40).to_bytes(8, "little") + b"{}", "damaged"
    yield "a header that is no JSON", (4).to_bytes(8, "little") + b"{{{{", "damaged"


@pytest.mark.parametrize(("content", "told"), [each[1:] for each in damages()], ids=[each[0] for each in damages()])
def test_damaged_weights_are_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    tiny_backbone("llava").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UnikeError, match=told) as caught:
        load_backbone(tmp_path, device="cpu")
    assert "\n" not in str(caught.value) and "get it anew" in str(caught.value)


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    tiny_backbone("llava").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnikeError, match="damaged"):
        load_backbone(tmp_path, device="cpu")


def test_pickles_are_not_read_and_nobody_is_told_to(tmp_path: Path) -> None:
    backbone = tiny_backbone("llava")
    backbone.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(backbone.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnikeError) as caught:
        load_backbone(tmp_path, device="cpu")
    assert "safetensors" in str(caught.value) and "weights_only" not in str(caught.value)


def test_code_of_a_model_is_never_run_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_backbone("llava").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "novel", "auto_map": {"AutoConfig": "novel.NovelConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "novel.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UnikeError, match="brings code of its own, which is not run; if you trust it, say so"):
        load_backbone(tmp_path, device="cpu")
    assert not list(tmp_path.rglob("ran"))


def test_an_adapter_alone_says_how_to_load_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}')
    with pytest.raises(
        UnikeError, match=r"is a PEFT adapter of 'llava-hf/llava-1.5-7b-hf', not a model; .* unike.wrap"
    ):
        load_backbone(tmp_path, device="cpu")
