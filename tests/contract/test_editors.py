"""What every editor that acts within the model promises, on tiny random models; both are found, not listed.

Which on which is said in ``matrix.py``. Those that rewrite or route questions instead are in ``test_routing.py``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import greedy_without_cache
from matrix import PAIRS, WITHIN, held_later
from patches import hooks_on
from quick import ATOL, ONLY_TRAINED, alike, an_editor, few
from safetensors.torch import load_file
from tinies import TINIES, tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import token_nll
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.anchors import Anchors
from unike.editors.trained.base import TrainedEditor
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.stack import attached

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def anchors(pictures: list[Path]) -> Anchors:
    return Anchors(
        [
            Query("Is it near?", pictures[1]),
            Query("How many are there?", pictures[0]),
            Query("Who wrote it?"),
            Query("1 + 1?"),
        ]
    )


@pytest.fixture(scope="module", params=held_later(PAIRS, itemgetter(1)), ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The names of an editor and of a tiny model."""
    found: tuple[str, str] = request.param
    return found


EVERY_EDITOR = pytest.mark.parametrize("pair", [(name, "llava") for name in WITHIN], indirect=True, ids=WITHIN)
"""For what no model has a say in."""


@pytest.fixture(scope="module")
def make_editor(pair: tuple[str, str], anchors: Anchors) -> Callable[..., Editor[Any]]:
    """A function ``(**settings) -> Editor``."""
    return partial(an_editor, pair[0], anchors)


@pytest.fixture(scope="module")
def make_backbone(pair: tuple[str, str]) -> Callable[..., Backbone]:
    return TINIES[pair[1]]


@pytest.fixture(scope="module")
def backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def edits(make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]) -> Edit:
    """Three independent edits that were made in one pass."""
    return make_editor().edit(backbone, facts)


def logits_of(backbone: Backbone, query: Query) -> Tensor:
    return backbone.forward(backbone.encode([query]))


# ---------------------------------------------------------------------- the backbone stays what it was


def test_an_edit_leaves_the_backbone_as_it_was(
    make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]
) -> None:
    weights = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    plain, hooks = logits_of(backbone, facts[0]), hooks_on(backbone)
    random = torch.random.get_rng_state()
    edit = few(make_editor).edit(backbone, facts[0])
    assert hooks_on(backbone) == hooks
    after = backbone.model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert not backbone.model.training
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())
    assert torch.equal(logits_of(backbone, facts[0]), plain)
    assert torch.equal(torch.random.get_rng_state(), random), "the caller's random numbers are the caller's"
    assert edit.facts == (facts[0],)
    assert all(not tensor.requires_grad and len(tensor) == 1 for tensor in edit.tensors.values())


def test_the_same_edit_twice_is_the_same_also_without_gradients(
    make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]
) -> None:
    first = few(make_editor).edit(backbone, facts[0])
    with torch.no_grad():
        second = few(make_editor).edit(backbone, facts[0])
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_detaching_restores_the_logits_bit_for_bit(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    edit, hooks, plain = edits[0], hooks_on(backbone), logits_of(backbone, facts[0])
    with edit.attached(backbone) as on:
        assert on is edit
        assert not torch.equal(logits_of(backbone, facts[0]), plain)
    assert torch.equal(logits_of(backbone, facts[0]), plain)
    with pytest.raises(ZeroDivisionError), edit.attached(backbone):
        _ = 1 / 0
    with pytest.raises(UnikeError), edit.attached(backbone):
        backbone.generate([Query("What?", Path("missing.png"))])
    assert hooks_on(backbone) == hooks
    assert torch.equal(logits_of(backbone, facts[0]), plain)
    with edit.attached(backbone):
        assert backbone.fingerprint() == edit.fingerprint, "an attached edit does not make another backbone"


def test_no_steps_change_nothing(
    make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]
) -> None:
    if "steps" not in make_editor().config_class.model_fields:
        pytest.skip("an editor that does not optimise has no step 0")
    settings = ONLY_TRAINED.get(make_editor().name, {})
    edit = make_editor(steps=0, **settings).edit(backbone, facts[0])
    plain = logits_of(backbone, facts[0])
    with edit.attached(backbone):
        assert torch.equal(logits_of(backbone, facts[0]), plain)


# ---------------------------------------------------------------------- what an edit does


def test_the_loss_of_every_fact_falls(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    batch = backbone.encode(facts)
    before = token_nll(backbone.forward(batch), batch.labels)
    with edits.attached(backbone):
        after = token_nll(backbone.forward(batch), batch.labels)
    assert (after < before).all(), f"{before.tolist()} -> {after.tolist()}"


def test_a_fact_without_an_image_can_be_edited(make_editor: Callable[..., Editor[Any]], backbone: Backbone) -> None:
    fact = Query("Who wrote it?", target="a poet")
    batch = backbone.encode([fact])
    before = token_nll(backbone.forward(batch), batch.labels)
    with few(make_editor, 10).edit(backbone, fact).attached(backbone):
        assert token_nll(backbone.forward(batch), batch.labels) < before


def test_three_edits_in_a_batch_equal_three_single_ones(
    make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]
) -> None:
    editor = few(make_editor)
    together = editor.edit(backbone, facts)
    assert len(together) == 3
    for row, fact in enumerate(facts):
        alone, picked = editor.edit(backbone, fact), together[row]
        assert len(picked) == 1
        assert picked.facts == (fact,)
        for name, tensor in alone.tensors.items():
            assert alike(picked.tensors[name], tensor), name
        plain = logits_of(backbone, fact)
        with alone.attached(backbone):
            expected = logits_of(backbone, fact)
        with picked.attached(backbone):
            assert torch.dist(logits_of(backbone, fact), expected) <= 0.1 * torch.dist(expected, plain)


def test_every_row_of_a_batch_sees_its_own_edit(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    batch = backbone.encode(facts)
    with edits.attached(backbone):
        together = backbone.forward(batch)
    for row, fact in enumerate(facts):
        with edits[row].attached(backbone):
            alone = logits_of(backbone, fact)[0]
        real = batch.inputs["attention_mask"][row].bool()
        assert torch.allclose(together[row][real], alone, atol=ATOL)


def test_picking_one_edit_of_several(edits: Edit, facts: list[Query]) -> None:
    last = edits[-1]
    assert last.facts == (facts[2],)
    assert all(torch.equal(last.tensors[name], tensor[2:]) for name, tensor in edits.tensors.items())
    for row in (3, -4):
        with pytest.raises(IndexError):
            edits[row]


def test_one_edit_detached_leaves_the_other(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    alone = []
    for edit in (edits[0], edits[1]):
        with edit.attached(backbone):
            alone.append(logits_of(backbone, facts[0]))
    with edits[0].attached(backbone):
        with edits[1].attached(backbone):
            same = [torch.equal(logits_of(backbone, facts[0]), one) for one in alone]
            # The gate of `unike` may keep out the one that is about something else, bit for bit.
            assert not any(same) or (edits.editor == "unike" and not all(same))
        assert torch.equal(logits_of(backbone, facts[0]), alone[0])
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(edits[0].attached(backbone))
        second.enter_context(edits[1].attached(backbone))
        first.close()
        assert torch.equal(logits_of(backbone, facts[0]), alone[1])
    with attached(backbone, [edits[0], edits[1]]):
        both = logits_of(backbone, facts[0])
    with edits[0].attached(backbone), edits[1].attached(backbone):
        assert torch.equal(logits_of(backbone, facts[0]), both)


# ---------------------------------------------------------------------- generation


def test_generation_equals_decoding_without_a_cache(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    asked = [*facts[:2], Query("Who wrote it?")]
    with edits[0].attached(backbone):
        assert backbone.generate(asked, max_new_tokens=6) == [greedy_without_cache(backbone, q, 6) for q in asked]
    assert EditedModel(backbone, [edits[0]]).generate(asked[:1], max_new_tokens=6) != backbone.generate(
        asked[:1], max_new_tokens=6
    )


@pytest.mark.slow
def test_every_row_of_a_batch_gets_the_answer_of_its_own_edit(
    make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]
) -> None:
    """One question, three targets: nothing but the edit tells the rows apart."""
    taught = [replace(facts[0], target=fact.target) for fact in facts]
    editor = make_editor()
    edits = editor.edit(backbone, taught)
    for beams in (1, 2):
        alone = [
            EditedModel(backbone, [edits[row]]).generate([fact], max_new_tokens=8, num_beams=beams)[0]
            for row, fact in enumerate(taught)
        ]
        assert EditedModel(backbone, [edits]).generate(taught, max_new_tokens=8, num_beams=beams) == alone
        if isinstance(editor, TrainedEditor):  # of a network that nobody has trained
            assert len(set(alone)) == 3
        else:
            assert alone == [fact.target for fact in taught]


# ---------------------------------------------------------------------- files


def test_a_saved_edit_does_the_same(edits: Edit, backbone: Backbone, facts: list[Query], tmp_path: Path) -> None:
    edits.save_pretrained(tmp_path / "edit")
    assert sorted(path.name for path in (tmp_path / "edit").iterdir()) == ["edit.safetensors", "edit_config.json"]
    loaded = Edit.from_pretrained(tmp_path / "edit")
    assert type(loaded) is type(edits)
    assert (loaded.config, loaded.facts, loaded.source) == (edits.config, edits.facts, edits.source)
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in edits.tensors.items())
    batch = backbone.encode(facts)
    with edits.attached(backbone):
        expected = backbone.forward(batch)
    with loaded.attached(backbone):
        assert torch.equal(backbone.forward(batch), expected)


NEW_PROCESS = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from tinies import tiny_backbone
from unike.edits.edit import Edit
torch.set_num_threads(int(sys.argv[3]))
backbone, found = tiny_backbone("llava"), {}
for folder in Path(sys.argv[1]).iterdir():
    edit = Edit.from_pretrained(folder)
    with edit.attached(backbone):
        found[folder.name] = backbone.forward(backbone.encode(edit.facts))
save_file(found, sys.argv[2])
"""


def test_saved_edits_do_the_same_in_a_new_process(anchors: Anchors, facts: list[Query], tmp_path: Path) -> None:
    backbone, expected = tiny_backbone("llava"), {}
    for name in WITHIN:
        edit = few(partial(an_editor, name, anchors)).edit(backbone, facts)
        edit.save_pretrained(tmp_path / "edits" / name)
        with edit.attached(backbone):
            expected[name] = backbone.forward(backbone.encode(facts))
    arguments = [str(tmp_path / "edits"), str(tmp_path / "logits.safetensors"), str(torch.get_num_threads())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", NEW_PROCESS, *arguments], check=True, env=environment)
    found = load_file(tmp_path / "logits.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], logits) for name, logits in expected.items())


# ---------------------------------------------------------------------- what is refused


def test_another_backbone_is_refused(edits: Edit, make_backbone: Callable[..., Backbone]) -> None:
    other = make_backbone(1)
    hooks = hooks_on(other)
    with pytest.raises(UnikeError, match=r"made for .* not for .*; load that model"), edits.attached(other):
        pytest.fail("attached")
    assert hooks_on(other) == hooks


def test_rows_that_do_not_fit_the_edits_are_refused(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    with edits.attached(backbone):
        for rows in (1, 2, 4):
            asked = [Query("What is this?", facts[0].image)] * rows
            with pytest.raises(
                UnikeError, match=f"3 independent edits are attached, but the model runs on {rows} rows"
            ):
                backbone.forward(backbone.encode(asked))
            with pytest.raises(UnikeError, match="ask one question for each edit"):
                backbone.generate(asked, max_new_tokens=1)
        assert len(backbone.generate([facts[0]] * 6, max_new_tokens=1)) == 6


def test_facts_that_cannot_be_edited_are_refused(
    make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]
) -> None:
    editor, image = make_editor(max_target_tokens=4), facts[0].image
    for wrong, message in [
        (Query(" ", image, "a cat"), "the prompt is empty"),
        (Query("What?", image), "the target for 'What\\?' is empty"),
        (Query("What?", image, " "), "the target for 'What\\?' is empty"),
        (Query("What?", image, "a very long cat"), "tokens, the limit is 4"),
        (Query("What?", Path("missing.png"), "cat"), "image not found: missing.png"),
    ]:
        with pytest.raises(UnikeError, match=message):
            editor.edit(backbone, [facts[1], wrong])


@EVERY_EDITOR
def test_settings_round_trip_and_unknown_ones_are_errors(make_editor: Callable[..., Editor[Any]]) -> None:
    config = make_editor().config
    again = type(config).parse(json.loads(config.model_dump_json()))
    assert again == config
    assert type(config).parse({}) == type(config)()
    for name in type(config).names():
        with pytest.raises(UnikeError, match=f"unknown setting '{name}_'; did you mean '{name}'\\?"):
            make_editor(**{f"{name}_": 1})
    for name in type(config).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(config, name, None)
    with pytest.raises(UnikeError, match="setting max_target_tokens='many': "):
        make_editor(max_target_tokens="many")
