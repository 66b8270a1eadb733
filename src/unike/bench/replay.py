"""Asking the questions that test an edit, before and under it, with as little computing as possible.

A greedy answer equals a given text exactly if, reading that text, the model would predict each of its tokens and then
stop. So an answer under an edit is first looked for by *replay*: the texts it may turn out to be (the gold answer, the
answer before the edit) were read up to the lowest edited layer once, and only the rest of the model runs again. Where
the replay proves the answer it is known, and the teacher-forced scores come with it; where it does not, the question is
really asked. A near-tie between two tokens proves nothing, because rounding may fall the other way in generation;
but what is predicted as before all along the answer before, in a batch of the same shape, is answered as before.

Methods that rewrite or route questions (`Editor.split` is None) are asked through the same code; what they hand on to
the model as it is, is answered as before the edit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers, check_unedited
from unike.backbones.forward.functional import target_positions
from unike.backbones.forward.split import IGNORE, SplitState
from unike.bench.outcome import Asked
from unike.bench.protocols.base import Prediction, Response, Scores, all_protocols
from unike.bench.protocols.mmedit import TOP_IMAGE, TOP_TEXT
from unike.data.queries import RELIABILITY, EditCase, Query, probe_kinds
from unike.editors.base import Editor
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.routing import RoutingEdit

SURE = {torch.float32: 1e-3}
"""By how much the best logit must lead, by dtype: more than rounding moves it between two ways to compute it."""

SURE_OTHERWISE = 0.5

TOGETHER = 16
"""Questions that are generated in one pass."""


@dataclass(frozen=True)
class Line:
    """A question with a text that may be its answer, to be read teacher-forced.

    Args:
        query: The question, with the text as its target.
        tokens: The text's tokens, without the end.
        provable: Whether generating would begin at the same tokens: with some tokenizers the end of a prompt looks
            different when a text follows.
    """

    query: Query
    tokens: list[int]
    provable: bool


@dataclass(frozen=True)
class Guesses:
    """What a model predicts along a line.

    Args:
        ids: The most likely token for each token of the text and, where texts end with one, for the end.
        leads: By how much its logit leads the second best.
        ranks: The most likely ids at every position of the line, best first, if asked for.
        notes: What the method says about the line.
    """

    ids: list[int]
    leads: list[float]
    ranks: list[list[int]] | None
    notes: dict[str, float]


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines that share a batch.

    Args:
        lines: R of them.
        labels: ``[R, S]``, as in `unike.backbones.forward.split.Batch`, or from where the state begins.
        real: ``[R, S]`` bool, false at padding.
        state: Run to the lowest edited layer, or None where every reading starts from the beginning. Shortened where
            edits leave what comes before as it is.
        before: What the unedited model predicts along each line.
    """

    lines: list[Line]
    labels: Tensor
    real: Tensor
    state: SplitState | None
    before: list[Guesses]


@dataclass(frozen=True)
class Question:
    """One question of a case.

    Args:
        kind: Name of one of `probe_kinds`.
        query: With its gold answer, if there is one.
        before: The unedited model's greedy answer.
        gold: Where the line with the gold answer is, ``(batch, row)``, or None.
        own: Where the line with the answer before the edit is; None where it does not matter or is empty.
        edited: Where the line with the edit's own answer is; None where it is as quick to ask.
    """

    kind: str
    query: Query
    before: str
    gold: tuple[int, int] | None = None
    own: tuple[int, int] | None = None
    edited: tuple[int, int] | None = None


TEXTS = ("own", "gold", "edited")
"""The texts that an answer may turn out to be, by their attributes of a `Question`."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A case as the unedited model reads it.

    Args:
        case: The case.
        questions: The edited fact first.
        batches: The lines to replay.
    """

    case: EditCase
    questions: list[Question]
    batches: list[Lines]

    @property
    def nbytes(self) -> int:
        """Memory of the split states, in bytes."""
        return sum(batch.state.nbytes for batch in self.batches if batch.state is not None)


def questions(case: EditCase) -> list[tuple[str, Query]]:
    """Everything that is asked about a case: ``(kind, query)``, the edited fact first."""
    return [(RELIABILITY.name, case.edit), *((probe.kind, probe.query) for probe in case.probes)]


def image_name(image: Path | None, root: Path | None) -> str | None:
    """What a picture is called on every machine: its path below its data set's folder."""
    if image is not None and root is not None and image.is_relative_to(root):
        image = image.relative_to(root)
    return None if image is None else image.as_posix()


def guesses(
    logits: Tensor, lengths: list[int], ranks: Sequence[list[list[int]] | None], notes: Sequence[dict[str, float]]
) -> list[Guesses]:
    """What logits ``[n, V]`` predict, line by line.

    Args:
        logits: At the positions of the lines' texts, line after line.
        lengths: Tokens of each line's text.
        ranks: As in `Guesses`, of each line.
        notes: The same.
    """
    best = logits.float().topk(2)
    leads = best.values[:, 0] - best.values[:, 1]
    return [
        Guesses(ids.tolist(), lead.tolist(), rank, note)
        for ids, lead, rank, note in zip(
            best.indices[:, 0].split(lengths), leads.split(lengths), ranks, notes, strict=True
        )
    ]


class Examiner:
    """Reads cases before they are edited, and asks them under edits.

    Args:
        backbone: The model.
        editor: The method; edits come from it.
        answers: The model's own answers to every question of every case.
        protocols: Names of protocols, see `unike.bench.protocols`.
        engine: ``"fast"`` replays and proves, ``"plain"`` runs the whole model and generates every answer. Both give
            the same results.
        image_root: Pictures are named by their path below it.
    """

    def __init__(
        self,
        backbone: Backbone,
        editor: Editor[Any],
        answers: Answers,
        *,
        protocols: Sequence[str] = ("strict", "teacher_forced"),
        engine: str = "fast",
        image_root: Path | None = None,
    ) -> None:
        self.backbone = backbone
        self.kind: type[Edit] = editor.edit_class
        self.answers = answers
        self.protocols = [each for name, each in all_protocols().items() if name in protocols]
        self.image_root = image_root
        split = editor.split(backbone)
        self.hooked = split is not None
        self.fast = engine == "fast"
        self.split = split if self.fast else None
        self.ranked = self.hooked and any(protocol.reads_ranks for protocol in self.protocols)
        self.short = editor.keeps_prefix and not self.ranked
        self.lead = SURE.get(backbone.dtype, SURE_OTHERWISE)
        self.stops = frozenset(backbone.stop_ids)
        self.ends = backbone.append_eos and backbone.tokenizer.eos_token_id is not None

    # ------------------------------------------------------------------ before the edit

    def read(self, case: EditCase) -> Reading:
        """Read a case with the unedited model: its lines up to the split, and what is predicted along them.

        Raises:
            UnikeError: An edit is attached.
        """
        check_unedited(self.backbone)
        asked = [Question(kind, query, self.answers[query]) for kind, query in questions(case)]
        texts = {}  # (question, which text) to the line that is read
        edited = (case.edit.target or "").strip()
        for number, question in enumerate(asked):
            if gold := (question.query.target or "").strip():
                texts[number, "gold"] = replace(question.query.question, target=gold)
            if probe_kinds()[question.kind].expects == "unchanged" and question.before:
                texts[number, "own"] = replace(question.query.question, target=question.before)
            if not self.hooked and edited:  # what a fact in the prompt is often copied to
                texts[number, "edited"] = replace(question.query.question, target=edited)
        lines = list(dict.fromkeys(texts.values()))  # an answer that was right before is read once
        batches, places = [], {}
        for number, rows in enumerate(self.backbone.groups(lines) if lines else []):
            batches.append(self._read_lines([lines[row] for row in rows]))
            places.update({lines[row]: (number, place) for place, row in enumerate(rows)})
        found = {key: places[line] for key, line in texts.items()}
        for number, question in enumerate(asked):
            at = [found.get((number, text)) for text in TEXTS]
            asked[number] = replace(question, own=at[0], gold=at[1], edited=at[2])
        return Reading(case, asked, batches)

    def _read_lines(self, queries: list[Query]) -> Lines:
        batch = self.backbone.encode(queries)
        lines = []
        for query, labels in zip(queries, batch.labels, strict=True):
            tokens = labels[labels != IGNORE].tolist()
            lines.append(Line(query, tokens[:-1] if self.ends else tokens, self._provable(query)))
        labels, real = batch.labels, batch.inputs["attention_mask"].bool()
        state = None if self.split is None else self.backbone.run_to_split(batch, self.split)
        if state is not None and self.short:
            state = self.backbone.shorten(state)
            labels, real = state.labels, real[:, state.start :]
        read = Lines(lines, labels, real, state, [])
        return replace(read, before=self._guess(read, EditedModel(self.backbone)))

    def _provable(self, query: Query) -> bool:
        if not self.fast:
            return False
        bare = replace(query, image=None)
        read, asked = self.backbone.encode([bare]), self.backbone.encode([bare.question])
        length = asked.labels.shape[1]
        ids = read.inputs["input_ids"][:, :length]
        return int(read.prompt_last) == length - 1 and torch.equal(ids, asked.inputs["input_ids"])

    # ------------------------------------------------------------------ under edits

    def examine(self, readings: Sequence[Reading], edits: Edit | Sequence[Edit]) -> list[tuple[Asked, ...]]:
        """Ask cases under edits.

        Args:
            readings: From `read`.
            edits: As many independent edits as there are readings, each for its own; or one stack for all of them.

        Returns:
            The questions of each reading, in its order.
        """
        found = []
        shared = None if isinstance(edits, Edit) else EditedModel(self.backbone, edits)
        for row, reading in enumerate(readings):
            model = EditedModel(self.backbone, [edits[row]]) if shared is None else shared
            found.append([self._read_under(model, batch) for batch in reading.batches])
        after: list[list[str | None]]
        made = [edits] if isinstance(edits, Edit) else edits
        if not self.hooked and cast(type[RoutingEdit], self.kind).reads_targets(made):
            after = [[None] * len(reading.questions) for reading in readings]
        else:
            after = [self._prove(reading, guesses) for reading, guesses in zip(readings, found, strict=True)]
        if not self.hooked:
            self._hand_on(readings, after, edits)
        for stack, places in self._jobs(readings, after, edits):
            asked = [readings[row].questions[number].query.question for row, number in places]
            said = EditedModel(self.backbone, stack).generate(asked, max_new_tokens=self.answers.max_new_tokens)
            for (row, number), answer in zip(places, said, strict=True):
                after[row][number] = answer
        return [
            tuple(self._score(reading, guesses, number, answers[number]) for number in range(len(reading.questions)))
            for reading, guesses, answers in zip(readings, found, after, strict=True)
        ]

    def _read_under(self, model: EditedModel, batch: Lines) -> list[Guesses]:
        """Read a batch of lines under edits."""
        return self._guess(batch, model) if self.hooked else self._guess_routed(batch, model)

    @torch.no_grad()
    def _guess(self, batch: Lines, model: EditedModel) -> list[Guesses]:
        """Read a batch of lines, all of which edits within the model may change."""
        at_text = target_positions(batch.labels)
        queries = [line.query for line in batch.lines]
        state = batch.state
        if state is None:
            state = self.backbone.run_to_split(self.backbone.encode(queries), 0, model.stack)
        wanted = batch.real if self.ranked else at_text
        output = model.replay(state, wanted)
        ranks: list[list[list[int]]] | list[None] = [None] * len(queries)
        logits = output.logits
        if self.ranked:
            tops = logits.topk(TOP_IMAGE).indices.split(batch.real.sum(dim=1).tolist())
            ranks = [
                top[:, : TOP_TEXT if query.image is None else TOP_IMAGE].tolist()
                for query, top in zip(queries, tops, strict=True)
            ]
            logits = logits[at_text[batch.real]]
        notes = [
            {name: round(values[row].item(), 4) for name, values in output.notes.items()} for row in range(len(queries))
        ]
        return guesses(logits, at_text.sum(dim=1).tolist(), ranks, notes)

    def _guess_routed(self, batch: Lines, model: EditedModel) -> list[Guesses]:
        """Read those lines of a batch that edits outside the model do not hand on to it."""
        found, queries = list(batch.before), [line.query for line in batch.lines]
        rows = [row for row, own in enumerate(self._in_scope(model.edits, queries)) if own]
        if rows:
            logits = model.target_logits([queries[row] for row in rows])
            lengths = target_positions(batch.labels).sum(dim=1)[rows].tolist()
            nothing: list[None] = [None] * len(rows)
            for row, guessed in zip(rows, guesses(logits, lengths, nothing, [{} for _ in rows]), strict=True):
                found[row] = guessed
        return found

    def _hand_on(
        self, readings: Sequence[Reading], after: list[list[str | None]], edits: Edit | Sequence[Edit]
    ) -> None:
        """Answer the open questions that the edits hand on to the model as it answered them before."""
        for row, (reading, answers) in enumerate(zip(readings, after, strict=True)):
            stack = [edits[row]] if isinstance(edits, Edit) else edits
            asked = [question.query.question for question in reading.questions]
            for number, own in enumerate(self._in_scope(stack, asked)):
                if not own:
                    answers[number] = reading.questions[number].before

    def _in_scope(self, stack: Sequence[Edit], queries: Sequence[Query]) -> list[bool]:
        """What edits that cannot be attached do not hand on; everything is asked by the engine that compares."""
        if not self.fast:
            return [True] * len(queries)
        return cast(type[RoutingEdit], self.kind).in_scope(stack, self.backbone, queries)

    def _prove(self, reading: Reading, found: list[list[Guesses]]) -> list[str | None]:
        """The answers that the replay shows, None for the others."""
        proved: list[str | None] = []
        for question in reading.questions:
            if question.own is not None and self._is_as_before(reading, found, question.own):
                proved.append(question.before)
                continue
            places = [place for place in (getattr(question, text) for text in TEXTS) if place is not None]
            said = (self._said(reading.batches[b].lines[row], found[b][row]) for b, row in places)
            proved.append(next((answer for answer in said if answer is not None), None))
        return proved

    def _is_as_before(self, reading: Reading, found: list[list[Guesses]], place: tuple[int, int]) -> bool:
        """Whether the same is predicted all along a line, computed in the same way: then the answer is the same, too.

        Unlike generation, which may stand in a batch of another shape, it leaves rounding nothing to decide.
        """
        batch, row = place
        line, before, after = reading.batches[batch].lines[row], reading.batches[batch].before[row], found[batch][row]
        needed = self._needed(line)
        if not self.hooked or not line.provable or needed > len(after.ids):
            return False
        # Of a text that is no answer, for its tokens are others when it is read than when it was said, nothing follows.
        along = zip(line.tokens[:needed], before.ids, before.leads, strict=False)
        was_said = all(token == guess or lead < self.lead for token, guess, lead in along)
        return was_said and after.ids[:needed] == before.ids[:needed]

    def _said(self, line: Line, guesses: Guesses) -> str | None:
        """The greedy answer, if it is the line's text: its tokens are predicted, surely, and then the answer ends."""
        length, needed = min(len(line.tokens), self.answers.max_new_tokens), self._needed(line)
        if not line.provable or needed > len(guesses.ids) or min(guesses.leads[:needed]) < self.lead:
            return None
        if guesses.ids[:length] != line.tokens[:length]:
            return None
        if needed > length and not self._is_end(guesses.ids[length]):
            return None
        return self.backbone.answer_text(line.tokens[:length])

    def _needed(self, line: Line) -> int:
        """How many predictions settle an answer: one for each token, and one for the end unless it is cut off."""
        length, limit = len(line.tokens), self.answers.max_new_tokens
        return limit if length >= limit else length + 1

    def _is_end(self, token: int) -> bool:
        """A stop, or a new line: of an answer only the first one counts."""
        return token in self.stops or self.backbone.tokenizer.decode([token]).lstrip(" ").startswith("\n")

    def _jobs(
        self, readings: Sequence[Reading], after: list[list[str | None]], edits: Edit | Sequence[Edit]
    ) -> Iterator[tuple[Sequence[Edit], list[tuple[int, int]]]]:
        """The questions that are still open, ``(reading, question)``, by the stack they are asked under."""
        left = [(row, n) for row, answers in enumerate(after) for n, answer in enumerate(answers) if answer is None]
        if isinstance(edits, Edit) and not self.hooked:
            for row in sorted({row for row, _ in left}):
                yield [edits[row]], [place for place in left if place[0] == row]
            return
        # Rows of several edits in one pass cannot be put in another order, as `generate` would where it cannot mix.
        queries = [readings[row].questions[number].query for row, number in left]
        for group in self.backbone.groups(queries) if left else []:
            for start in range(0, len(group), TOGETHER):
                places = [left[index] for index in group[start : start + TOGETHER]]
                yield [edits.rows([row for row, _ in places])] if isinstance(edits, Edit) else edits, places

    # ------------------------------------------------------------------ scores

    def _score(self, reading: Reading, found: list[list[Guesses]], number: int, after: str | None) -> Asked:
        question = reading.questions[number]
        assert after is not None
        query = question.query
        response = Response(
            probe_kinds()[question.kind],
            query.target,
            query.image is not None,
            question.before,
            after,
            at_gold=self._predicted(reading, found, question.gold),
            at_own=self._predicted(reading, found, question.own),
            also=query.also,
        )
        scores: Scores = {}
        for protocol in self.protocols:
            scores |= protocol.score(response)
        image = image_name(query.image, self.image_root)
        place = question.gold or question.own
        notes = {} if place is None else found[place[0]][place[1]].notes
        told = (question.kind, query.prompt, image, query.target, question.before, after, scores, notes, query.also)
        return Asked(*told, hop=reading.case.probes[number - 1].hop if number else None)

    def _predicted(
        self, reading: Reading, found: list[list[Guesses]], place: tuple[int, int] | None
    ) -> Prediction | None:
        """What is predicted along a line before and under the edits, without the end of the answer."""
        if place is None:
            return None
        batch, row = place
        tokens, before, after = (
            reading.batches[batch].lines[row].tokens,
            reading.batches[batch].before[row],
            found[batch][row],
        )
        length = len(tokens)
        return Prediction(tokens, before.ids[:length], after.ids[:length], before.ranks, after.ranks)
