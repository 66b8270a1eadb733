"""Replaying and proving answers gives what asking gives, whatever the model, the edit and the answers look like."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from miniature import Prefix, Prefixed, Scatter

from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers, content_key
from unike.bench import replay
from unike.bench.lines import questions
from unike.bench.outcome import Asked
from unike.bench.proof import begins_as_asked
from unike.bench.protocols.base import all_protocols
from unike.bench.replay import Examiner
from unike.core.errors import UnikeError
from unike.data.queries import EditCase, Query, probe_kinds
from unike.editors.base import Editor
from unike.editors.ft import FT
from unike.edits.edited import EditedModel

ROOM = 8

UNCHANGED = {name for name, kind in probe_kinds().items() if kind.expects == "unchanged"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))


def examiner(
    backbone: Backbone, editor: Editor[Any], cases: Sequence[EditCase], engine: str = "fast", room: int = ROOM
) -> Examiner:
    answers = Answers(backbone, room)
    answers.ask([query for case in cases for _, query in questions(case)])
    return Examiner(backbone, editor, answers, protocols=tuple(all_protocols()), engine=engine)


def ask(
    backbone: Backbone, editor: Editor[Any], cases: Sequence[EditCase], *, stacked: bool = False, **kwargs: Any
) -> list[tuple[Asked, ...]]:
    """Edit the cases independently, or one after another, and ask all."""
    who = examiner(backbone, editor, cases, **kwargs)
    edits = editor.edit(backbone, [case.edit for case in cases])
    read = [who.read(case) for case in cases]
    return who.examine(read, [edits[row] for row in range(len(edits))] if stacked else edits)


def remember(answers: Answers, query: Query, answer: str) -> None:
    """Put an answer on disk, as another process might have given it."""
    with answers.path.open("a") as file:
        file.write(json.dumps({"key": content_key(query), "answer": answer}) + "\n")
    answers.ask([])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """Every question that is really asked under an edit."""
    found: list[Query] = []
    original = EditedModel.generate

    def spy(model: EditedModel, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        if model.edits:
            found.extend(queries)
        return original(model, queries, **kwargs)

    monkeypatch.setattr(EditedModel, "generate", spy)
    return found


# ---------------------------------------------------------------------- fast equals plain


@pytest.mark.parametrize(
    ("size", "stacked", "room"),
    [
        (0, False, 1),
        (0, True, 8),
        (0.05, False, 8),
        (0.05, True, 2),
        (0.1, False, 3),
        (0.1, True, 8),
        (0.3, False, 8),
        (0.3, True, 1),
    ],
)
def test_fast_equals_plain(
    taught: Backbone, cases: list[EditCase], asked: list[Query], size: float, stacked: bool, room: int
) -> None:
    """Answers that end, that are cut off, of two lines, right and wrong, touched and untouched."""
    editor = Scatter(lr=max(size, 1e-9))
    plain = ask(taught, editor, cases, stacked=stacked, engine="plain", room=room)
    total = len(asked)
    assert total == sum(len(questions(case)) for case in cases)
    asked.clear()
    fast = ask(taught, editor, cases, stacked=stacked, room=room)
    assert fast == plain
    if size == 0:
        assert len(asked) == 4 * len(cases), "only the wanted answers, which are not there, cannot be proved"


def test_an_edit_that_works_is_proved(taught: Backbone, cases: list[EditCase], asked: list[Query]) -> None:
    editor = FT(lr=2e-2, steps=40)
    fast = ask(taught, editor, cases)
    assert all(answers[0].scores["strict/exact"] for answers in fast)
    assert cases[0].edit not in [replace(query, target=cases[0].edit.target) for query in asked]
    assert fast == ask(taught, editor, cases, engine="plain")


def test_every_family(backbone: Backbone, cases: list[EditCase]) -> None:
    """Random models babble, and some families do not mix questions with and without a picture."""
    editor = FT(lr=1e-2, steps=10)
    assert ask(backbone, editor, cases[:2]) == ask(backbone, editor, cases[:2], engine="plain")


def test_an_answer_that_does_not_change_is_proved(taught: Backbone, cases: list[EditCase], asked: list[Query]) -> None:
    """Also one whose second line is cut off: ``a\\nb`` is the answer ``a``."""
    found = ask(taught, Scatter(lr=1e-9), cases)
    left_alone = {query.question for case in cases for kind, query in questions(case) if kind in UNCHANGED}
    assert not left_alone & {query.question for query in asked}
    said = {answer.prompt: answer.after for answers in found for answer in answers}
    assert (said["Where is it?"], said["How big?"]) == ("a", "tiny")


# ---------------------------------------------------------------------- what proves nothing


def test_a_near_tie_proves_nothing(taught: Backbone, cases: list[EditCase], asked: list[Query]) -> None:
    """Except where nothing at all is predicted otherwise than before."""
    editor = Scatter(lr=0.3)
    wanted = ask(taught, editor, cases)
    asked.clear()
    who = examiner(taught, editor, cases)
    who.proof.lead = 1e9
    edits = editor.edit(taught, [case.edit for case in cases])
    assert who.examine([who.read(case) for case in cases], edits) == wanted
    as_before = sum(answer.kind in UNCHANGED and answer.before == answer.after for found in wanted for answer in found)
    everything = sum(len(questions(case)) for case in cases)
    assert len(asked) == everything - as_before < everything


@pytest.mark.parametrize("near", [True, False])
def test_rounding_changes_no_answer(taught: Backbone, cases: list[EditCase], near: bool) -> None:
    """In half precision a near-tie may fall one way in one batch, another way in another; an edit did neither."""
    who = examiner(taught, Scatter(lr=1e-9), cases)
    if near:
        who.proof.lead = 1e9
    question = cases[0].probes[3].query
    own, rounded = who.answers[question], "small"
    assert own != rounded
    remember(who.answers, question, rounded)
    (found,) = who.examine([who.read(cases[0])], [Scatter(lr=1e-9).edit(taught, cases[0].edit)])
    (asked,) = (answer for answer in found if answer.prompt == question.prompt)
    assert (asked.before, asked.after) == (rounded, rounded if near else own)


def test_a_prompt_that_is_read_otherwise_alone_proves_nothing(
    taught: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a space between them, "xa" and "t" are read as "x" and "at"."""

    def glue(query: Query, image_text: str) -> tuple[list[int], int]:
        alone, text = (taught.tokenizer(t)["input_ids"] for t in (query.prompt, query.prompt + (query.target or "")))
        return (alone, len(alone)) if query.target is None else ([*text, 2], len(text) - 1)

    monkeypatch.setattr(taught, "tokenize", glue)
    assert begins_as_asked(taught, Query("xa", None, "z"))
    assert not begins_as_asked(taught, Query("xa", None, "t"))


def test_unprovable_lines_are_asked(
    taught: Backbone, cases: list[EditCase], asked: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ask(taught, Scatter(lr=0.05), cases)
    asked.clear()
    monkeypatch.setattr(replay, "begins_as_asked", lambda backbone, query: False)
    assert ask(taught, Scatter(lr=0.05), cases) == wanted
    assert len(asked) == sum(len(questions(case)) for case in cases)


def test_without_an_end_token_only_cut_off_answers_are_proved(
    taught: Backbone, cases: list[EditCase], asked: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taught, "append_eos", False)
    fast = ask(taught, Scatter(lr=0.05), cases)
    assert len(asked) == sum(len(questions(case)) for case in cases)
    assert fast == ask(taught, Scatter(lr=0.05), cases, engine="plain")


# ---------------------------------------------------------------------- scores


def test_an_empty_answer_stays_empty_or_does_not(taught: Backbone, cases: list[EditCase]) -> None:
    who = examiner(taught, Scatter(lr=1e-9), cases)
    silent = Query("How big?", cases[0].probes[3].query.image, "tiny")
    remember(who.answers, silent, "")
    (found,) = who.examine([who.read(cases[0])], [Scatter(lr=1e-9).edit(taught, cases[0].edit)])
    asked = next(answer for answer in found if answer.prompt == silent.prompt)
    assert (asked.before, asked.after) == ("", "tiny")
    assert asked.scores["strict/exact"] == asked.scores["teacher_forced/em"] == 0.0
    assert asked.scores["teacher_forced/gold_em"] == 1.0


def test_teacher_forced_scores_leave_the_end_out(taught: Backbone, cases: list[EditCase]) -> None:
    """An answer that goes on is right token by token, and yet not the answer."""
    case = EditCase("x", replace(cases[0].edit, target="tin"), ())
    (asked,) = ask(taught, Scatter(lr=1e-9), [case])[0]
    assert asked.after == "tin bat"
    assert asked.scores == {
        "strict/exact": 0.0,
        "teacher_forced/em": 1.0,
        "teacher_forced/token": 1.0,
        "mmedit/token": 1.0,
    }


def test_what_cannot_be_scored_is_said(taught: Backbone, cases: list[EditCase]) -> None:
    """None, not left out."""
    answers = ask(taught, Scatter(lr=1e-9), cases)[0]
    scores = {answer.kind: answer.scores for answer in answers}
    assert scores["specificity"]["teacher_forced/gold_em"] is None, "it has no gold answer"
    assert scores["specificity"]["mmedit/top10"] is None
    assert scores["m_locality"]["mmedit/top10"] == scores["t_locality"]["mmedit/top1"] == 1.0


def test_mmedit_counts_no_end(taught: Backbone, cases: list[EditCase]) -> None:
    """The published toolkit puts none behind an answer: what is predicted after it has no say."""
    who = examiner(taught, Scatter(lr=0.1), cases[:1])
    case = who.read(cases[0])
    for batch in case.batches:
        for line, guessed in zip(batch.lines, batch.before, strict=True):
            asked = taught.encode([replace(line.query, target=None)])
            assert guessed.ranks is not None
            assert len(guessed.ranks) == asked.labels.shape[1] + len(line.tokens)


def test_mmedit_counts_every_position(taught: Backbone, cases: list[EditCase]) -> None:
    """Prompt included, as the published toolkit does; so its locality is not that of the answers."""
    answers = [answer for found in ask(taught, Scatter(lr=0.1), cases) for answer in found]
    local = [answer.scores for answer in answers if answer.kind == "m_locality"]
    shares = [scores["mmedit/top10"] for scores in local]
    queries = [query for case in cases for kind, query in questions(case) if kind == "m_locality"]
    for share, query in zip(shares, queries, strict=True):
        positions = int(taught.encode([query]).inputs["attention_mask"].sum()) - 1  # the end is ours, not the toolkit's
        assert share is not None
        assert (share * positions * 10) == pytest.approx(round(share * positions * 10))
    assert len(set(shares)) > 1


# ---------------------------------------------------------------------- methods that rewrite questions


@pytest.mark.parametrize("stacked", [False, True])
def test_methods_that_rewrite_are_asked_what_is_not_proved(
    taught: Backbone, cases: list[EditCase], stacked: bool
) -> None:
    Prefixed.asked.clear()
    found = ask(taught, Prefix(), cases[:3], stacked=stacked)
    assert 0 < len(Prefixed.asked) <= sum(len(questions(case)) for case in cases[:3])
    assert found == ask(taught, Prefix(), cases[:3], stacked=stacked, engine="plain")
    for answers, case in zip(found, cases[:3], strict=True):
        facts = cases[:3] if stacked else [case]
        prefix = "".join(f"New fact: {c.edit.prompt} {c.edit.target}\n" for c in facts)
        for answer, (_, query) in zip(answers, questions(case), strict=True):
            assert answer.after == taught.ask(query.image, prefix + query.prompt, max_new_tokens=ROOM)
            assert (answer.scores.get("mmedit/top1"), answer.scores.get("mmedit/top10")) == (None, None)


def test_nothing_is_read_while_an_edit_is_attached(taught: Backbone, cases: list[EditCase]) -> None:
    who = examiner(taught, Scatter(), cases)
    edit = Scatter().edit(taught, cases[0].edit)
    with edit.attached(taught):
        with pytest.raises(UnikeError, match="an edit is attached"):
            who.read(cases[0])
        with pytest.raises(UnikeError, match="an edit is attached"):
            who.answers.ask([cases[0].edit])


@pytest.mark.parametrize("stacked", [False, True])
def test_what_is_handed_on_is_answered_as_before(
    taught: Backbone, cases: list[EditCase], stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked again, and the scores are those of really asking."""

    def about_pictures(cls: Any, edits: Any, backbone: Any, queries: Any) -> list[bool]:
        return [query.image is not None for query in queries]

    def rewritten(edits: Any, queries: Any) -> list[Query]:
        return [q if q.image is None else replace(q, prompt="New fact: " + q.prompt) for q in queries]

    monkeypatch.setattr(Prefixed, "in_scope", classmethod(about_pictures))
    monkeypatch.setattr(Prefixed, "rewritten", staticmethod(rewritten))
    Prefixed.asked.clear()
    found = ask(taught, Prefix(), cases[:3], stacked=stacked)
    assert Prefixed.asked and all(query.image is not None for query in Prefixed.asked)
    assert any(answer.image is None for answers in found for answer in answers)
    assert found == ask(taught, Prefix(), cases[:3], stacked=stacked, engine="plain")
