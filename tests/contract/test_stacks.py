"""Edits on top of edits: what a stack does depends on which edits are in it, not on how it came about."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ramps
import torch
from matrix import STACKS, WITHIN
from patches import hooks_on
from safetensors.torch import load_file
from tinies import TINIES, tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.unike.gate import NAMED
from unike.editors.unike.knowledge import Knowledge
from unike.edits.edit import Edit
from unike.edits.stack import attached, edits_on

pytestmark = pytest.mark.usefixtures("at_home")

SETTINGS: dict[str, dict[str, Any]] = {
    "ft": {"lr": 1e-2, "steps": 2},
    "t_patcher": {"lr": 1e-2, "steps": 2, "memory_weight": 0.0},
    "unike": {"lr": 2e-2, "steps": 2, "rounds": 1, "layers": (-2, -1), "alpha_offset": 0.2}
    | {"n_pairs": 3, "k": 6, "rivalry": 2.0},
}
"""So that twenty edits are made quickly, and can be told apart; an editor that is not named is run as it comes."""

SIZES = (1, 5, 20)
TARGETS = ("a cat", "red", "bob", "7")


def fact(number: int) -> Query:
    """Of whom, the edits' names say: each is a little like any other, so that all have a say."""
    return Query(f"What is Corvane {number}{'?' * (number % 3 + 1)}", target=TARGETS[number % 4])


@pytest.fixture(scope="module", autouse=True)
def half_named() -> Iterator[None]:
    """Gates are half open for edits of others with that name."""
    with ramps.words(NAMED=ramps.WIDE["NAMED"]):
        yield


@pytest.fixture(scope="module", params=STACKS)
def make_backbone(request: pytest.FixtureRequest) -> Callable[..., Backbone]:
    return TINIES[request.param]


@pytest.fixture(scope="module")
def backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def folder(backbone: Backbone, make_knowledge: Callable[..., Knowledge], tmp_path_factory: Any) -> str:
    place = tmp_path_factory.mktemp("knowledge")
    make_knowledge(backbone).save_pretrained(place)
    return str(place)


def an_editor(name: str, folder: str, **settings: Any) -> Editor[Any]:
    chosen = SETTINGS.get(name, {}) | settings
    if "knowledge" in registry.editors.get(name).config_class.model_fields:
        chosen = {"knowledge": folder} | chosen
    editor: Editor[Any] = registry.editors.get(name)(**chosen)
    return editor


@pytest.fixture(scope="module", params=WITHIN)
def editor(request: pytest.FixtureRequest, folder: str) -> Editor[Any]:
    return an_editor(request.param, folder)


def one_after_the_other(editors: list[Editor[Any]], backbone: Backbone) -> list[Edit]:
    """Each edit is made with all before it attached; the list grows within the block, which is no matter."""
    edits: list[Edit] = []
    for number, editor in enumerate(editors):
        with attached(backbone, edits):
            edits.append(editor.edit(backbone, fact(number)))
    return edits


@pytest.fixture(scope="module")
def twenty(editor: Editor[Any], backbone: Backbone) -> list[Edit]:
    return one_after_the_other([editor] * max(SIZES), backbone)


def logits_of(backbone: Backbone, *numbers: int) -> Tensor:
    return backbone.forward(backbone.encode([fact(number) for number in numbers or (0, 3, 50)]))


def under(backbone: Backbone, edits: list[Edit]) -> Tensor:
    with attached(backbone, edits):
        return logits_of(backbone)


# ---------------------------------------------------------------------- taking edits off


@pytest.mark.parametrize("size", SIZES)
def test_revoking_the_middle_one_leaves_the_stack_of_the_others(
    twenty: list[Edit], backbone: Backbone, size: int
) -> None:
    edits, middle = twenty[:size], size // 2
    others = edits[:middle] + edits[middle + 1 :]
    plain, hooks = logits_of(backbone), hooks_on(backbone)
    whole, without = under(backbone, edits), under(backbone, others)
    with ExitStack() as stack:
        blocks = [stack.enter_context(ExitStack()) for _ in edits]
        for block, edit in zip(blocks, edits, strict=True):
            block.enter_context(edit.attached(backbone))
        assert torch.equal(logits_of(backbone), whole)
        blocks[middle].close()
        assert torch.equal(logits_of(backbone), without)
        assert list(edits_on(backbone)) == others
    assert not torch.allclose(whole, without, atol=1e-3)
    assert torch.equal(logits_of(backbone), plain)
    assert hooks_on(backbone) == hooks and not edits_on(backbone)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_may_be_left_in_any_order(
    twenty: list[Edit], backbone: Backbone, make_backbone: Callable[..., Backbone], seed: int
) -> None:
    """The one that is left acts as on another model of the same weights, on which nothing else was ever attached."""
    edits, plain = twenty[:5], logits_of(backbone)
    order = random.Random(seed).sample(range(5), 5)
    with ExitStack() as stack:
        blocks = [stack.enter_context(ExitStack()) for _ in edits]
        for block, edit in zip(blocks, edits, strict=True):
            block.enter_context(edit.attached(backbone))
        left = dict(enumerate(edits))
        for number in order[:-1]:
            blocks[number].close()
            del left[number]
            now = logits_of(backbone)
            assert list(edits_on(backbone)) == list(left.values())
        assert torch.equal(now, under(make_backbone(), list(left.values())))
    assert torch.equal(logits_of(backbone), plain)


def test_a_stack_in_several_blocks_or_twice_the_same(twenty: list[Edit], backbone: Backbone) -> None:
    edits = twenty[:4]
    whole = under(backbone, edits)
    with attached(backbone, edits[:1]), attached(backbone, edits[1:3]), edits[3].attached(backbone):
        assert torch.equal(logits_of(backbone), whole)
    with edits[0].attached(backbone):
        once = logits_of(backbone)
        with edits[0].attached(backbone):
            assert torch.equal(logits_of(backbone), once), "the same fact counts once"
        assert torch.equal(logits_of(backbone), once)


def test_an_edit_that_cannot_be_attached_leaves_the_stack_as_it_was(
    twenty: list[Edit], backbone: Backbone, make_backbone: Callable[..., Backbone]
) -> None:
    edits = twenty[:3]
    stranger = type(edits[0])(
        edits[0].config, edits[0].tensors, edits[0].facts, fingerprint=make_backbone(1).fingerprint(), source="other"
    )
    with attached(backbone, edits):
        whole, hooks = logits_of(backbone), hooks_on(backbone)
        with pytest.raises(UnikeError, match="was made for 'other'"), attached(backbone, [edits[0], stranger]):
            pytest.fail("attached")
        assert list(edits_on(backbone)) == edits and hooks_on(backbone) == hooks
        assert torch.equal(logits_of(backbone), whole)


# ---------------------------------------------------------------------- what a stack does


def test_every_edit_of_a_stack_acts(twenty: list[Edit], backbone: Backbone) -> None:
    """On its own question: what predicts the target is other with an edit than without.

    The loss alone may come out the same where an edit moves several tokens.
    """
    for number in (0, 10, 19):
        batch = backbone.encode([fact(number)])
        found = []
        for edits in (twenty, twenty[:number] + twenty[number + 1 :]):
            with attached(backbone, edits):
                found.append(backbone.forward(batch)[target_positions(batch.labels)])
        assert not torch.allclose(*found, rtol=0, atol=1e-3), number


def test_a_batch_of_edits_on_top_of_single_ones(
    editor: Editor[Any], twenty: list[Edit], backbone: Backbone, facts: list[Query]
) -> None:
    below = twenty[:3]
    with attached(backbone, below):
        batch = editor.edit(backbone, facts)
    for stack in ([*below, batch], [below[0], batch, *below[1:]]):
        with attached(backbone, stack):
            encoded = backbone.encode(facts)
            together = backbone.forward(encoded)
            answers = backbone.generate(facts, max_new_tokens=4)
            beams = backbone.generate(facts, max_new_tokens=3, num_beams=2)
            with pytest.raises(UnikeError, match="3 independent edits are attached, but the model runs on 2 rows"):
                backbone.forward(backbone.encode(facts[:2]))
        for row, query in enumerate(facts):
            with attached(backbone, [edit if edit is not batch else batch[row] for edit in stack]):
                alone = backbone.forward(backbone.encode([query]))[0]
                real = encoded.inputs["attention_mask"][row].bool()
                assert torch.allclose(together[row][real], alone, atol=1e-4)
                assert backbone.generate([query], max_new_tokens=4) == answers[row : row + 1]
                assert backbone.generate([query], max_new_tokens=3, num_beams=2) == beams[row : row + 1]
        assert not torch.allclose(together[:1], backbone.forward(encoded)[:1], atol=1e-2)


def test_an_edit_on_top_of_others_is_made_for_that_stack(
    editor: Editor[Any], twenty: list[Edit], backbone: Backbone
) -> None:
    """It starts from what the edited model does, and the older edits' numbers stay what they were."""
    before = [{name: tensor.clone() for name, tensor in edit.tensors.items()} for edit in twenty]
    alone = editor.edit(backbone, fact(19))
    assert not all(torch.equal(alone.tensors[name], tensor) for name, tensor in twenty[19].tensors.items())
    with attached(backbone, twenty[:19]):
        again = editor.edit(backbone, fact(19))
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in twenty[19].tensors.items())
    for edit, was in zip(twenty, before, strict=True):
        assert all(torch.equal(edit.tensors[name], tensor) for name, tensor in was.items())


def test_fine_tuned_updates_add_up_in_the_weight(backbone: Backbone, make_backbone: Callable[..., Backbone]) -> None:
    """A stack acts as the model whose matrices are ``W + dW_1 + ... + dW_K``, with one hook a matrix."""
    edits = one_after_the_other([registry.editors.get("ft")(**SETTINGS["ft"])] * 5, backbone)
    tuned = make_backbone()
    with torch.no_grad():
        for name, linear in tuned.ffn(-1).matrices.items():
            linear.weight += torch.stack([edit.tensors[name][0] for edit in edits]).sum(dim=0)
    matrices = backbone.ffn(-1).matrices.values()
    with attached(backbone, edits[:1]):
        hooks = [len(linear._forward_hooks) for linear in matrices]
    with attached(backbone, edits):
        assert [len(linear._forward_hooks) for linear in matrices] == hooks
        assert torch.allclose(logits_of(backbone), logits_of(tuned), atol=1e-4)
    assert not torch.allclose(logits_of(backbone), logits_of(tuned), atol=1e-2)


# ---------------------------------------------------------------------- stacks of different methods


@pytest.fixture(scope="module")
def mixed(backbone: Backbone, folder: str) -> list[Edit]:
    """Two methods, and one of them with different settings."""
    editors = [
        an_editor("unike", folder),
        an_editor("ft", folder),
        an_editor("unike", folder, gate=False, k=3),
        an_editor("unike", folder, only_intrinsic=True, layers=(-1,)),
        an_editor("ft", folder, layer=-2),
        an_editor("unike", folder),
    ]
    return one_after_the_other(editors, backbone)


def test_a_mixed_stack(mixed: list[Edit], backbone: Backbone) -> None:
    whole, plain = under(backbone, mixed), logits_of(backbone)
    for number in range(len(mixed)):
        others = mixed[:number] + mixed[number + 1 :]
        expected = under(backbone, others)
        assert not torch.allclose(whole, expected, atol=1e-4), f"number {number} does nothing"
        with ExitStack() as stack, ExitStack() as one:
            for edit in mixed:
                (one if edit is mixed[number] else stack).enter_context(edit.attached(backbone))
            assert torch.equal(logits_of(backbone), whole)
            one.close()
            assert torch.equal(logits_of(backbone), expected)
    assert torch.equal(logits_of(backbone), plain)
    with attached(backbone, mixed):
        asked = [fact(0), fact(3), fact(50)]
        batch = backbone.encode(asked)
        for split in (0, 1):
            assert torch.equal(backbone.run_from_split(backbone.run_to_split(batch, split)), whole)
        answers = backbone.generate(asked, max_new_tokens=3)
        assert answers == [backbone.generate([query], max_new_tokens=3)[0] for query in asked]


# ---------------------------------------------------------------------- the gate of a stack


def test_locality_does_not_erode_with_the_number_of_edits(
    backbone: Backbone, make_knowledge: Callable[..., Knowledge], tmp_path: Path, pictures: list[Path]
) -> None:
    """A question that none of twenty edits is about gets the logits of the unedited model, bit for bit.

    Half of the edits are about a picture; questions are about another, in other words, or of somebody else.
    """
    facts = [replace(fact(number), image=pictures[0] if number % 2 else None) for number in range(20)]
    asked = [Query("Who wrote the long book about it?", pictures[0]), Query("What is Corvane 7?", pictures[1])]
    blind = [Query("Is it far from here?"), Query("What is Loweth Hall?"), Query("What is this?")]
    make_knowledge(backbone, about=(0.4, 0.5)).save_pretrained(tmp_path)
    editor = an_editor("unike", str(tmp_path), steps=1)

    def found() -> list[tuple[Tensor, list[str]]]:
        of_each = (asked, blind, facts[7:8], facts[8:9])
        return [
            (backbone.forward(backbone.encode(some)), backbone.generate(some, max_new_tokens=3)) for some in of_each
        ]

    with ramps.words(NAMED=NAMED):
        edits, plain = [editor.edit(backbone, each) for each in facts], found()
        with attached(backbone, edits):
            edited = found()
    for number, ((logits, answers), (before, said)) in enumerate(zip(edited, plain, strict=True)):
        if number < 2:
            assert torch.equal(logits, before) and answers == said
        else:
            assert not torch.allclose(logits, before, atol=1e-2), "its own question"


# ---------------------------------------------------------------------- files


NEW_PROCESS = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from tinies import tiny_backbone
from unike.edits.edit import Edit
from unike.edits.stack import attached
from unike.data.queries import Query
torch.set_num_threads(int(sys.argv[3]))
edits = [Edit.from_pretrained(folder) for folder in sorted(Path(sys.argv[1]).iterdir())]
backbone = tiny_backbone("llava")
with attached(backbone, edits):
    logits = backbone.forward(backbone.encode([edit.facts[0] for edit in edits]))
save_file({"logits": logits}, sys.argv[2])
"""


@pytest.mark.slow
def test_a_saved_stack_does_the_same_in_a_new_process(tmp_path: Path) -> None:
    """Both methods; knowledge is found by the model's fingerprint in ``UNIKE_HOME``, not by a path in the edit."""
    backbone = tiny_backbone("llava")
    mixed = [registry.editors.get(name)(**SETTINGS[name]) for name in ("unike", "ft", "unike", "unike", "ft")]
    assert mixed[0].config.knowledge is None
    edits = one_after_the_other(mixed, backbone)
    for number, edit in enumerate(edits):
        edit.save_pretrained(tmp_path / "stack" / str(number))
    with attached(backbone, edits), ramps.words(NAMED=NAMED):
        expected = backbone.forward(backbone.encode([edit.facts[0] for edit in edits]))
    arguments = [str(tmp_path / "stack"), str(tmp_path / "logits.safetensors"), str(torch.get_num_threads())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", NEW_PROCESS, *arguments], check=True, env=environment)
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], expected)
