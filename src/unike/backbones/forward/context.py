"""What hooks may know about the pass they run in, and what is attached in the running context.

A `Prefill` is the value of one pass: a new one for each teacher-forced pass and for each generation, where it stays the
same for all tokens. So what a hook works out from it is worked out from the prompt and holds for every token that
follows. Hooks are given it when they are installed, for that pass alone.

What is *attached* to a model is known to the running context (a thread, an asyncio task), never to the model.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from unike.backbones.forward.hooks import Hooks

Tokens = tuple[tuple[int, ...], ...]
"""Of several prompts."""


ACROSS = 3
"""A picture is also read in ``ACROSS x ACROSS`` parts."""

SEEN = 2 + ACROSS * ACROSS
"""So many vectors say what a picture shows, see `seen_in`."""


@torch.no_grad()
def seen_in(read: Tensor, shown: Tensor) -> Tensor:
    """What prompts show: of the visual features in a picture's place mean, standard deviation, and the means of parts.

    Args:
        read: Embeddings, ``[B, S, D]``.
        shown: ``[B, S']`` bool, where visual features stand; none do beyond S'.

    Returns:
        ``[B, SEEN D]`` fp32; zero for a prompt without a picture.
    """
    shown = shown.to(read.device)
    return torch.stack([_shown_by(row[: len(there)][there].float()) for row, there in zip(read, shown, strict=True)])


def _shown_by(features: Tensor) -> Tensor:
    """Of a picture's ``features [n, D]``: ``[SEEN D]``."""
    if not len(features):
        return features.new_zeros(SEEN * features.shape[1])
    spread, mean = torch.std_mean(features, dim=0, correction=0)
    return torch.cat([mean, spread, parts_of(features).flatten()])


def parts_of(features: Tensor) -> Tensor:
    """The means of a picture's parts, ``[ACROSS * ACROSS, D]``.

    Args:
        features: ``[n, D]`` with n > 0: a square, row by row, perhaps and one more that speaks of the whole; what is no
            square is cut into as many stretches.
    """
    side, width = math.isqrt(len(features)), features.shape[1]
    if side < ACROSS or len(features) > side * side + 1:
        return adaptive_avg_pool1d(features.T, ACROSS * ACROSS).T
    square = features[: side * side].T.reshape(width, side, side)
    return adaptive_avg_pool2d(square, ACROSS).reshape(width, ACROSS * ACROSS).T


@dataclass(eq=False)
class Prefill:
    """One reading of prompts.

    Args:
        prompt_last: ``[B]`` long, index of the last prompt token ``p`` of each row.
        tokens: Of each prompt, without padding and without the placeholders of its picture; None where the model was
            given no tokens.
        shown: ``[B, S]`` bool, where visual features stand; None where there are none, or `pictures` has been read.
        pictures: What the prompts show, see `seen_in`; None where there is no picture, or nothing has been read yet.
        notes: What hooks have to say about the rows, see `note`.
        passes: Rows and tokens, ``(R, S)``, of each pass so far: the prompts, then token after token of the answers.
    """

    prompt_last: Tensor
    tokens: Tokens | None = None
    shown: Tensor | None = None
    pictures: Tensor | None = None
    notes: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)
    passes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def continues(self) -> bool:
        """Whether the running pass continues answers: its prompts have been read before."""
        return len(self.passes) > 1

    def begin(self, read: Tensor) -> None:
        """A pass begins: the first one shows the prompts' pictures.

        Args:
            read: What the text stack is given, tokens ``[R, S]`` or their embeddings ``[R, S, D]``.
        """
        if not self.passes and self.shown is not None and read.ndim == 3:
            self.pictures = seen_in(read[:: len(read) // len(self.shown)], self.shown)
        self.passes.append((read.shape[0], read.shape[1]))

    def at_prompt_last(self, hidden: Tensor) -> Tensor:
        """The state at ``p``: ``[R, S, D]`` to ``[R, D]``, where R is B or, with beams, a multiple of it.

        Raises:
            ValueError: R is not a multiple of B.
        """
        repeats, rest = divmod(len(hidden), len(self.prompt_last))
        if rest:
            raise ValueError(f"{len(self.prompt_last)} prompts are read, but the model runs on {len(hidden)} rows")
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, self.prompt_last.to(hidden.device).repeat_interleave(repeats)]

    def from_prompt_last(self, hidden: Tensor) -> Tensor:
        """Which positions of the running pass are not before ``p``.

        Args:
            hidden: ``[R, S, D]``, or flattened to ``[R * S, D]``.

        Returns:
            Bool, ``[R, S, 1]`` or ``[R * S, 1]``.
        """
        rows, length = self.passes[-1]
        if self.continues:
            return torch.ones(*hidden.shape[:-1], 1, dtype=torch.bool, device=hidden.device)
        last = self.prompt_last.to(hidden.device).repeat_interleave(rows // len(self.prompt_last))
        since = torch.arange(length, device=hidden.device) >= last.unsqueeze(1)
        return since.reshape(*hidden.shape[:-1], 1)

    def note(self, name: str, values: Tensor) -> None:
        """Put down a figure for each row, for reports; several of one name, of several layers, are averaged.

        Args:
            name: For example ``"alpha"``.
            values: ``[R]``.
        """
        self.notes.setdefault(name, []).append(values.detach().float())

    def noted(self) -> dict[str, Tensor]:
        """The figures of each row, by name: ``[R]`` each."""
        return {name: torch.stack(values).mean(dim=0) for name, values in self.notes.items()}


class Acting(Protocol):
    """What acts in passes beside a model: edits, put on for each pass and taken off after it."""

    @property
    def rows(self) -> int:
        """How many rows it tells apart; a pass must run on a multiple of it."""

    def install(self, backbone: Any, hooks: Hooks, prefill: Prefill) -> None:
        """Put hooks on a backbone for the pass that is about to run."""


class Nothing:
    """Nothing acts: the unedited model, whatever is attached in the context."""

    rows = 1

    def install(self, backbone: Any, hooks: Hooks, prefill: Prefill) -> None:
        """No hook."""


UNEDITED = Nothing()

_ATTACHED: ContextVar[Mapping[int, Acting]] = ContextVar("attached", default=MappingProxyType({}))
_RUNNING: ContextVar[Prefill | None] = ContextVar("running", default=None)


def attached_to(backbone: object) -> Acting:
    """What is attached to a backbone in this context; `UNEDITED` if nothing is."""
    return _ATTACHED.get().get(id(backbone), UNEDITED)


def attach(backbone: object, acting: Acting | None) -> None:
    """Let something act in a backbone's passes in this context from now on, in place of what did; None for nothing."""
    others = {key: each for key, each in _ATTACHED.get().items() if key != id(backbone)}
    _ATTACHED.set(others if acting is None else {**others, id(backbone): acting})


def running() -> Prefill | None:
    """The pass that a backbone runs in this context, if one does."""
    return _RUNNING.get()


@contextmanager
def entering(prefill: Prefill) -> Iterator[None]:
    """Within the block a backbone runs this pass."""
    token = _RUNNING.set(prefill)
    try:
        yield
    finally:
        _RUNNING.reset(token)
