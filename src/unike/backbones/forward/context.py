"""What hooks may know about the pass they run in, and what is attached in the running context.

A `Prefill` is the value of one pass: a new one for each teacher-forced pass and for each generation, where it stays the
same for all tokens. So what a hook works out from it is worked out from the prompt and holds for every token that
follows. Hooks are given it when they are installed, for that pass alone.

What is *attached* to a model is known to the running context (a thread, an asyncio task), never to the model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from unike.backbones.forward.hooks import Hooks


class Reading(NamedTuple):
    """What a layer's attention read of prompts."""

    last: Tensor
    """``[B, D]`` fp32, at the last prompt token ``p``."""

    whole: Tensor
    """``[B, D]`` fp32, the mean over the prompt, its picture included."""


@dataclass(frozen=True, eq=False)
class Prefill:
    """One reading of prompts.

    Args:
        prompt_last: ``[B]`` long, index of the last prompt token ``p`` of each row.
        prompt_length: ``[B]`` long, tokens of each prompt.
        readings: Of layers, as far as somebody wanted them, see `read`.
        sums: For layers of a shortened state ``[B, D]`` fp32, the sum of the attention's inputs over the part of the
            prompt that is not run again.
        notes: What hooks have to say about the rows, see `note`.
        passes: Rows and tokens, ``(R, S)``, of each pass so far: the prompts, then token after token of the answers.
    """

    prompt_last: Tensor
    prompt_length: Tensor
    readings: dict[int, Reading] = field(default_factory=dict, repr=False)
    sums: dict[int, Tensor] = field(default_factory=dict, repr=False)
    notes: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)
    passes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def continues(self) -> bool:
        """Whether the running pass continues answers: its prompts have been read before."""
        return len(self.passes) > 1

    @torch.no_grad()
    def read(self, layer: int, hidden: Tensor) -> Reading:
        """What a layer's attention read of the prompts; worked out the first time only, and detached.

        Args:
            layer: Counted from 0.
            hidden: Its attention's input ``[R, S, D]``, of the prompts unless it has been read before.
        """
        if layer not in self.readings:
            self.readings[layer] = Reading(self.at_prompt_last(hidden).float(), self.over_prompt(hidden, layer))
        return self.readings[layer]

    def at_prompt_last(self, hidden: Tensor) -> Tensor:
        """The state at ``p``: ``[R, S, D]`` to ``[R, D]``, where R is B or, with beams, a multiple of it.

        Raises:
            ValueError: R is not a multiple of B.
        """
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, self._for_rows(self.prompt_last, hidden)]

    def over_prompt(self, hidden: Tensor, layer: int) -> Tensor:
        """The mean over the prompt of a layer's attention inputs: ``[R, S, D]`` to ``[R, D]`` fp32.

        Args:
            hidden: Of the prompts, not of an answer's tokens alone.
            layer: Whose, counted from 0.
        """
        total = self.summed(hidden)
        if layer in self.sums:
            total = total + self._for_rows(self.sums[layer], hidden)
        return total / self._for_rows(self.prompt_length, hidden).unsqueeze(1)

    def summed(self, hidden: Tensor) -> Tensor:
        """The sum over those positions that belong to the prompt: ``[R, S, D]`` to ``[R, D]`` fp32."""
        last, length = (self._for_rows(each, hidden).unsqueeze(1) for each in (self.prompt_last, self.prompt_length))
        position = torch.arange(hidden.shape[1], device=hidden.device)
        inside = (position > last - length) & (position <= last)  # [R, S]
        return (inside.float().unsqueeze(1) @ hidden.float()).squeeze(1)

    def _for_rows(self, values: Tensor, hidden: Tensor) -> Tensor:
        """``[B, ...]``, one for each prompt, to ``[R, ...]``, one for each row of ``hidden``, where that is."""
        repeats, rest = divmod(len(hidden), len(values))
        if rest:
            raise ValueError(f"{len(values)} prompts are read, but the model runs on {len(hidden)} rows")
        return values.to(hidden.device).repeat_interleave(repeats, dim=0)

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
