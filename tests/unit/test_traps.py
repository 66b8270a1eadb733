"""Mistakes that have spoiled published numbers of knowledge editing, each put back to show that it would be noticed.

Every test states what holds, and then that it does not hold once the mistake is made.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import greedy_without_cache
from miniature import Prefix, Prefixed, Scatter
from tinies import tiny_backbone
from torch import Tensor

from unike.backbones import answers
from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.functional import target_positions
from unike.backbones.forward.hooks import Args, Hooks, Kwargs
from unike.backbones.forward.split import IGNORE, Batch, SplitState
from unike.bench import replay
from unike.bench import runner as evaluation
from unike.bench.lines import questions, text_tokens
from unike.bench.outcome import Asked, CaseResult
from unike.bench.protocols.base import Response, all_protocols
from unike.bench.protocols.mmedit import MMEdit
from unike.bench.replay import Examiner
from unike.bench.runner import Bench, evaluate
from unike.bench.selection import Task, Unit
from unike.bench.spec import RunSpec
from unike.bench.summary import summarise
from unike.core.errors import UnikeError
from unike.data.queries import EditCase, Probe, Query, probe_kinds
from unike.editors.base import Editor
from unike.editors.ft import FT, FTEdit
from unike.edits import edited
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.group import Group
from unike.edits.stack import attached

NOTICED = (AssertionError, ValueError, RuntimeError)
"""How a mistake shows: a wrong number, or positions that do not line up and are refused."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))


@pytest.fixture
def mistake() -> Iterator[pytest.MonkeyPatch]:
    """Where the mistake is made."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def ask(
    backbone: Backbone, editor: Editor[Any], cases: Sequence[EditCase], *, engine: str = "plain", room: int = 8
) -> list[tuple[Asked, ...]]:
    """Independent edits, each asked its own questions."""
    known = Answers(backbone, room)
    known.ask([query for case in cases for _, query in questions(case)])
    who = Examiner(backbone, editor, known, protocols=tuple(all_protocols()), engine=engine)
    edits = editor.edit(backbone, [case.edit for case in cases])
    return who.examine([who.read(case) for case in cases], edits)


def said_by_itself(pictures: list[Path]) -> EditCase:
    """Questions whose gold answers, of different lengths, are what the taught model says."""
    fact = Query("What is 0?", pictures[0], "tin bat")
    probes = (
        Probe("t_generality", Query("0 + 1?", None, "six")),
        Probe("m_locality", Query("How big?", pictures[1], "tiny")),
    )
    return EditCase("case", fact, probes)


def check_own_answers_are_right(taught: Backbone, pictures: list[Path]) -> None:
    """What a model says greedily is right token by token, if positions, tokens and padding are."""
    (asked,) = ask(taught, Scatter(lr=1e-9), [said_by_itself(pictures)])
    for answer in asked:
        assert answer.before == answer.after == answer.target
        assert all(value == 1.0 for value in answer.scores.values()), answer


def test_labels_tokenised_apart_from_the_prompt(
    taught: Backbone, pictures: list[Path], mistake: pytest.MonkeyPatch
) -> None:
    def apart(query: Query, image_text: str) -> tuple[list[int], int]:
        ids, length = Backbone.tokenize(taught, query, image_text)
        if query.target is None:
            return ids, length
        target = taught.tokenizer(query.target, add_special_tokens=False)["input_ids"]  # no space in front
        return [*ids[:length], *target, taught.tokenizer.eos_token_id], length

    check_own_answers_are_right(taught, pictures)
    mistake.setattr(taught, "tokenize", apart)
    with pytest.raises(NOTICED):
        check_own_answers_are_right(taught, pictures)


@pytest.mark.parametrize("shift", [0, 2])
def test_off_by_one(taught: Backbone, pictures: list[Path], mistake: pytest.MonkeyPatch, shift: int) -> None:
    def shifted(labels: Tensor) -> Tensor:
        """The logits at the tokens themselves, or two before, instead of one before."""
        return target_positions(labels).roll(1 - shift, dims=1)

    check_own_answers_are_right(taught, pictures)
    for module in (edited, replay):
        mistake.setattr(module, "target_positions", shifted)
    with pytest.raises(NOTICED):
        check_own_answers_are_right(taught, pictures)


def test_pads_scored_as_answers(taught: Backbone, pictures: list[Path], mistake: pytest.MonkeyPatch) -> None:
    def padded(queries: Sequence[Query], **kwargs: Any) -> Batch:
        batch = Backbone.encode(taught, queries, **kwargs)
        pads = (batch.inputs["attention_mask"] == 0) & (batch.labels == IGNORE)
        return dataclasses.replace(batch, labels=batch.labels.masked_fill(pads, taught.tokenizer.pad_token_id))

    check_own_answers_are_right(taught, pictures)
    mistake.setattr(taught, "encode", padded)
    with pytest.raises(NOTICED):
        check_own_answers_are_right(taught, pictures)


def test_a_batch_scored_against_row_0(taught: Backbone, pictures: list[Path], mistake: pytest.MonkeyPatch) -> None:
    def row_0(labels: Tensor) -> list[list[int]]:
        return [text_tokens(labels)[0]] * len(labels)

    check_own_answers_are_right(taught, pictures)
    mistake.setattr(replay, "text_tokens", row_0)
    with pytest.raises(NOTICED):
        check_own_answers_are_right(taught, pictures)


def test_answers_before_computed_after_the_edit(
    taught: Backbone, cases: list[EditCase], mistake: pytest.MonkeyPatch
) -> None:
    """Locality would be perfect, whatever the edit destroys."""
    editor = Scatter(lr=1.0)
    edit = editor.edit(taught, cases[0].edit)

    def locality(attached_too_early: bool) -> float:
        known = Answers(taught, 7 + attached_too_early)  # two files
        who = Examiner(taught, editor, known, engine="plain")
        with attached(taught, [edit] if attached_too_early else []):
            known.ask([query for _, query in questions(cases[0])])
            read = who.read(cases[0])
        (asked,) = who.examine([read], [edit])
        scores = [
            answer.scores["strict/exact"] for answer in asked if probe_kinds()[answer.kind].expects == "unchanged"
        ]
        return sum(score or 0.0 for score in scores) / len(scores)

    assert locality(attached_too_early=False) < 1.0
    with pytest.raises(UnikeError, match="an edit is attached"):
        locality(attached_too_early=True)
    for module in (answers, replay):
        mistake.setattr(module, "check_unedited", lambda backbone: None)
    with pytest.raises(NOTICED):
        assert locality(attached_too_early=True) < 1.0


def test_weights_not_restored_between_cases(
    taught: Backbone, cases: list[EditCase], tmp_path: Path, mistake: pytest.MonkeyPatch
) -> None:
    """One-step editing would quietly become sequential."""

    class Writing(Scatter):
        def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
            deltas = super().make(backbone, facts)
            for name, linear in backbone.ffn(-1).matrices.items():
                linear.weight.data += deltas[name][0]  # and forgets to take it off
            return deltas

    def is_noticed(folder: str) -> bool:
        saved = {key: value.clone() for key, value in taught.model.state_dict().items()}
        try:
            evaluate(taught, Writing(lr=0.1), Task("x", "eval", cases), tmp_path / folder, RunSpec(batch=1))
        except UnikeError as error:
            return "changed the model's weights" in str(error)
        finally:
            taught.model.load_state_dict(saved)
        return False

    assert is_noticed("right")
    mistake.setattr(evaluation, "checksum", lambda backbone: torch.zeros(1))
    with pytest.raises(NOTICED):
        assert is_noticed("wrong")


def test_sequences_scored_only_right_after_their_own_edit(
    taught: Backbone, cases: list[EditCase], mistake: pytest.MonkeyPatch
) -> None:
    editor = Scatter(lr=0.3)
    known = Answers(taught, 8)
    known.ask([query for case in cases for _, query in questions(case)])
    plan = RunSpec(setting="sequential", k=3)
    edits = [editor.edit(taught, case.edit) for case in cases[:3]]

    def check(results: list[CaseResult]) -> None:
        at_end = [result for result in results if result.when == "end"]
        assert [result.case_id for result in at_end] == [case.case_id for case in cases[:3]]
        for result in at_end:
            with attached(taught, edits):
                assert [taught.ask(*place(asked, cases), max_new_tokens=8) for asked in result.asked] == [
                    asked.after for asked in result.asked
                ]

    bench = Bench(taught, editor, Examiner(taught, editor, known), plan)
    results = bench.sequence(Unit(tuple(cases[:3]), 0))
    check(results)
    with pytest.raises(NOTICED):
        check([dataclasses.replace(result, when="end") for result in results if result.when == "own"])


def place(asked: Asked, cases: Sequence[EditCase]) -> tuple[Path | None, str]:
    return (None if asked.image is None else Path(asked.image)), asked.prompt


def test_the_answer_given_to_a_retriever(taught: Backbone, cases: list[EditCase], mistake: pytest.MonkeyPatch) -> None:
    """What chooses an edit by the question must not see the gold answer."""

    def check() -> None:
        Prefixed.asked.clear()
        ask(taught, Prefix(), cases[:1])
        assert Prefixed.asked and all(query.target is None for query in Prefixed.asked)

    check()
    mistake.setattr(Query, "question", property(lambda query: query))
    with pytest.raises(NOTICED):
        check()


def test_prefixes_shift_positions(taught: Backbone, pictures: list[Path], mistake: pytest.MonkeyPatch) -> None:
    """Answers are compared at the answer's tokens, wherever a rewritten prompt puts them."""
    case = said_by_itself(pictures)

    def check() -> None:
        (asked,) = ask(taught, Prefix(), [case])
        for answer, (_, query) in zip(asked, questions(case), strict=True):
            long = Prefixed.rewritten([Prefix().edit(taught, case.edit)], [query])[0]
            batch = taught.encode([long])
            guesses = taught.forward(batch).argmax(dim=-1)[target_positions(batch.labels)][:-1]
            alone = taught.encode([query])
            gold = alone.labels[alone.labels != IGNORE][:-1]
            if probe_kinds()[answer.kind].expects == "unchanged":
                gold = taught.forward(alone).argmax(dim=-1)[target_positions(alone.labels)][:-1]
            share = (guesses == gold).float().mean().item()
            scorer = "gold_token" if probe_kinds()[answer.kind].expects == "unchanged" else "token"
            assert answer.scores[f"teacher_forced/{scorer}"] == pytest.approx(share)

    def unshifted(
        cls: type[Prefixed],
        edits: Sequence[Edit],
        model: EditedModel,
        queries: Sequence[Query],
        state: SplitState | None = None,
    ) -> Tensor:
        """The long prompts' logits at the short prompts' positions."""
        backbone = model.backbone
        logits = backbone.forward(backbone.encode(cls.rewritten(edits, queries)))
        short = target_positions(backbone.encode(queries).labels)
        return logits[:, : short.shape[1]][short]

    check()
    mistake.setattr(Prefixed, "target_logits", classmethod(unshifted))
    with pytest.raises(NOTICED):
        check()


def test_a_metric_that_is_dropped(
    taught: Backbone, cases: list[EditCase], tmp_path: Path, mistake: pytest.MonkeyPatch
) -> None:
    """Every kind that is asked is in the summary, also with a score that a method does not have."""

    def check(folder: str) -> None:
        source = Task("x", "eval", cases)
        run = evaluate(taught, Prefix(), source, tmp_path / folder, RunSpec(protocols=tuple(all_protocols()), limit=1))
        found = {(row["protocol"], row["metric"]) for row in summarise(run) if row["metric"] in probe_kinds()}
        assert found == {(protocol, metric) for protocol in all_protocols() for metric in probe_kinds()}

    original = MMEdit.score

    def silent(self: MMEdit, response: Response) -> dict[str, Any]:
        return {key: value for key, value in original(self, response).items() if value is not None}

    check("right")
    mistake.setattr(MMEdit, "score", silent)
    with pytest.raises(NOTICED):
        check("wrong")


class Absolute(FTEdit):
    """Acts on the first position it is given; with a cache, that is every new token."""

    @classmethod
    def install_group(cls, group: Group, hooks: Hooks, prefill: Prefill) -> None:
        def add(module: torch.nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
            changed = output.clone()
            changed.reshape(-1, output.shape[-1])[0, 0] += 30.0
            return changed

        hooks.add(group.backbone.ffn(-1).outputs, add)


@pytest.mark.parametrize("name", ["blip2-opt", "blip2-llama"])
def test_blip2_generates_with_a_cache_whatever_it_is_told(name: str, cases: list[EditCase]) -> None:
    """So an edit must act on a token alone as it does within the whole text; the answer says whether it does."""
    backbone = tiny_backbone(name)

    def check(kind: type[FTEdit]) -> None:
        editor = FT(lr=1e-2, steps=5)
        editor.edit_class = kind
        edit = editor.edit(backbone, cases[0].edit)
        known = Answers(backbone, 5)
        known.ask([query for _, query in questions(cases[0])])
        who = Examiner(backbone, editor, known, engine="plain")
        (asked,) = who.examine([who.read(cases[0])], edit)
        with edit.attached(backbone):
            for answer in asked[:2]:
                assert answer.after == greedy_without_cache(backbone, Query(answer.prompt, Path(answer.image or "")), 5)

    check(FTEdit)
    with pytest.raises(NOTICED):
        check(Absolute)
