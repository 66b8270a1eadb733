"""A table to be rendered, and its cells."""

from dataclasses import dataclass

from unike.report.blocks import Block
from unike.report.measurements import Measurement


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Attributes:
        text: What it shows: a share in percent, a difference in points, or a number of cases.
        value: A share from 0 to 1, of which more is better unless ``lower``; None for everything else.
        interval: Ends of the 95 % interval.
        n: How many questions the number is a mean of.
        measurement: Whose number it is.
        lower: Whether less of it is better.
        best: Whether no finished method has a better one in this column.
        remark: What else is to be said of it.
    """

    text: str = "n/a"
    value: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    measurement: Measurement | None = None
    lower: bool = False
    best: bool = False
    remark: str = ""

    @property
    def aside(self) -> str:
        """The interval in percent, or the remark, or nothing."""
        if self.interval is None:
            return self.remark
        low, high = (f"{100 * end:.1f}".removesuffix(".0") for end in self.interval)
        return f"[{low}, {high}]"


@dataclass(frozen=True)
class Table:
    """A table to be rendered.

    Attributes:
        title: What it shows and under which protocol.
        heads: For each block, its title and the heads of its columns.
        rows: The method, and its cells through all blocks.
        notes: Sentences below it.
        blocks: Whose scores it has, for figures; none if it sums up or compares.
        view: Which scores, one of `unike.bench.protocols.base.views`; empty without blocks.
        of: What a row is.
    """

    title: str
    heads: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    view: str = ""
    of: str = "method"
