"""How each answer of a batch is written: its length, what it is drawn with, where it ends, and who is told meanwhile.

One batch may hold a greedy answer, a sampled one, and one that is read as it is written: every row is followed by
itself, so what a row says does not depend on the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from unike.core.errors import UnikeError

HALF = "\N{REPLACEMENT CHARACTER}"
"""What stands for a character of which not all tokens are there."""

COLDEST = 1e-9
"""A lower temperature, or share of the likeliest, is as good as none: the likeliest token is taken."""

Reason = Literal["stop", "length", "cancelled"]


@dataclass(eq=False)
class Decoding:
    """One answer: how it is written, and, once it is, what it was.

    Args:
        max_new_tokens: At most so many tokens.
        temperature: Of drawing tokens; 0 takes the likeliest each time.
        top_p: Only the likeliest tokens that together have this share are drawn.
        seed: Of drawing; None for another answer each time.
        stop: Texts that end the answer, and are left out of it.
        tell: Called with each piece of the answer as soon as it is certain.
        cancelled: Asked after each token whether anybody still wants the answer.
        ended: Called once the answer is over, while others of its batch may still be written.
    """

    max_new_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    tell: Callable[[str], None] = lambda piece: None
    cancelled: Callable[[], bool] = lambda: False
    ended: Callable[[], None] = lambda: None

    prompt_tokens: int = field(default=0, init=False)
    tokens: list[int] = field(default_factory=list, init=False)
    """Of the answer, with the one that ended it."""
    text: str = field(default="", init=False)
    reason: Reason | None = field(default=None, init=False)
    """Why it is over."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UnikeError: With what it is.
        """
        if self.max_new_tokens < 1:
            raise UnikeError(f"max_new_tokens is {self.max_new_tokens}; it is a whole number from 1 on")
        if not 0 <= self.temperature < float("inf"):
            raise UnikeError(f"temperature is {self.temperature}; it is 0 or more")
        if not 0 < self.top_p <= 1:
            raise UnikeError(f"top_p is {self.top_p}; it is above 0, at most 1")
        if not all(self.stop):
            raise UnikeError("an empty text ends no answer; leave it out of stop")
        self._told = 0

    def say(self, text: str) -> None:
        """The whole answer at once, where no model wrote it."""
        self.tokens = []
        self._grow(text, "stop")

    def _grow(self, said: str, reason: Reason | None) -> None:
        """Take in all that was said so far, and tell what is certain of it."""
        said = said.lstrip()
        ends = [at for at in map(said.find, self.stop) if at >= 0]
        if ends:
            said, reason = said[: min(ends)], "stop"
        if reason is None:
            certain = said.removesuffix(HALF)
            # What may be the beginning of a stop, or of the blanks behind an answer, is not told yet.
            held = max((begun(certain, stop) for stop in self.stop), default=0)
            certain = certain[: len(certain) - held].rstrip()
        else:
            certain = said.rstrip()
        self.text, self.reason = certain, reason
        if len(certain) > self._told:
            self._told, piece = len(certain), certain[self._told :]
            self.tell(piece)
        if reason is not None:
            self.ended()


def begun(text: str, stop: str) -> int:
    """How many of the last characters of a text may be the beginning of a stop."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def check_alone(decoding: Sequence[Decoding], queries: int, num_beams: int, options: Mapping[str, Any]) -> None:
    """Refuse to write answers in ways of their own and in another.

    Raises:
        UnikeError: There are not as many as queries, or other settings beside.
    """
    if len(decoding) != queries:
        raise UnikeError(f"{len(decoding)} answers are to be written, and {queries} questions are asked")
    others = [*options, *(["num_beams"] if num_beams != 1 else [])]
    if others:
        raise UnikeError(f"a Decoding says how each answer is written; leave {' and '.join(others)} out")


class Steering:
    """What ``transformers`` asks while it writes a batch of answers.

    Args:
        tokenizer: Of the model.
        stop_ids: Tokens that end an answer.
        rows: The answers.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], rows: Sequence[Decoding]) -> None:
        self.tokenizer, self.stop_ids, self.rows = tokenizer, frozenset(stop_ids), rows
        self.drawing = [torch.Generator() for _ in rows]
        for row, generator in zip(rows, self.drawing, strict=True):
            generator.seed() if row.seed is None else generator.manual_seed(row.seed)

    def choose(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Leave drawn rows one token to take: a logits processor; ``[B, S]``, ``[B, V]`` to ``[B, V]``."""
        for number, row in enumerate(self.rows):
            if row.temperature > 0 and row.reason is None:
                token = draw(scores[number], row.temperature, row.top_p, self.drawing[number])
                scores[number] = -torch.inf
                scores[number, token] = 0
        return scores

    def follow(self, ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Take in each row's new token, and say which rows are over: a stopping criterion; ``[B, S]`` to ``[B]``."""
        for row, token in zip(self.rows, ids[:, -1].tolist(), strict=True):
            if row.reason is None:
                row.tokens.append(token)
                row._grow(self._said(row), self._over(row, token))
        return torch.tensor([row.reason is not None for row in self.rows], device=ids.device)

    def _said(self, row: Decoding) -> str:
        text: str = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        return text

    def _over(self, row: Decoding, token: int) -> Reason | None:
        if token in self.stop_ids:
            return "stop"
        if row.cancelled():
            return "cancelled"
        return "length" if len(row.tokens) >= row.max_new_tokens else None


def draw(scores: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token, drawn from the likeliest that together have a share.

    Args:
        scores: Logits, ``[V]``.
        temperature: Above 0.
        top_p: The share.
        generator: On the CPU, so that a seed draws the same on every device.
    """
    scores = scores.double().cpu()
    # From the largest on, so that a temperature next to 0 leaves that, and no infinity less another.
    share = ((scores - scores.max()) / max(temperature, COLDEST)).softmax(dim=-1)
    likely, tokens = share.sort(descending=True, stable=True)
    before = likely.cumsum(dim=-1) - likely
    before[0] = 0.0
    likely = likely * (before < max(top_p, COLDEST))
    return int(tokens[torch.multinomial(likely, 1, generator=generator)])
