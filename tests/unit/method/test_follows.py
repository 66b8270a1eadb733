"""What follows from an edit is asked of the unedited model, behind the fact in words."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ramps
import torch
from unike_parts import Make

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import UNEDITED
from unike.bench.lines import told as told_of_case
from unike.data.queries import EditCase, Probe, Query, telling
from unike.editors.ft import FT
from unike.editors.unike import follows
from unike.editors.unike.editor import gate_of
from unike.editors.unike.gate import Ramp, RisingRamp
from unike.editors.unike.knowledge import knowledge_of
from unike.editors.unike.words import read_words
from unike.edits import standing
from unike.edits.edited import EditedModel, RowsEdited
from unike.edits.group import Group
from unike.edits.stack import Stack

FLAG, CAPITAL, COLOURS = "Which country's flag is this?", "What is its capital?", "Which colours does the flag have?"
NAME, KIND, CAPTION = "What is this called?", "What kind of thing is it?", "Describe the picture."


@pytest.fixture(autouse=True)
def open_to_pictures() -> Iterator[None]:
    """Pictures are near at most; of words the shipped ramps decide."""
    with ramps.words():
        yield


@pytest.fixture(autouse=True, params=[1, standing.BLOCK], ids=["each-in-a-block", "all-in-one"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many edits stand in a block."""
    monkeypatch.setattr(standing, "BLOCK", request.param)


@pytest.fixture
def edits(llava: Backbone, editor: Callable[[Backbone], Make], pictures: list[Path]) -> list[Any]:
    """A flag, a name and a caption, each of a picture of its own."""
    taught = [(FLAG, "Kenya"), (NAME, "zorblat"), (CAPTION, "a photo of a zorblat, an animal")]
    make = editor(llava)(steps=1)
    return [make.edit(llava, Query(q, pictures[n], t)) for n, (q, t) in enumerate(taught)]


@pytest.mark.parametrize(
    ("edited", "asked", "expected"),
    [
        (FLAG, CAPITAL, True),
        (FLAG, "whats the contnent", True),
        (FLAG, COLOURS, False),
        (FLAG, FLAG, False),
        (NAME, KIND, True),
        (NAME, "Is this a photo or a drawing?", False),
        (NAME, "How many are there?", False),
        (NAME, "Can you eat it?", False),
        (KIND, NAME, False),
        (CAPITAL, FLAG, False),
        (CAPTION, NAME, True),
        (CAPTION, KIND, True),
        (CAPTION, COLOURS, False),
        (COLOURS, CAPITAL, False),
        ("Who wrote Hamlet?", CAPITAL, False),
    ],
)
def test_what_follows_from_what(edited: str, asked: str, expected: bool) -> None:
    vectors = read_words([edited, asked]).asked
    assert follows.follows(vectors[:1], vectors[1]).tolist() == [expected]


def test_the_exam_and_the_method_tell_a_fact_in_the_same_words(pictures: list[Path]) -> None:
    fact, follows_from_it = Query(FLAG, pictures[0], "Kenya"), Query(CAPITAL, pictures[0], "Nairobi")
    case = EditCase("a", fact, (Probe("portability", follows_from_it),))
    assert told_of_case(case) == {follows_from_it: telling(fact, follows_from_it)}
    assert telling(fact, follows_from_it).prompt == f"{FLAG} Kenya. {CAPITAL}"
    assert telling(fact, follows_from_it).image is None


def test_it_is_told_of_the_thing_alone(llava: Backbone, edits: Any, pictures: list[Path]) -> None:
    """Of the picture that an edit is about, the nearest of several; not of another, not of none."""
    flag, _, caption = edits
    asked = [Query(CAPITAL, pictures[0]), Query(COLOURS, pictures[0]), Query(FLAG, pictures[0]), Query(CAPITAL)]
    expected = [telling(flag.facts[0], asked[0]), None, None, None]
    assert Stack(llava, [flag]).told(asked) == expected
    assert Stack(llava, []).told(asked) == [None] * 4
    of_it = Query(KIND, pictures[2])
    assert Stack(llava, [caption]).told([of_it]) == [telling(caption.facts[0], of_it)]


def test_another_picture_is_told_nothing(llava: Backbone, edits: Any, pictures: list[Path]) -> None:
    group = Group(llava, [edits[0]])
    gate = gate_of(knowledge_of(llava, edits[0].config.knowledge))
    own = 1 - edits[0].tensors["gate.usual"].item()
    strict = replace(gate, about=RisingRamp((own - 0.02,), (own - 0.01,)))
    asked = [Query(CAPITAL, pictures[0]), Query(CAPITAL, pictures[1])]
    assert follows.told(strict, group, asked) == [telling(edits[0].facts[0], asked[0]), None]


def test_of_several_the_one_is_told_whose_picture_is_most_alike(
    llava: Backbone, edits: Any, pictures: list[Path]
) -> None:
    asked = Query(KIND, pictures[2])
    near = follows.nearest_of(torch.tensor([[0.2, 0.9, 0.5]]), torch.tensor([[True, True, True]]))
    assert near == [1]
    assert follows.nearest_of(torch.tensor([[0.2, 0.9, 0.5]]), torch.tensor([[True, False, True]])) == [2]
    assert follows.nearest_of(torch.tensor([[0.2, 0.9, 0.5]]), torch.tensor([[False] * 3])) == [None]
    assert Stack(llava, edits).told([asked])[0] is not None


@pytest.mark.parametrize("own", [0, 1])
def test_what_an_edit_answers_itself_is_told_by_none_whose_picture_is_no_nearer(
    llava: Backbone, editor: Callable[[Backbone], Make], edits: Any, pictures: list[Path], own: int
) -> None:
    """A capital was taught for this very flag, or for another one that is like it: a flag's edit then says nothing."""
    capital = editor(llava)(steps=1).edit(llava, Query(CAPITAL, pictures[own], "Mombasa"))
    asked = Query(CAPITAL, pictures[own])
    assert Stack(llava, edits[:1]).told([asked]) != [None], "by wide ramps it is about that flag, too"
    for stack in ([edits[0], capital], [capital, edits[0]]):
        assert Stack(llava, stack).told([asked]) == [None]
    nearer = Query(CAPITAL, pictures[0])
    assert (Stack(llava, [edits[0], capital]).told([nearer]) == [None]) == (own == 0)


def test_what_surely_follows_is_not_an_edits_own_question(
    llava: Backbone, edits: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its gate is open: a caption's edit is asked for a name in words that are near to its own."""
    caption, asked = edits[2], Query("Can you tell what this is?", pictures[2])
    with ramps.words(ASKED=Ramp(-9, -8)):
        assert Stack(llava, [caption]).told([asked]) == [telling(caption.facts[0], asked)]
        assert Stack(llava, [caption]).told([caption.facts[0]]) == [None]
        monkeypatch.setattr(follows, "CERTAIN", 1.1)
        assert Stack(llava, [caption]).told([asked]) == [None]


def test_whoever_is_named_is_not_the_thing_in_the_picture(llava: Backbone, edits: Any, pictures: list[Path]) -> None:
    asked = [Query(f"What is the capital of {name}?", pictures[0]) for name in ("Japan", "Kenya")]
    assert Stack(llava, edits[:1]).told(asked) == [None, telling(edits[0].facts[0], asked[1])]


def test_nothing_is_told_beside_edits_of_another_method(llava: Backbone, edits: Any, pictures: list[Path]) -> None:
    """It may be what they are about."""
    asked = Query(CAPITAL, pictures[0])
    newer = FT(steps=1).edit(llava, replace(asked, target="Mombasa"))
    assert Stack(llava, edits[:1]).told([asked]) != [None]
    assert Stack(llava, [*edits[:1], newer]).told([asked]) == [None]


def test_an_edit_about_a_name_is_no_rival_of_a_picture(
    llava: Backbone, editor: Callable[[Backbone], Make], edits: Any, pictures: list[Path]
) -> None:
    named = editor(llava)(steps=1).edit(llava, Query("What is the capital of Kenya?", target="Mombasa"))
    asked = Query(CAPITAL, pictures[0])
    assert Stack(llava, [edits[0], named]).told([asked]) == [telling(edits[0].facts[0], asked)]


def test_of_no_question_nothing_follows(llava: Backbone, edits: Any) -> None:
    assert EditedModel(llava, edits).generate([]) == []


@pytest.mark.parametrize("settings", [{"tells": False}, {"gate": {"on": False}}, {"paper": True}], ids=str)
def test_not_without_a_gate_nor_where_it_is_turned_off(
    llava: Backbone, editor: Callable[[Backbone], Make], pictures: list[Path], settings: dict[str, Any]
) -> None:
    edit = editor(llava)(steps=0, **settings).edit(llava, Query(FLAG, pictures[0], "Kenya"))
    assert Stack(llava, [edit]).told([Query(CAPITAL, pictures[0])]) == [None]


@pytest.mark.parametrize("name", ["llava", "blip2-opt"])
def test_the_answer_is_the_unedited_models(
    request: pytest.FixtureRequest, editor: Callable[[Backbone], Make], pictures: list[Path], name: str
) -> None:
    """Alone, in a batch of independent edits and in rows that have edits of their own."""
    from tinies import tiny_backbone

    backbone = tiny_backbone(name)
    facts = [Query(FLAG, pictures[0], "Kenya"), Query(NAME, pictures[1], "zorblat")]
    asked = [Query(CAPITAL, pictures[0]), Query("How many are there?", pictures[1])]
    edits = editor(backbone)(steps=1).edit(backbone, facts)
    told = backbone.generate([telling(facts[0], asked[0])], acting=UNEDITED)[0]
    own = backbone.generate(asked[1:], acting=UNEDITED)[0]
    assert EditedModel(backbone, [edits[0]]).generate(asked) == [told, own]
    assert EditedModel(backbone, [edits]).generate(asked) == [told, own]
    assert RowsEdited(backbone, [[edits[0]], [edits[0], edits[1]]]).generate(asked) == [told, own]
    assert RowsEdited(backbone, [[edits[1]], []]).generate(asked)[0] != told
    other = FT(steps=1).edit(backbone, facts[1])
    beside = RowsEdited(backbone, [[edits[0]], [other]]).generate(asked)
    assert beside == [told, *EditedModel(backbone, [other]).generate(asked[1:])], "whatever others' methods are"


def test_it_is_read_once_and_only_where_something_may_follow(
    llava: Backbone, edits: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    run = llava.run_to_split
    monkeypatch.setattr(llava, "run_to_split", lambda batch, *args: read.append(len(batch.labels)) or run(batch, *args))
    Stack(llava, edits).told([Query(COLOURS, pictures[0]), Query(CAPITAL), Query("How many are there?", pictures[1])])
    assert read == []
    Stack(llava, edits).told([Query(COLOURS, pictures[0]), Query(CAPITAL, pictures[0]), Query(KIND, pictures[1])])
    assert read == [2]


def test_a_rows_own_edits_alone_are_told(llava: Backbone, edits: Any, pictures: list[Path]) -> None:
    asked: Sequence[Query] = [Query(CAPITAL, pictures[0])] * 3
    flag = edits[0]
    told = telling(flag.facts[0], asked[0])
    other = replace(flag.facts[0], target="Peru")
    newer = flag.like(flag.tensors, [other])
    assert Stack.of_rows(llava, [[flag], [], [newer]]).told(asked) == [told, None, telling(other, asked[0])]
    assert torch.equal(newer.tensors["gate.asked"], flag.tensors["gate.asked"])
