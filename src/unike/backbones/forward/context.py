"""What hooks may know about the pass they run in: where the prompts end that a model is reading."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Prefill:
    """One reading of prompts: what hooks may know about the pass they run in.

    A new object for each teacher-forced pass and for each generation, where it stays the same for all tokens. So what
    a hook works out with `once` is worked out from the prompt and holds for every token that follows.

    Args:
        prompt_last: ``[B]`` long, index of the last prompt token ``p`` of each row.
        prompt_length: ``[B]`` long, tokens of each prompt.
        kept: What has been worked out so far, by its owner.
        sums: For layers of a shortened state ``[B, D]`` fp32, the sum of the attention's inputs over the part of the
            prompt that is not run again.
        notes: What hooks have to say about the rows, see `note`.
        passes: Rows and tokens, ``(R, S)``, of each pass so far: the prompts, then token after token of the answers.
    """

    prompt_last: Tensor
    prompt_length: Tensor
    kept: dict[object, Any] = field(default_factory=dict, repr=False)
    sums: dict[int, Tensor] = field(default_factory=dict, repr=False)
    notes: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)
    passes: list[tuple[int, int]] = field(default_factory=list)

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
        if len(self.passes) > 1:  # an answer is continued
            return torch.ones(*hidden.shape[:-1], 1, dtype=torch.bool, device=hidden.device)
        last = self.prompt_last.to(hidden.device).repeat_interleave(rows // len(self.prompt_last))
        since = torch.arange(length, device=hidden.device) >= last.unsqueeze(1)
        return since.reshape(*hidden.shape[:-1], 1)

    def once(self, owner: object, compute: Callable[[], T]) -> T:
        """What ``compute`` returned when this was first called for ``owner`` during this prefill.

        Args:
            owner: Whose value it is, told from others by identity.
            compute: Called the first time only.
        """
        if owner not in self.kept:
            self.kept[owner] = compute()
        kept: T = self.kept[owner]
        return kept

    def note(self, name: str, values: Tensor) -> None:
        """Put down a figure for each row, for reports; several of one name, of several layers, are averaged.

        Args:
            name: For example ``"alpha"``.
            values: ``[R]``.
        """
        self.notes.setdefault(name, []).append(values.detach().float())
