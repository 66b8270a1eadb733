"""Knowledge on disk and in use: what is read back is what was written, and only its own backbone may use it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor

import unike
from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import SEEN
from unike.core.errors import UnikeError
from unike.core.files import seal
from unike.data.leaks import ImageHashes
from unike.editors.unike.gate import Gate
from unike.editors.unike.injection import project_memory, projected_attention
from unike.editors.unike.knowledge import (
    CONFIG_FILE,
    TENSOR_FILE,
    Knowledge,
    LayerKnowledge,
    Triplet,
    as_attention_output,
    knowledge_of,
    place,
)
from unike.editors.unike.spaces import Encoder

T, D, SMALL = 6, 32, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_layer(seed: int = 0) -> LayerKnowledge:
    states = {name: draw(T, D, seed=seed + i) for i, name in enumerate(("h_sem", "h_pos", "h_neg", "raw_pos"))}
    encoders = {"truthfulness": Encoder(D, 7, SMALL, seed=seed), "semantic": Encoder(D, 7, D, seed=seed)}
    maps = {"w_zeta": draw(D, SMALL, seed=seed), "w_semantic": draw(D, D, seed=seed)}
    directions = {"zeta": draw(SMALL, seed=seed), "semantic_zeta": draw(D, seed=seed), "mean": draw(D, seed=seed)}
    return LayerKnowledge(**states, **encoders, **maps, **directions, ffn_norm=torch.tensor(2.5))


def some_knowledge(
    dtype: str = "float16", fingerprint: str = "0123456789abcdef", template: str = "{image}{prompt}"
) -> Knowledge:
    layers = {i: some_layer(seed=10 * i).rounded(getattr(torch, dtype)) for i in (1, 2)}
    triplets = tuple(
        Triplet(f"Wo ist {i}?", ImageHashes(f"{i:016x}", "0f" * 96), "Köln", f"Bonn {i}", "tag") for i in range(T)
    )
    backbone = {"source": "some/model", "fingerprint": fingerprint, "template": template, "n_layers": 4}
    description = {"unike": "0", "backbone": backbone, "dtype": dtype, "report": {"loss": 0.25}}
    return Knowledge({index - 3: layer for index, layer in layers.items()}, triplets, description)


def same(one: Knowledge, other: Knowledge) -> bool:
    assert list(one.layers) == list(other.layers)
    assert (one.triplets, one.description) == (other.triplets, other.description)
    for index in one.layers:
        a, b = one.layers[index].tensors(), other.layers[index].tensors()
        assert a.keys() == b.keys() and len(a) == 10 + 8
        assert all(tensor.dtype == torch.float32 for tensor in b.values())
        assert all(torch.equal(a[name], b[name]) for name in a)
    return one.fingerprint == other.fingerprint


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    some_knowledge(dtype).save_pretrained(tmp_path / "a" / "b")
    found = Knowledge.from_pretrained(tmp_path / "a" / "b")
    assert same(some_knowledge(dtype), found)
    found.save_pretrained(tmp_path / "again")
    for name in (CONFIG_FILE, TENSOR_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "a" / "b" / name).read_bytes()
    states = draw(3, D)
    assert torch.equal(found.layer(-1).truthfulness(states), some_knowledge(dtype).layer(-1).truthfulness(states))
    size = (tmp_path / "again" / TENSOR_FILE).stat().st_size
    numbers = sum(tensor.numel() for layer in found.layers.values() for tensor in layer.tensors().values())
    assert 0 < size - numbers * getattr(torch, dtype).itemsize < 4096


def test_what_comes_with_the_package_is_read_bit_for_bit() -> None:
    """Edits that were made with it hold on to its fingerprint."""
    folder = Path(unike.__file__).parent / "editors" / "unike" / "knowledge_data" / "mini"
    known = Knowledge.from_pretrained(folder)
    for name, content in known.files().items():
        assert content == (folder / name).read_bytes(), name
    first = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["triplets"][0]
    assert known.triplets[0] == Triplet(
        first["prompt"],
        ImageHashes(first["image_hash"], first["perceptual_hash"]),
        first["positive"],
        first["negative"],
        first["tag"],
    )


def test_what_does_not_fit_into_half_precision_is_refused() -> None:
    layer = some_layer()
    layer.h_pos[0, 0] = 1e6
    layer.rounded(torch.bfloat16)
    with pytest.raises(UnikeError, match="set store_dtype=bfloat16"):
        layer.rounded(torch.float16)


def test_the_fingerprint_is_that_of_the_content() -> None:
    assert some_knowledge().fingerprint == some_knowledge().fingerprint
    other = some_knowledge()
    other.layers[-1].zeta[0] += 1
    fingerprints = [
        some_knowledge().fingerprint,
        other.fingerprint,
        some_knowledge(template="{prompt}{image}").fingerprint,
    ]
    assert len(set(fingerprints)) == 3 and all(len(each) == 16 for each in fingerprints)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without(key: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        described = json.loads(content)
        del described[key]
        return json.dumps(described).encode()

    return change


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (CONFIG_FILE, cut, "knowledge.json is damaged"),
        (CONFIG_FILE, lambda content: b"[]", "knowledge.json is damaged"),
        (CONFIG_FILE, without("triplets"), "knowledge.json is damaged: keys are missing"),
        (CONFIG_FILE, lambda content: content.replace(b'"format": 6', b'"format": 9'), "update unike"),
        (CONFIG_FILE, lambda content: content.replace(b'"format": 6', b'"format": 1'), "make the knowledge anew"),
        (CONFIG_FILE, lambda content: content.replace(b"0.25", b"0.01"), "not those that were saved"),
        (TENSOR_FILE, cut, "not those that were saved"),
        (TENSOR_FILE, lambda content: content[:-1] + b"\1", "not those that were saved"),
    ],
)
def test_damage_is_noticed(tmp_path: Path, name: str, damage: Callable[[bytes], bytes], message: str) -> None:
    some_knowledge().save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    assert damage(content) != content
    (tmp_path / name).write_bytes(damage(content))
    with pytest.raises(UnikeError, match=message) as caught:
        Knowledge.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_forged_seal_does_not_hide_missing_parts(tmp_path: Path) -> None:
    files = some_knowledge().files()
    described = json.loads(files[CONFIG_FILE])
    for key, value in [("layers", [-3]), ("triplets", [{"prompt": "?"}]), ("layers", ["x"])]:
        forged = described | {key: value}
        forged["sha256"] = seal(forged, files[TENSOR_FILE])
        (tmp_path / TENSOR_FILE).write_bytes(files[TENSOR_FILE])
        (tmp_path / CONFIG_FILE).write_text(json.dumps(forged))
        with pytest.raises(UnikeError, match=r"knowledge.json is damaged: .*; make the knowledge anew"):
            Knowledge.from_pretrained(tmp_path)


def test_missing_files_and_other_folders(tmp_path: Path) -> None:
    with pytest.raises(UnikeError, match=f"no knowledge in {tmp_path}"):
        Knowledge.from_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UnikeError, match="choose another folder"):
        some_knowledge().save_pretrained(tmp_path)
    some_knowledge().save_pretrained(tmp_path / "here")
    (tmp_path / "here" / TENSOR_FILE).unlink()
    with pytest.raises(UnikeError, match=f"cannot read .*{TENSOR_FILE}"):
        Knowledge.from_pretrained(tmp_path / "here")


def some_gate(width: int = D, **tensors: Tensor) -> Gate:
    drawn = {
        "mean": draw(SEEN * width, seed=1),
        "discriminant": draw(2 * width, 5, seed=2),
        "contrast": draw(SEEN * width, 3, seed=4),
        "cohort": draw(9, 8, seed=3),
    }
    return Gate.of({"about": {"low": (0.2, 0.3), "high": (0.6, 0.7)}}, drawn | tensors)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_gate_is_kept_as_everything_else_is(tmp_path: Path, dtype: str) -> None:
    known = replace(some_knowledge(dtype), gate=some_gate())
    known.save_pretrained(tmp_path)
    found = Knowledge.from_pretrained(tmp_path)
    assert same(known, found) and found.gate is not None
    assert found.gate.settings() == some_gate().settings()
    for name, tensor in some_gate().tensors().items():
        kept = found.gate.tensors()[name]
        assert kept.dtype == torch.float32 and torch.equal(kept, tensor.to(getattr(torch, dtype)).float())
    assert known.fingerprint != some_knowledge(dtype).fingerprint, "it is part of the content"
    assert found.to("meta").gate.cohort.device.type == "meta"
    some_knowledge().save_pretrained(tmp_path)
    assert Knowledge.from_pretrained(tmp_path).gate is None


def test_a_damaged_gate_is_one_line(tmp_path: Path) -> None:
    """Tensors of another shape or of numbers that are none, and ramps that are none; with a true seal."""
    for gate in (
        some_gate(width=D - 1),
        some_gate(mean=draw(D)),
        some_gate(discriminant=draw(2 * D, 4)),
        some_gate(contrast=draw(2 * D, 3)),
        some_gate(contrast=draw(SEEN * D, 4)),
        some_gate(cohort=draw(8)),
        some_gate(cohort=draw(0, 8)),
        some_gate(discriminant=torch.full((2 * D, 5), float("nan"))),
    ):
        replace(some_knowledge("float32"), gate=gate).save_pretrained(tmp_path)
        refused(tmp_path)
    files = replace(some_knowledge(), gate=some_gate()).files()
    described = json.loads(files[CONFIG_FILE])
    for wrong in (
        {},
        {"about": {"low": [0.1]}},
        {"about": {"low": [], "high": []}},
        {"about": {"low": [0.2], "high": [0.1]}},
        {"about": {"low": [0.1], "high": [0.2, 0.3]}},
        {"about": 3},
        {"layer": 1},
    ):
        forged = described | {"gate": wrong}
        forged["sha256"] = seal(forged, files[TENSOR_FILE])
        (tmp_path / TENSOR_FILE).write_bytes(files[TENSOR_FILE])
        (tmp_path / CONFIG_FILE).write_text(json.dumps(forged))
        refused(tmp_path)


def refused(folder: Path) -> None:
    with pytest.raises(UnikeError, match=r"damaged: .*; make the knowledge anew") as caught:
        Knowledge.from_pretrained(folder)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- where it is found


@pytest.fixture
def llava(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Backbone:
    """A model whose cache folder is empty."""
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    return tiny_backbone("llava")


def test_knowledge_is_found_in_its_place_and_read_once(
    llava: Backbone, make_knowledge: Callable[..., Knowledge]
) -> None:
    with pytest.raises(
        UnikeError, match="no in-context knowledge of 'tiny-llava' yet; run: unike prepare --model tiny"
    ):
        knowledge_of(llava)
    known = make_knowledge(llava)
    known.save_pretrained(place(llava))
    assert knowledge_of(llava).fingerprint == known.fingerprint
    assert knowledge_of(llava) is knowledge_of(llava)
    assert knowledge_of(tiny_backbone("llava", seed=0)) is not knowledge_of(llava)
    with pytest.raises(UnikeError, match="no in-context knowledge"):
        knowledge_of(tiny_backbone("llava", seed=1))


def test_other_knowledge_in_its_place_is_read(llava: Backbone, make_knowledge: Callable[..., Knowledge]) -> None:
    """Prepared anew in the same process."""
    for seed in (0, 1):
        make_knowledge(llava, seed=seed).save_pretrained(place(llava))
        assert knowledge_of(llava).description["seed"] == seed


def test_a_folder_may_be_chosen(llava: Backbone, make_knowledge: Callable[..., Knowledge], tmp_path: Path) -> None:
    make_knowledge(llava).save_pretrained(place(llava))
    make_knowledge(llava, seed=1).save_pretrained(tmp_path / "other")
    assert knowledge_of(llava, tmp_path / "other").description["seed"] == 1
    assert knowledge_of(llava).description["seed"] == 0
    assert knowledge_of(llava, str(tmp_path / "other")) is knowledge_of(llava, tmp_path / "other")
    with pytest.raises(UnikeError, match=f"no knowledge in {tmp_path}"):
        knowledge_of(llava, tmp_path)
    make_knowledge(tiny_backbone("llava", seed=1)).save_pretrained(tmp_path / "anothers")
    with pytest.raises(UnikeError, match="the knowledge was made for 'tiny-llava'"):
        knowledge_of(llava, tmp_path / "anothers")


def test_knowledge_may_come_with_the_package(
    llava: Backbone, make_knowledge: Callable[..., Knowledge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("unike.editors.unike.knowledge.resources.files", lambda package: tmp_path / package)
    bundled = tmp_path / "unike.editors.unike" / "knowledge_data"
    make_knowledge(tiny_backbone("llava", seed=1)).save_pretrained(bundled / "another")
    (bundled / "notes.txt").write_text("not a folder")
    with pytest.raises(UnikeError, match="no in-context knowledge"):
        knowledge_of(llava)
    make_knowledge(llava).save_pretrained(bundled / "tiny")
    assert knowledge_of(llava).description["seed"] == 0
    make_knowledge(llava, seed=1).save_pretrained(place(llava))
    assert knowledge_of(tiny_backbone("llava")).description["seed"] == 1, "one's own comes first"


# ---------------------------------------------------------------------- use


def test_only_its_own_backbone_and_template_may_use_it() -> None:
    backbone = tiny_backbone("llava")
    some_knowledge(fingerprint=backbone.fingerprint(), template=backbone.template).check(backbone)
    with pytest.raises(UnikeError, match=r"was made for 'some/model' \(0123456789abcdef\), not for 'tiny-llava'"):
        some_knowledge(template=backbone.template).check(backbone)
    with pytest.raises(UnikeError, match=r"made with the template .*, not with"):
        some_knowledge(fingerprint=backbone.fingerprint()).check(backbone)


def test_layers_are_counted_from_either_end() -> None:
    known = some_knowledge()
    assert known.layer(-2) is known.layer(2) is known.layers[-2]
    assert known.layer(-1) is known.layer(3)
    for missing in (0, 1, -3, 4):
        with pytest.raises(UnikeError, match=f"nothing of layer {missing}, only of -2, -1"):
            known.layer(missing)


def test_the_memory_holds_the_states() -> None:
    known = some_knowledge()
    layer = known.layers[-1]
    memory = known.memory(-1)
    assert torch.equal(memory.keys, layer.h_sem) and torch.equal(memory.values, layer.h_pos)
    assert memory.mean is not None and torch.equal(memory.mean, layer.mean)
    assert torch.equal(known.memory(-1, "raw").values, layer.raw_pos)
    assert torch.equal(known.memory(-1, k_entries=3).keys, layer.h_sem[[0, 2, 4]])
    assert len(known.memory(-1, k_entries=99)) == T == len(known)


def test_alpha_reads_the_semantic_encoder() -> None:
    known, h_know, h_input = some_knowledge(), draw(4, D, seed=8), draw(4, D, seed=9)
    encoded = known.layers[-2].semantic(h_know)
    expected = [max(0.0, float(a @ b / a.norm() / b.norm())) for a, b in zip(encoded, h_input, strict=True)]
    assert known.dynamic_alpha(-2)(h_know, h_input).tolist() == pytest.approx(expected, abs=1e-5)
    assert any(expected)


def test_moving_keeps_everything() -> None:
    assert same(some_knowledge().to("cpu"), some_knowledge())
    moved = some_knowledge().to("meta")
    assert all(tensor.device.type == "meta" for tensor in moved.layers[-1].tensors().values())


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "blip2-opt"])
def test_what_attention_makes_of_a_lone_state(family: str) -> None:
    """A query with one entry to attend to gets its value, whatever it asks."""
    backbone: Backbone = tiny_backbone(family)
    site, states = backbone.attention(-1), draw(3, backbone.width)
    queries = draw(3, 1, site.n_heads * site.head_dim, seed=1)
    expected = projected_attention(site, queries, *project_memory(site, states.unsqueeze(1))).squeeze(1)
    assert torch.allclose(as_attention_output(site, states), expected, atol=1e-5)
