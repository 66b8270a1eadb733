"""Asking the questions that test an edit, before and under it, with as little computing as possible.

A greedy answer equals a given text exactly if, reading that text, the model would predict each of its tokens and then
stop. So an answer under an edit is first looked for by *replay*: the texts it may turn out to be (the gold answer, the
answer before the edit) were read up to the lowest edited layer once, and only the rest of the model runs again. Where
the replay proves the answer it is known, and the teacher-forced scores come with it; where it does not, the question is
really asked (`unike.bench.proof`). What is predicted as before all along the answer before, in a batch of the same
shape, is answered as before.

Methods that rewrite or route questions (`Editor.lowest_layer` is None) are asked through the same code; what they hand
on to the model as it is, is answered as before the edit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers, check_unedited
from unike.backbones.forward.functional import target_positions
from unike.bench.lines import (
    TEXTS,
    Guesses,
    Line,
    Lines,
    Question,
    ReadCase,
    guesses,
    image_name,
    questions,
    text_tokens,
    told,
)
from unike.bench.outcome import Asked
from unike.bench.proof import Proof, begins_as_asked
from unike.bench.protocols.base import Prediction, Response, Scores, all_protocols
from unike.bench.protocols.mmedit import TOP_IMAGE, TOP_TEXT
from unike.data.queries import EditCase, Query, probe_kinds
from unike.editors.base import Editor
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.routing import RoutingEdit

TOGETHER = 16
"""Questions that are generated in one pass."""


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
        lowest = editor.lowest_layer(backbone)
        self.hooked = lowest is not None
        self.fast = engine == "fast"
        self.split_at = lowest if self.fast else None
        self.ranked = self.hooked and any(protocol.reads_ranks for protocol in self.protocols)
        self.short = editor.keeps_prefix and not self.ranked
        self.ends = backbone.append_eos and backbone.tokenizer.eos_token_id is not None
        self.proof = Proof(backbone, answers.max_new_tokens, hooked=self.hooked)

    # ------------------------------------------------------------------ before the edit

    def read(self, case: EditCase) -> ReadCase:
        """Read a case with the unedited model: its lines up to the split, and what is predicted along them.

        Raises:
            UnikeError: An edit is attached.
        """
        check_unedited(self.backbone)
        known = {query: each.accepts(self.answers[each]) for query, each in told(case).items() if each in self.answers}
        asked = [
            Question(kind, query, self.answers[query], known=None if probe_kinds()[kind].in_scope else known.get(query))
            for kind, query in questions(case)
        ]
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
        return ReadCase(case, asked, batches)

    def _read_lines(self, queries: list[Query]) -> Lines:
        batch = self.backbone.encode(queries)
        lines = [
            Line(query, tokens[:-1] if self.ends else tokens, self.fast and begins_as_asked(self.backbone, query))
            for query, tokens in zip(queries, text_tokens(batch.labels), strict=True)
        ]
        labels, real = batch.labels, batch.inputs["attention_mask"].bool()
        state = None if self.split_at is None else self.backbone.run_to_split(batch, self.split_at)
        if state is not None and self.short:
            state = self.backbone.shorten(state)
            labels, real = state.labels, real[:, state.start :]
        read = Lines(lines, labels, real, state, [])
        return replace(read, before=self._guess(read, EditedModel(self.backbone)))

    # ------------------------------------------------------------------ under edits

    def examine(self, cases: Sequence[ReadCase], edits: Edit | Sequence[Edit]) -> list[tuple[Asked, ...]]:
        """Ask cases under edits.

        Args:
            cases: From `read`.
            edits: As many independent edits as there are cases, each for its own; or one stack for all of them.

        Returns:
            The questions of each case, in its order.
        """
        under = []
        shared = None if isinstance(edits, Edit) else EditedModel(self.backbone, edits)
        for row, read in enumerate(cases):
            model = EditedModel(self.backbone, [edits[row]]) if shared is None else shared
            under.append([self._read_under(model, batch) for batch in read.batches])
        after = self._settled(cases, under, edits)
        for stack, places in self._jobs(cases, after, edits):
            asked = [cases[row].questions[number].query.question for row, number in places]
            said = EditedModel(self.backbone, stack).generate(asked, max_new_tokens=self.answers.max_new_tokens)
            for (row, number), answer in zip(places, said, strict=True):
                after[row][number] = answer
        return [
            tuple(self._score(read, along, number, answers[number]) for number in range(len(read.questions)))
            for read, along, answers in zip(cases, under, after, strict=True)
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
        wanted = self._compared(batch) if self.ranked else at_text
        output = model.replay(state, wanted)
        ranks: list[list[list[int]]] | list[None] = [None] * len(queries)
        logits = output.logits
        if self.ranked:
            tops = logits.topk(TOP_IMAGE).indices.split(wanted.sum(dim=1).tolist())
            ranks = [
                top[:, : TOP_TEXT if query.image is None else TOP_IMAGE].tolist()
                for query, top in zip(queries, tops, strict=True)
            ]
            logits = logits[at_text[wanted]]
        notes = [
            {name: round(values[row].item(), 4) for name, values in output.notes.items()} for row in range(len(queries))
        ]
        return guesses(logits, at_text.sum(dim=1).tolist(), ranks, notes)

    def _compared(self, batch: Lines) -> Tensor:
        """Every position of prompt and answer ``[R, S]``; published toolkits put no end behind an answer."""
        if not self.ends:
            return batch.real
        ends = batch.real.long().cumsum(dim=1).argmax(dim=1, keepdim=True)
        return batch.real.scatter(1, ends, False)

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

    def _settled(
        self, cases: Sequence[ReadCase], under: Sequence[list[list[Guesses]]], edits: Edit | Sequence[Edit]
    ) -> list[list[str | None]]:
        """The answers that need not be asked for, None for the others."""
        made = [edits] if isinstance(edits, Edit) else edits
        if not self.hooked and cast(type[RoutingEdit], self.kind).reads_targets(made):
            after: list[list[str | None]] = [[None] * len(read.questions) for read in cases]
        else:
            after = [self.proof.answers(read, along) for read, along in zip(cases, under, strict=True)]
        if self.hooked:
            self._leave_open(cases, after, edits)
        else:
            self._hand_on(cases, after, edits)
        return after

    def _leave_open(
        self, cases: Sequence[ReadCase], after: list[list[str | None]], edits: Edit | Sequence[Edit]
    ) -> None:
        """Ask what is put to the model in other words than were read: of that, a replay proves nothing."""
        for row, (read, answers) in enumerate(zip(cases, after, strict=True)):
            model = EditedModel(self.backbone, [edits[row]] if isinstance(edits, Edit) else edits)
            for number, instead in enumerate(
                model.stack.told([question.query.question for question in read.questions])
            ):
                if instead is not None:
                    answers[number] = None

    def _hand_on(self, cases: Sequence[ReadCase], after: list[list[str | None]], edits: Edit | Sequence[Edit]) -> None:
        """Answer the open questions that the edits hand on to the model as it answered them before."""
        for row, (read, answers) in enumerate(zip(cases, after, strict=True)):
            stack = [edits[row]] if isinstance(edits, Edit) else edits
            asked = [question.query.question for question in read.questions]
            for number, own in enumerate(self._in_scope(stack, asked)):
                if not own:
                    answers[number] = read.questions[number].before

    def _in_scope(self, stack: Sequence[Edit], queries: Sequence[Query]) -> list[bool]:
        """What edits that cannot be attached do not hand on; everything is asked by the engine that compares."""
        if not self.fast:
            return [True] * len(queries)
        return cast(type[RoutingEdit], self.kind).in_scope(stack, self.backbone, queries)

    def _jobs(
        self, cases: Sequence[ReadCase], after: list[list[str | None]], edits: Edit | Sequence[Edit]
    ) -> Iterator[tuple[Sequence[Edit], list[tuple[int, int]]]]:
        """The questions that are still open, ``(case, question)``, by the stack they are asked under."""
        left = [(row, n) for row, answers in enumerate(after) for n, answer in enumerate(answers) if answer is None]
        if isinstance(edits, Edit) and not self.hooked:
            for row in sorted({row for row, _ in left}):
                yield [edits[row]], [place for place in left if place[0] == row]
            return
        # Rows of several edits in one pass cannot be put in another order, as `generate` would where it cannot mix.
        queries = [cases[row].questions[number].query for row, number in left]
        for group in self.backbone.groups(queries) if left else []:
            for start in range(0, len(group), TOGETHER):
                places = [left[index] for index in group[start : start + TOGETHER]]
                yield [edits.rows([row for row, _ in places])] if isinstance(edits, Edit) else edits, places

    # ------------------------------------------------------------------ scores

    def _score(self, read: ReadCase, under: list[list[Guesses]], number: int, after: str | None) -> Asked:
        question = read.questions[number]
        assert after is not None
        query = question.query
        response = Response(
            probe_kinds()[question.kind],
            query.target,
            query.image is not None,
            question.before,
            after,
            at_gold=self._predicted(read, under, question.gold),
            at_own=self._predicted(read, under, question.own),
            also=query.also,
        )
        scores: Scores = {}
        for protocol in self.protocols:
            scores |= protocol.score(response)
        image = image_name(query.image, self.image_root)
        place = question.gold or question.own
        notes = {} if place is None else under[place[0]][place[1]].notes
        said = (question.kind, query.prompt, image, query.target, question.before, after, scores, notes, query.also)
        hop = read.case.probes[number - 1].hop if number else None
        return Asked(*said, hop=hop, known=question.known)

    def _predicted(
        self, read: ReadCase, under: list[list[Guesses]], place: tuple[int, int] | None
    ) -> Prediction | None:
        """What is predicted along a line before and under the edits, without the end of the answer."""
        if place is None:
            return None
        batch, row = place
        tokens, before, after = (
            read.batches[batch].lines[row].tokens,
            read.batches[batch].before[row],
            under[batch][row],
        )
        length = len(tokens)
        return Prediction(tokens, before.ids[:length], after.ids[:length], before.ranks, after.ranks)
