"""A model under edits: the one way to ask, whatever the methods do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.decoding import Decoding
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.functional import target_positions, target_tokens
from unike.backbones.forward.hooks import Hooks
from unike.backbones.forward.split import SplitState
from unike.backbones.given import given_queries
from unike.core.errors import UnikeError
from unike.core.images import picture
from unike.data.queries import Query
from unike.edits.card import Check
from unike.edits.conflicts import in_force, question_of
from unike.edits.edit import Edit
from unike.edits.given import given_edits, given_model
from unike.edits.group import Group
from unike.edits.routing import RoutingEdit
from unike.edits.stack import Stack, attached, edits_on

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Output:
    """What a pass gives.

    Args:
        logits: ``[n, V]``.
        notes: What methods say about each row, ``[B]`` by name, see `Prefill.note`.
    """

    logits: Tensor
    notes: dict[str, Tensor]


class EditedModel:
    """A backbone with edits in force; the backbone itself is never changed, and may serve other edits meanwhile.

    Methods that act within the model and methods that rewrite or route questions are asked in the same way.

    Args:
        backbone: The model.
        edits: The stack, oldest first; of several about the very same question the newest is in force.

    Raises:
        UnikeError: An edit was made for another backbone, two methods would rewrite the questions, or edits of one
            method do not fit each other.

    Example:
        >>> EditedModel(backbone, [edit]).ask("flag.png", "Whose flag is this?")
    """

    def __init__(self, backbone: Backbone, edits: Sequence[Edit] = ()) -> None:
        self.backbone = given_model(backbone)
        self.edits = tuple(in_force(given_edits(edits)))
        kinds = {kind for kind in set(map(type, self.edits)) if issubclass(kind, RoutingEdit)}
        self.routing = [edit for edit in self.edits if type(edit) in kinds]
        self.stack = Stack(backbone, [edit for edit in self.edits if type(edit) not in kinds])
        if len(kinds) > 1:
            names = " and ".join(sorted(repr(kind.editor) for kind in kinds))
            raise UnikeError(f"{names} both rewrite or route questions; use edits of one of them at a time")
        self.router = kinds.pop() if kinds else None
        if self.router is not None:
            self.router.check_stack(self.routing, backbone)  # also reads what the method needs of the unedited model

    @classmethod
    def around(cls, backbone: Backbone) -> "EditedModel":
        """The backbone under what is attached to it in this context."""
        return cls(backbone, edits_on(backbone))

    def ask(self, image: Any, prompt: str, **kwargs: Any) -> str:
        """Answer one question; arguments as in `Backbone.ask`."""
        return self.generate([Query(prompt, picture(image))], **kwargs)[0]

    def generate(self, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        """Answer queries; arguments as in `Backbone.generate`, and targets are not looked at.

        Raises:
            UnikeError: As `Backbone.generate`; or the queries cannot be shared out evenly among the edits.
        """
        queries = given_queries(queries)
        if self.router is None:
            return self.stack.answer(self.backbone, queries, **kwargs)
        if kwargs.get("decoding") is None:
            return self.router.answer(self.routing, self.within, queries, **kwargs)
        return [self._route(query, way) for query, way in zip(queries, kwargs["decoding"], strict=True)]

    def _route(self, query: Query, way: Decoding) -> str:
        """One answer that is written in a way of its own, or at once, where no model writes it."""
        assert self.router is not None
        (answer,) = self.router.answer(self.routing, self.within, [query], decoding=[way])
        if way.reason is None:
            way.say(answer)
        return way.text

    def called_by(self, query: Query) -> list[Edit]:
        """Which edits a question calls upon, as far as their methods tell; those of the very same one at least."""
        called = {id(edit) for edit in self.edits if edit.questions == (question_of(query),)}
        routing = [Group(self.backbone, self.routing)] if self.routing else []
        for group in (*self.stack.groups, *routing):
            calls = type(group.made[0]).calls(group, [query])
            if calls is not None:
                called |= {id(group.made[number]) for number in calls[0].nonzero().flatten().tolist()}
        return [edit for edit in self.edits if id(edit) in called]

    @torch.no_grad()
    def target_logits(self, queries: Sequence[Query], state: SplitState | None = None) -> Tensor:
        """Teacher-forced logits of the queries' targets.

        Args:
            queries: With targets.
            state: The queries run to a layer no higher than the edits' lowest, if that has been done before.

        Returns:
            ``[n, V]``, at the positions of `target_positions`, row by row.
        """
        queries = given_queries(queries)
        if self.router is not None:
            return self.router.target_logits(self.routing, self.within, queries, state)
        if state is not None:
            return self.backbone.run_from_split(state, target_positions(state.labels), self.stack)
        batch = self.backbone.encode(queries)
        return self.backbone.forward(batch, self.stack)[target_positions(batch.labels)]

    @torch.no_grad()
    def replay(self, state: SplitState, positions: Tensor) -> Output:
        """Finish a pass that was stopped no higher than the edits' lowest layer.

        Args:
            state: From `Backbone.run_to_split`.
            positions: ``[B, S]`` bool, where logits are wanted.

        Raises:
            UnikeError: A method does not act within the model.
        """
        noting = _Noting(self.within_model)
        logits = self.backbone.run_from_split(state, positions, noting)
        return Output(logits, noting.notes)

    @property
    def within_model(self) -> Stack:
        """What acts within the model.

        Raises:
            UnikeError: Not all does.
        """
        for edit in self.routing:
            edit.check_attachable()
        return self.stack

    @property
    def within(self) -> "EditedModel":
        """The model under those edits alone that act within it."""
        return EditedModel(self.backbone, self.stack.edits) if self.routing else self

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the edits act in the backbone's methods and the ``transformers`` model's own, see `stack.attached`."""
        with attached(self.backbone, self.edits):
            yield

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function with the edits attached, in whatever thread this runs: what is attached is a thread's own.

        Args:
            function: As a rule the model's own ``generate``.
            *args: Its arguments.
            **kwargs: The same, by name.

        Example:
            >>> Thread(target=edited.call, args=(model.generate,), kwargs={**inputs, "streamer": streamer}).start()
        """
        with self.attached():
            return function(*args, **kwargs)


def checks_of(backbone: Backbone, edit: Edit) -> list[Check]:
    """What a model answers to an edit's own questions, without the edit and with it."""
    asked, room = [fact.question for fact in edit.facts], backbone.room([fact.target or "" for fact in edit.facts])
    before, after = (EditedModel(backbone, made).generate(asked, max_new_tokens=room) for made in ([], [edit]))
    rows = zip(edit.facts, before, after, strict=True)
    return [Check(fact.prompt, old, new, fact.accepts(new)) for fact, old, new in rows]


class RowsEdited:
    """A backbone that answers each row of a batch under edits of its own: one batch, many users.

    Args:
        backbone: The model.
        sets: For each row its edits, oldest first; each of one fact.

    Raises:
        UnikeError: As `EditedModel`, or an edit is of several facts.
    """

    def __init__(self, backbone: Backbone, sets: Sequence[Sequence[Edit]]) -> None:
        sets = [given_edits(edits) for edits in sets]
        for edit in (edit for edits in sets for edit in edits):
            if len(edit) > 1:
                raise UnikeError(f"{edit!r} is of {len(edit)} facts; give each row single edits: edit[i]")
        self.backbone = given_model(backbone)
        self.sets = [tuple(in_force(edits)) for edits in sets]
        self.routed = [row for row, edits in enumerate(sets) if any(isinstance(e, RoutingEdit) for e in edits)]

    def generate(
        self, queries: Sequence[Query], *, decoding: Sequence[Decoding] | None = None, **kwargs: Any
    ) -> list[str]:
        """Answer as many queries as there are rows, each under its own edits; arguments as in `Backbone.generate`."""
        queries = given_queries(queries)
        self._check_rows(queries)
        answers = [""] * len(queries)

        def chosen(rows: Sequence[int]) -> dict[str, Any]:
            return kwargs if decoding is None else kwargs | {"decoding": [decoding[row] for row in rows]}

        # What the unedited model is asked instead is asked in the same batch, in a row without edits.
        told = self._told(queries)
        put = [told.get(row, query) for row, query in enumerate(queries)]
        for rows in self._together(put):
            stack = Stack.of_rows(self.backbone, [() if row in told else self.sets[row] for row in rows])
            asked = [put[row] for row in rows]
            said = self.backbone.generate(asked, acting=stack, **chosen(rows))
            for row, answer in zip(rows, said, strict=True):
                answers[row] = answer
        for row in self.routed:
            answers[row] = EditedModel(self.backbone, self.sets[row]).generate([queries[row]], **chosen([row]))[0]
        return answers

    @torch.no_grad()
    def target_logits(self, queries: Sequence[Query], state: SplitState | None = None) -> Tensor:
        """As in `EditedModel`, each row under its own edits; a state is not made use of."""
        queries = given_queries(queries)
        self._check_rows(queries)
        found: dict[int, Tensor] = {}
        for rows in self._together(queries):
            asked = [queries[row] for row in rows]
            batch = self.backbone.encode(asked)
            stack = Stack.of_rows(self.backbone, [self.sets[row] for row in rows])
            logits = self.backbone.forward(batch, stack)[target_positions(batch.labels)]
            row_of, _ = target_tokens(batch.labels)
            found |= {row: logits[row_of == number] for number, row in enumerate(rows)}
        for row in self.routed:
            found[row] = EditedModel(self.backbone, self.sets[row]).target_logits([queries[row]])
        nothing = self.backbone.head.weight.new_zeros(0, self.backbone.vocab_size)
        return torch.cat([nothing, *(found[row] for row in range(len(queries)))])

    def _told(self, queries: Sequence[Query]) -> dict[int, Query]:
        """What is asked of the unedited model instead, row by row: each under its own edits, as if it were alone."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for row, edits in enumerate(self.sets):
            if edits and row not in self.routed:
                alike.setdefault(tuple(map(id, edits)), []).append(row)
        found: dict[int, Query] = {}
        for rows in alike.values():
            told = Stack(self.backbone, self.sets[rows[0]]).told([queries[row] for row in rows])
            found |= {row: query for row, query in zip(rows, told, strict=True) if query is not None}
        return found

    def _together(self, queries: Sequence[Query]) -> Iterator[list[int]]:
        """Rows that may share a batch."""
        within = [row for row in range(len(queries)) if row not in self.routed]
        for group in self.backbone.groups([queries[row] for row in within]) if within else []:
            yield [within[index] for index in group]

    def _check_rows(self, queries: Sequence[Query]) -> None:
        if len(queries) != len(self.sets):
            raise UnikeError(f"{len(self.sets)} rows have edits of their own, and {len(queries)} questions are asked")


class _Noting:
    """What acts, and what it notes of the pass it acts in."""

    def __init__(self, acting: Stack) -> None:
        self.acting = acting
        self.rows = acting.rows
        self._prefill: Prefill | None = None

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        self._prefill = prefill
        self.acting.install(backbone, hooks, prefill)

    @property
    def notes(self) -> dict[str, Tensor]:
        return {} if self._prefill is None else self._prefill.noted()
