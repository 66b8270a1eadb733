"""Edits that leave unike: exact where they are changes of weights, learned and scored where they are more."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import ROUTING
from miniature import paint_gallery
from tinies import tiny_backbone
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.weights import WeightUpdate
from unike.export import FORMATS, Exported, export, exporting
from unike.export.questions import OWN, UNRELATED, held_out, lessons
from unike.export.updates import factorised

EXACT: dict[str, dict[str, Any]] = {"ft": {"steps": 30, "lr": 1e-2}, "mend": {}, "ke": {}}

LEARNED: dict[str, dict[str, Any]] = {
    "unike": {"layers": (-2, -1), "steps": 30, "lr": 3e-2, "pairs": {"n": 3}, "memory": {"k": 4}},
    "t_patcher": {"lr": 6e-2, "steps": 60, "max_neurons": 8, "memory_weight": 0.0, "layers": (-2, -1)},
}

QUICK = {"steps": 30, "lr": 1e-2, "rank": 8}

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def anchors(tmp_path_factory: pytest.TempPathFactory) -> Anchors:
    gallery = paint_gallery(tmp_path_factory.mktemp("gallery"))
    with_pictures = [Query(f"How big is number {n}?", gallery[n]) for n in range(5)]
    return Anchors([*with_pictures, *(Query(f"What is {n} and {n}?") for n in range(5))])


@pytest.fixture(scope="module", params=["llava", "blip2-opt", "qwen3_vl"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(request.param)


def made(name: str, backbone: Backbone, fact: Query) -> Edit:
    settings = (EXACT | LEARNED).get(name, {})
    edit: Edit = registry.editors.get(name)(**settings).edit(backbone, fact)
    return edit


def logits_of(backbone: Backbone, model: Any, facts: list[Query]) -> list[Tensor]:
    """What a model, of whoever loaded it, gives for the questions; text and pictures apart."""
    rows = backbone.groups(facts)
    with torch.no_grad():
        return [model(**backbone.encode([facts[row] for row in group]).inputs).logits for group in rows]


def edited_logits(backbone: Backbone, edits: list[Edit], facts: list[Query]) -> list[Tensor]:
    model, rows = EditedModel(backbone, edits), backbone.groups(facts)
    return [backbone.forward(backbone.encode([facts[row] for row in group]), model.stack) for group in rows]


def close(found: list[Tensor], expected: list[Tensor], atol: float = 1e-4) -> bool:
    """Whether logits are those; at padding nobody promises anything, so there the model's own are left out."""
    return all(torch.allclose(a, b, atol=atol) for a, b in zip(found, expected, strict=True))


def state_of(backbone: Backbone) -> dict[str, Any]:
    """What an export must leave as it was."""
    weights = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    modules = [(name, id(module)) for name, module in backbone.model.named_modules()]
    flags = [weight.requires_grad for weight in backbone.model.parameters()]
    return {"weights": weights, "modules": modules, "flags": flags, "names": set(vars(backbone.model))}


def is_as_it_was(backbone: Backbone, before: dict[str, Any]) -> bool:
    now = state_of(backbone)
    weights, old = now.pop("weights"), before["weights"]
    same = weights.keys() == old.keys() and all(torch.equal(weights[name], old[name]) for name in old)
    return same and now == {key: value for key, value in before.items() if key != "weights"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls what transformers has renamed
def plain_peft(model: Any, folder: Path) -> Any:
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(model, str(folder))


@pytest.fixture
def one(facts: list[Query]) -> list[Query]:
    """Asked one by one, so that nothing is padded."""
    return [facts[0]]


# ---------------------------------------------------------------------- exact


@pytest.mark.parametrize("name", EXACT)
def test_merged_weights_are_the_edited_model(
    name: str, backbone: Backbone, one: list[Query], anchors: Anchors, tmp_path: Path
) -> None:
    edit, before = made(name, backbone, one[0]), state_of(backbone)
    fingerprint, generator = backbone.fingerprint(), torch.get_rng_state()
    found = export(backbone, edit, tmp_path / "out", format="merged", anchors=anchors)
    assert found.is_exact and is_as_it_was(backbone, before)
    assert backbone.fingerprint() == fingerprint and torch.equal(torch.get_rng_state(), generator)
    expected, plain = edited_logits(backbone, [edit], one), edited_logits(backbone, [], one)
    assert not close(plain, expected, 1e-2)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert close(logits_of(backbone, theirs, one), expected)
    ours = load_backbone(tmp_path / "out")
    assert close([ours.forward(ours.encode(one))], expected)
    assert ours.fingerprint() != fingerprint, "it is another model"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["mend", "ke"])
def test_an_exact_adapter_is_the_edited_model(
    name: str, backbone: Backbone, one: list[Query], anchors: Anchors, tmp_path: Path
) -> None:
    edit, before = made(name, backbone, one[0]), state_of(backbone)
    found = export(backbone, edit, tmp_path / "out", anchors=anchors)
    assert found.is_exact and is_as_it_was(backbone, before)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "export.json",
        "README.md",
    }
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == found.described["rank"] <= 32
    expected = edited_logits(backbone, [edit], one)
    backbone.save_pretrained(tmp_path / "base")
    theirs = plain_peft(
        AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.float32).eval(), tmp_path / "out"
    )
    assert close(logits_of(backbone, theirs, one), expected)
    assert close(logits_of(backbone, theirs.merge_and_unload(), one), expected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_stack_is_exported_together(format: str, facts: list[Query], anchors: Anchors, tmp_path: Path) -> None:
    """Of two methods that change weights; what a newer edit supersedes is left out."""
    backbone = tiny_backbone("llava")
    old = made("mend", backbone, Query(facts[0].prompt, facts[0].image, "a dog"))
    stack = [old, made("mend", backbone, facts[0]), made("ke", backbone, facts[1])]
    found = export(backbone, stack, tmp_path / "out", format=format, anchors=anchors)
    assert found.is_exact and [edit["target"] for edit in found.described["edits"]] == ["a cat", "red"]
    said = [row.exported for row in found.rows if row.asked.kind is OWN]
    assert said == EditedModel(backbone, stack).generate([facts[0], facts[1]])
    assert all(score.same == 1 for score in found.scores), "exact: whatever is asked, they say the same"


def test_the_bundled_model_is_merged_too(one: list[Query], anchors: Anchors, tmp_path: Path) -> None:
    backbone = tiny_backbone("mini")
    edit = made("ft", backbone, one[0])
    export(backbone, edit, tmp_path / "out", format="merged", anchors=anchors)
    ours, expected = load_backbone(tmp_path / "out"), edited_logits(backbone, [edit], one)
    assert ours.name == "mini" and close([ours.forward(ours.encode(one))], expected)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert close(logits_of(backbone, theirs, one), expected)
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer is not None
    assert "import unike.backbones.families.mini" in (tmp_path / "out" / "README.md").read_text()


def test_a_dense_change_is_cut_if_somebody_says_so(one: list[Query], anchors: Anchors, tmp_path: Path) -> None:
    backbone = tiny_backbone("llava")
    edit = made("ft", backbone, one[0])
    with pytest.raises(UnikeError, match=r"mlp\.\w+_proj has rank \d+ of 32, .* use --format merged, .* or --rank N"):
        export(backbone, edit, tmp_path / "out", anchors=anchors)
    assert not (tmp_path / "out").exists()
    cut = export(backbone, edit, tmp_path / "cut", anchors=anchors, rank=4)
    assert cut.described["how"] == "cut" and cut.described["rank"] == 4 and not cut.is_exact
    assert len(cut.described["left_out"]) == 3 and all(0 < part < 1 for part in cut.described["left_out"].values())
    whole = export(backbone, edit, tmp_path / "whole", anchors=anchors, rank=32)
    assert whole.is_exact and all(score.same == 1 for score in whole.scores)
    with pytest.raises(UnikeError, match="leave --rank out"):
        export(backbone, edit, tmp_path / "merged", anchors=anchors, format="merged", rank=4)


def test_factors_are_the_change() -> None:
    linear, generator = nn.Linear(6, 9), torch.Generator().manual_seed(0)
    reads, writes = torch.randn(2, 6, generator=generator), torch.randn(2, 9, generator=generator)
    low = WeightUpdate(linear, writes, reads)
    for update in (low, WeightUpdate(linear, low.delta)):
        (found,) = factorised([update], None, ["it"])
        assert found.reads.shape == (2, 6) and found.lost == 0
        assert torch.allclose(found.writes.T @ found.reads, low.delta, atol=1e-5)
    (cut,) = factorised([low], 1, ["it"])
    first = torch.linalg.svd(low.delta).S
    assert cut.lost == pytest.approx(float(first[1] / first.norm()), abs=1e-4)
    many = WeightUpdate(linear, writes.repeat(8, 1), reads.repeat(8, 1))
    (less,) = factorised([many], None, ["it"])
    assert len(less.reads) == 2, "no more than the change's own rank"
    assert torch.allclose(less.writes.T @ less.reads, many.delta, atol=1e-4)


# ---------------------------------------------------------------------- learned


@pytest.fixture(scope="module", params=LEARNED)
def learned(
    request: pytest.FixtureRequest,
    facts: list[Query],
    anchors: Anchors,
    tmp_path_factory: pytest.TempPathFactory,
    at_home: None,
) -> Iterator[tuple[Backbone, Edit, Exported]]:
    backbone = tiny_backbone("llava")
    edit, before = made(request.param, backbone, facts[0]), state_of(backbone)
    generator = torch.get_rng_state()
    found = export(backbone, edit, tmp_path_factory.mktemp("learned") / "out", anchors=anchors, **QUICK)
    assert is_as_it_was(backbone, before) and torch.equal(torch.get_rng_state(), generator)
    yield backbone, edit, found


Learned = tuple[Backbone, Edit, Exported]


def test_what_is_learned_says_the_target_and_is_not_called_exact(learned: Learned) -> None:
    backbone, _, found = learned
    (own,) = [score for score in found.scores if score.kind is OWN]
    assert (own.edited, own.exported) == (1, 1)
    assert found.described["how"] == "learned" and not found.is_exact and found.described["keeps_gate"] is False
    (row,) = [row for row in found.rows if row.asked.kind is OWN]
    assert row.unedited == backbone.generate([row.asked.query], max_new_tokens=16)[0] != row.exported


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scores_are_those_of_the_file(learned: Learned, tmp_path: Path) -> None:
    """Whoever loads the adapter gets the answers that were counted."""
    backbone, _, found = learned
    backbone.save_pretrained(tmp_path / "base")
    theirs = load_backbone(tmp_path / "base")
    model = plain_peft(theirs.model, found.folder)
    assert model is not None
    answers = [theirs.generate([row.asked.query.question], max_new_tokens=16)[0] for row in found.rows]
    assert answers == [row.exported for row in found.rows]
    described = json.loads((found.folder / "export.json").read_text())
    assert [row["exported"] for row in described["answers"]] == answers
    unrelated = [row for row in found.rows if row.asked.kind is UNRELATED]
    kept = sum(row.exported == row.unedited for row in unrelated) / len(unrelated)
    assert described["scores"]["unrelated"] == {
        "asked": len(unrelated),
        "wants": "the unedited answer",
        "edited_model": pytest.approx(sum(row.edited == row.unedited for row in unrelated) / len(unrelated), abs=1e-4),
        "exported": pytest.approx(kept, abs=1e-4),
        "same_answer": pytest.approx(sum(r.exported == r.edited for r in unrelated) / len(unrelated), abs=1e-4),
    }


@pytest.mark.slow
def test_it_depends_on_the_seed_alone(learned: Learned, anchors: Anchors, tmp_path: Path) -> None:
    backbone, edit, found = learned
    first = (found.folder / "adapter_model.safetensors").read_bytes()
    torch.rand(3)  # wherever the global generator is
    for seed, same in ((0, True), (1, False)):
        again = export(backbone, edit, tmp_path / str(seed), anchors=anchors, **QUICK, seed=seed)
        assert ((again.folder / "adapter_model.safetensors").read_bytes() == first) is same


def test_it_is_merged_as_well(learned: Learned, anchors: Anchors, tmp_path: Path) -> None:
    backbone, edit, found = learned
    merged = export(backbone, edit, tmp_path / "out", anchors=anchors, format="merged", **QUICK)
    assert [row.exported for row in merged.rows] == [row.exported for row in found.rows]
    ours = load_backbone(tmp_path / "out")
    answers = [ours.generate([row.asked.query.question], max_new_tokens=16)[0] for row in merged.rows]
    assert answers == [row.exported for row in merged.rows]


def test_nothing_is_asked_that_was_learned(facts: list[Query], anchors: Anchors) -> None:
    taught, asked = set(lessons(facts, anchors.queries)), set(held_out(facts, anchors.queries))
    assert {each.kind for each in taught & asked} == {OWN}
    assert {each.kind.name for each in asked} == {"own", "reworded", "other_pictures", "other_questions", "unrelated"}
    assert len([each for each in asked if each.kind is UNRELATED]) == 3
    assert all(each.query.target for each in asked if each.kind.about)
    assert not {each.query.question for each in taught | asked if not each.kind.about} & {
        fact.question for fact in facts
    }


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ROUTING)
def test_methods_that_route_are_refused(name: str, facts: list[Query], tmp_path: Path) -> None:
    edit_class = registry.editors.get(name).edit_class
    edit = edit_class(edit_class.config_class(), {}, facts[:1], fingerprint="f", source="x")
    for format in FORMATS:
        with pytest.raises(UnikeError, match=f"'{name}' rewrites or routes questions, which no weight does"):
            export(tiny_backbone("llava"), edit, tmp_path / "out", format=format)


def test_what_else_is_refused(
    facts: list[Query], anchors: Anchors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone("llava")
    edit, idle = made("ft", backbone, facts[0]), registry.editors.get("no_edit")().edit(backbone, facts[0])
    several = registry.editors.get("ft")(steps=1).edit(backbone, facts[:2])
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").touch()
    for given, out, format, told in (
        ([], "out", "lora", "there is no edit to export"),
        (idle, "out", "lora", "edits of 'no_edit' change nothing"),
        (several, "out", "lora", "is of 2 facts; export single edits"),
        (edit, "out", "gguf", "--format 'gguf' is none of lora, merged"),
        (edit, "else", "merged", "exists and is something else"),
    ):
        with pytest.raises(UnikeError, match=told):
            export(backbone, given, tmp_path / out, format=format, anchors=anchors)
    with pytest.raises(UnikeError, match="unknown setting 'stepz'"):
        export(backbone, edit, tmp_path / "out", anchors=anchors, stepz=1)
    with monkeypatch.context() as patch:
        patch.setattr(type(backbone), "quantize", "4bit")
        with pytest.raises(UnikeError, match="is kept in 4bit, which takes no change"):
            export(backbone, edit, tmp_path / "out", format="merged", anchors=anchors)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(UnikeError, match="peft is needed; run: pip install peft"):
        export(backbone, edit, tmp_path / "out", anchors=anchors)
    export(backbone, edit, tmp_path / "out", format="merged", anchors=anchors)  # which goes without


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_with_an_adapter_keeps_it(facts: list[Query], anchors: Anchors, tmp_path: Path) -> None:
    peft, backbone = pytest.importorskip("peft"), tiny_backbone("llava")
    peft.get_peft_model(backbone.model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    edit = made("ft", backbone, facts[0])
    with pytest.raises(UnikeError, match="has a PEFT adapter on it; merge that"):
        export(backbone, edit, tmp_path / "out", anchors=anchors, rank=2)


def test_what_fails_leaves_the_old_one(
    facts: list[Query], anchors: Anchors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone("llava")
    edit = made("mend", backbone, facts[0])
    export(backbone, edit, tmp_path / "out", anchors=anchors)
    before, old = state_of(backbone), {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fails(*args: Any) -> None:
        raise RuntimeError("a crash while the scores are put together")

    monkeypatch.setattr(exporting, "scores_of", fails)
    for format in FORMATS:
        with pytest.raises(RuntimeError, match="a crash"):
            export(backbone, edit, tmp_path / "out", format=format, anchors=anchors)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == old
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and is_as_it_was(backbone, before)
