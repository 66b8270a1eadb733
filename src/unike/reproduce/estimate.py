"""How long steps will take and how much they will write: by what steps like them took and wrote, and not otherwise.

A rate is what was measured for one edit, training step or case to learn from. Where nothing of a kind was measured, the
rate of the next more general kind is a guess, and called one; where there is none, nothing is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from unike.reproduce.log import DONE, Entry

MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Estimate:
    """What a step will take.

    Attributes:
        seconds: Of work that is not done yet; None if unknown.
        bytes: That it writes in all; None if unknown.
        basis: ``measured`` on steps of its kind, a ``guess`` from others, or ``unknown``.
        told: What it is computed from, for people.
    """

    seconds: float | None
    bytes: float | None
    basis: Literal["measured", "guess", "unknown"]
    told: str = ""


NOTHING_KNOWN = Estimate(None, None, "unknown", "no step of its kind has been done yet")


class Rates:
    """What was measured.

    Args:
        entries: Of a log, and of the log of a probe.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = [each for each in entries if each.outcome == DONE and each.new]

    def estimate(self, kind: str, amount: int, left: int) -> Estimate:
        """What a step will take.

        Args:
            kind: Of the step, words from the general to the particular.
            amount: How much there is to do in all.
            left: How much of that is not done.
        """
        words = kind.split()
        for length in range(len(words), 0, -1):
            alike = [each for each in self.entries if each.kind.split()[:length] == words[:length]]
            if alike:
                count = sum(each.new for each in alike)
                rate = sum(max(0.0, each.seconds - each.fixed_seconds) for each in alike) / count
                fixed = fmean(each.fixed_seconds for each in alike)
                size = sum(each.bytes for each in alike) / sum(each.amount for each in alike) * amount
                if words[0] == "train":  # a network is as large, however long it is trained
                    size = fmean(each.bytes for each in alike)
                basis: Literal["measured", "guess"] = "measured" if length == len(words) else "guess"
                others = "" if basis == "measured" else f" of any {' '.join(words[:length])}"
                once = f" and {fixed:.3g} s once" if fixed else ""
                told = f"{left} x {rate:.3g} s{once}, from {count}{others}"
                return Estimate(left * rate + (fixed if left else 0.0), size, basis, told)
        return NOTHING_KNOWN


@dataclass(frozen=True)
class Left:
    """What several steps will take together.

    Attributes:
        seconds: Of those of which it is known or guessed.
        bytes: The same.
        guesses: How many are guesses.
        unknown: Of how many nothing is known.
        steps: How many there are.
    """

    seconds: float
    bytes: float
    guesses: int
    unknown: int
    steps: int

    def __str__(self) -> str:
        if not self.steps:
            return "nothing left"
        if self.unknown == self.steps:
            return "time left unknown: no step of these kinds has been done yet"
        doubts = [f"{self.guesses} of {self.steps} steps guessed"] if self.guesses else []
        doubts += [f"without {self.unknown} steps of kinds not measured yet"] if self.unknown else []
        start = "at least" if self.unknown else "about"
        why = f" ({', '.join(doubts)})" if doubts else ""
        return f"{start} {duration(self.seconds)} left{why}"


def together(estimates: Sequence[Estimate]) -> Left:
    """The sum of several."""
    return Left(
        seconds=sum(each.seconds or 0.0 for each in estimates),
        bytes=sum(each.bytes or 0.0 for each in estimates),
        guesses=sum(each.basis == "guess" for each in estimates),
        unknown=sum(each.basis == "unknown" for each in estimates),
        steps=len(estimates),
    )


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(3.2), duration(80), duration(5400), duration(200000)
    ('3 s', '1 min 20 s', '1 h 30 min', '2 d 8 h')
    """
    whole = round(seconds)
    units = ((DAY, HOUR, "d", "h"), (HOUR, MINUTE, "h", "min"), (MINUTE, 1, "min", "s"))
    for large, small, large_name, small_name in units:
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {large_name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"


def size(count: float) -> str:
    """Bytes for people.

    >>> size(512), size(155_000), size(2.5e9)
    ('512 B', '155 kB', '2.5 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"
