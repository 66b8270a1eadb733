"""What every editor promises that rewrites or routes questions, on tiny random models."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import FEW, ROUTING
from patches import hooks_on
from tinies import TINIES, tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.stack import attached, edits_on

pytestmark = pytest.mark.usefixtures("at_home")

SETTINGS: dict[str, dict[str, Any]] = {
    "ike": (SHORT := {"pool_size": 20, "n_copy": 1, "n_update": 1, "n_retain": 1, "max_prompt_tokens": 200}),
    "intrinsic_ike": {"ike": SHORT, "intrinsic": {"lr": 3e-2, "steps": 80, "n_pairs": 6, "layers": (-3, -2, -1)}},
}
"""What makes an editor quick on a tiny model; one that is not named is run as it comes."""

ATOL = 5e-4
"""Between logits of rows of a batch and of the same rows alone."""

FAR = Query("Which city is Tajikistan's capital?")
"""Nothing that the facts are about: they have pictures."""


@pytest.fixture(scope="module", params=FEW)
def make_backbone(request: pytest.FixtureRequest) -> Callable[..., Backbone]:
    make: Callable[..., Backbone] = TINIES[request.param]
    return make


@pytest.fixture(scope="module")
def backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module", params=ROUTING)
def make_editor(request: pytest.FixtureRequest) -> Callable[..., Editor[Any]]:
    """A function ``(**settings) -> Editor`` for each editor."""

    def make(**settings: Any) -> Editor[Any]:
        return registry.editors.get(request.param)(**SETTINGS.get(request.param, {}) | settings)

    return make


@pytest.fixture(scope="module")
def edits(make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]) -> Edit:
    """Three independent edits that were made in one pass."""
    return make_editor().edit(backbone, facts)


def logits_under(edits: list[Edit], backbone: Backbone, queries: list[Query]) -> Tensor:
    return EditedModel(backbone, edits).target_logits(queries)


def plain_logits(backbone: Backbone, queries: list[Query]) -> Tensor:
    return EditedModel(backbone).target_logits(queries)


def ask(edits: list[Edit], backbone: Backbone, queries: list[Query]) -> list[str]:
    return EditedModel(backbone, edits).generate(queries, max_new_tokens=4)


def test_an_edit_leaves_the_backbone_as_it_was(
    make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]
) -> None:
    weights = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    plain = plain_logits(backbone, facts)
    hooks, random = hooks_on(backbone), torch.random.get_rng_state()
    editor = make_editor()
    assert editor.lowest_layer(backbone) is None
    editor.prepare(backbone)
    edit = editor.edit(backbone, facts[0])
    ask([edit], backbone, facts[:1])
    assert all(torch.equal(value, weights[key]) for key, value in backbone.model.state_dict().items())
    assert hooks_on(backbone) == hooks and not edits_on(backbone)
    assert torch.equal(plain_logits(backbone, facts), plain)
    assert torch.equal(torch.random.get_rng_state(), random), "the caller's random numbers are the caller's"
    assert edit.facts == (facts[0],)
    assert all(not tensor.requires_grad and len(tensor) == 1 for tensor in edit.tensors.values())


def test_an_edit_cannot_be_attached(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    hooks = hooks_on(backbone)
    for stack in ([edits[0]], [edits]):
        with pytest.raises(UnikeError, match=r"cannot be attached; ask through EditedModel"), attached(backbone, stack):
            pytest.fail("attached")
    assert hooks_on(backbone) == hooks and not edits_on(backbone)


def test_an_edit_does_something_on_its_own_question_and_nothing_is_left_of_it(
    edits: Edit, backbone: Backbone, facts: list[Query]
) -> None:
    plain = plain_logits(backbone, facts)
    under = logits_under([edits], backbone, facts)
    assert under.shape == plain.shape and not torch.allclose(under, plain, atol=1e-2)
    assert torch.equal(plain_logits(backbone, facts), plain)
    bare = EditedModel(backbone)
    assert type(edits).answer([], bare, facts, max_new_tokens=4) == backbone.generate(facts, max_new_tokens=4)
    assert torch.allclose(type(edits).target_logits([], bare, facts), plain, atol=1e-5)


def test_every_row_sees_its_own_edit(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    """In a batch as alone; six questions are shared out among three edits, two in turn for each."""
    queries = [facts[0], facts[0], facts[0]]
    together = logits_under([edits], backbone, queries).chunk(3)
    for row in range(3):
        alone = logits_under([edits[row]], backbone, [facts[0]])
        assert torch.allclose(together[row], alone, atol=ATOL)
    own = [ask([edits[row]], backbone, [facts[row]])[0] for row in range(3)]
    assert ask([edits], backbone, facts) == own
    assert ask([edits], backbone, [facts[0], facts[0], *facts[1:2] * 2, *facts[2:] * 2]) == [
        text for text in own for _ in range(2)
    ]
    for rows in (1, 2, 4):
        with pytest.raises(UnikeError, match=f"3 independent edits are attached, but the model runs on {rows} rows"):
            ask([edits], backbone, facts[:1] * rows)


def test_edits_of_a_batch_equal_single_ones(
    make_editor: Callable[..., Editor[Any]], edits: Edit, backbone: Backbone, facts: list[Query]
) -> None:
    for row, fact in enumerate(facts):
        alone, picked = make_editor().edit(backbone, fact), edits[row]
        assert picked.facts == alone.facts == (fact,)
        assert picked.tensors.keys() == alone.tensors.keys()
        for name, tensor in alone.tensors.items():
            assert torch.allclose(picked.tensors[name].float(), tensor.float(), rtol=2**-7, atol=1e-5), name


def test_what_a_query_should_be_answered_changes_nothing(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    """Not the answer, and not the logits at the tokens that two targets share."""
    for row, fact in enumerate(facts):
        stack, other = [edits[row]], replace(fact, target="quite another answer")
        bare = replace(fact, target=None)
        assert ask(stack, backbone, [fact]) == ask(stack, backbone, [other]) == ask(stack, backbone, [bare])
        first = logits_under(stack, backbone, [fact])[0]
        assert torch.allclose(logits_under(stack, backbone, [other])[0], first, atol=ATOL)


def test_revoking_one_leaves_the_stack_of_the_others(
    make_editor: Callable[..., Editor[Any]], edits: Edit, backbone: Backbone, facts: list[Query]
) -> None:
    stack = [edits[0], edits[1], edits[2]]
    if not make_editor().sequential:
        for use in (ask, logits_under):
            with pytest.raises(UnikeError, match="3 are given; use one of them"):
                use(stack, backbone, facts)
        return
    whole = logits_under(stack, backbone, facts[1:2])
    without = logits_under([stack[0], stack[2]], backbone, facts[1:2])
    assert not torch.allclose(whole, without)
    assert torch.equal(logits_under(stack, backbone, facts[1:2]), whole)


def test_below_a_method_that_routes_others_act(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    tuned = registry.editors.get("ft")(steps=20, lr=1e-2).edit(backbone, Query("What is this?", facts[1].image, "zzz"))
    expected = type(edits).answer([edits[0]], EditedModel(backbone, [tuned]), facts[:2], max_new_tokens=4)
    assert ask([tuned, edits[0]], backbone, facts[:2]) == ask([edits[0], tuned], backbone, facts[:2]) == expected
    with tuned.attached(backbone):
        attached_alone = backbone.generate(facts, max_new_tokens=4)
    assert ask([tuned], backbone, facts) == attached_alone
    assert not edits_on(backbone)


def test_a_saved_edit_does_the_same(edits: Edit, backbone: Backbone, facts: list[Query], tmp_path: Path) -> None:
    edits.save_pretrained(tmp_path / "edit")
    assert sorted(path.name for path in (tmp_path / "edit").iterdir()) == ["edit.safetensors", "edit_config.json"]
    loaded = Edit.from_pretrained(tmp_path / "edit")
    assert type(loaded) is type(edits)
    assert (loaded.config, loaded.facts, loaded.source) == (edits.config, edits.facts, edits.source)
    assert torch.equal(logits_under([loaded], backbone, facts), logits_under([edits], backbone, facts))


NEW_PROCESS = """
import json, sys, torch
from pathlib import Path
from tinies import tiny_backbone
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
torch.set_num_threads(int(sys.argv[2]))
backbone, found = tiny_backbone("llava"), {}
for folder in Path(sys.argv[1]).iterdir():
    edit = Edit.from_pretrained(folder)
    model = EditedModel(backbone, [edit])
    logits = model.target_logits(edit.facts)
    found[folder.name] = [model.generate(edit.facts, max_new_tokens=4), logits.sum(dim=1).tolist()]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_saved_edits_do_the_same_in_a_new_process(facts: list[Query], tmp_path: Path) -> None:
    backbone = tiny_backbone("llava")
    made = {name: registry.editors.get(name)(**SETTINGS.get(name, {})).edit(backbone, facts) for name in ROUTING}
    for name, edit in made.items():
        edit.save_pretrained(tmp_path / name)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [str(tmp_path), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, *arguments], check=True, env=environment, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found.keys() == made.keys()
    for name, (answers, sums) in found.items():
        assert answers == ask([made[name]], backbone, facts)
        assert sums == pytest.approx(logits_under([made[name]], backbone, facts).sum(dim=1).tolist(), abs=1e-3)


def test_another_backbone_is_refused(
    edits: Edit, backbone: Backbone, make_backbone: Callable[..., Backbone], facts: list[Query]
) -> None:
    other = make_backbone(1)
    for use in (ask, logits_under):
        with pytest.raises(UnikeError, match=r"made for .* not for .*; load that model"):
            use([edits], other, facts)


def test_a_stack_of_other_settings_is_refused(edits: Edit, backbone: Backbone, facts: list[Query]) -> None:
    config = edits.config.model_copy(update={"max_target_tokens": 9})
    others = [replace(fact, prompt=f"And {fact.prompt}") for fact in facts]
    other = type(edits)(config, edits.tensors, others, fingerprint=edits.fingerprint, source=edits.source)
    for use in (ask, logits_under):
        with pytest.raises(UnikeError, match="only with the same settings"):
            use([edits, other], backbone, facts)


def test_facts_that_cannot_be_edited_are_refused(
    make_editor: Callable[..., Editor[Any]], backbone: Backbone, facts: list[Query]
) -> None:
    editor, image = make_editor(max_target_tokens=4), facts[0].image
    for wrong, message in [
        (Query(" ", image, "a cat"), "the prompt is empty"),
        (Query("What?", image), "the target for 'What\\?' is empty"),
        (Query("What?", image, "a very long cat"), "tokens, the limit is 4"),
        (Query("What?", Path("missing.png"), "cat"), "image not found: missing.png"),
    ]:
        with pytest.raises(UnikeError, match=message):
            editor.edit(backbone, [facts[1], wrong])
    with pytest.raises(UnikeError, match="there is nothing to edit: no fact was given"):
        editor.edit(backbone, [])


def test_settings_round_trip_and_unknown_ones_are_errors(make_editor: Callable[..., Editor[Any]]) -> None:
    config = make_editor().config
    assert type(config).parse(json.loads(config.model_dump_json())) == config
    for name in type(config).model_fields:
        with pytest.raises(UnikeError, match=f"unknown setting '{name}_'; did you mean '{name}'\\?"):
            make_editor(**{f"{name}_": 1})


def test_two_methods_that_route_do_not_go_together(backbone: Backbone, facts: list[Query]) -> None:
    editors = [registry.editors.get(name)(**SETTINGS.get(name, {})) for name in ROUTING[:2]]
    first, second = (editor.edit(backbone, fact) for editor, fact in zip(editors, facts[:2], strict=True))
    with pytest.raises(UnikeError, match=f"'{ROUTING[0]}' and '{ROUTING[1]}' both rewrite or route questions"):
        ask([first, second], backbone, facts[:1])
