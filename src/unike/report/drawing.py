"""Figures that read in print and on light and dark pages: in SVG, text and lines take the page's own colour.

Within a page a figure is an ``<svg>``; as a file it is an SVG that follows the reader's choice of light or dark, and a
PNG on white. Bars, dots and lines have one of eight colours of middling brightness (after Okabe and Ito, who chose them
for colour-blind readers), each with a contrast of 3 or more to both white and near-black.
"""

import html
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#008f68", "#b8658f", "#8a7300", "#7a6fc4", "#777777", "#b0413e")
INK = "#010203"
"""Stands for the page's colour until the SVG is written; no figure uses it for anything else."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, to be selected and read aloud
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}

MARKERS = "os^Dvp*X<"
"""Of lines and clouds, so that they can be told apart without colours; one more, so that pairs hardly come round."""

INCHES_A_BAR = 0.16
A_ROW = 4
"""Panels side by side."""

DPI = 200
"""Of a PNG, for print."""

FOLLOWS_THE_READER = "<style>:root{color-scheme:light dark;color:#1c1f23}" + (
    "@media(prefers-color-scheme:dark){:root{color:#e4e7ea}}</style>"
)

GRID = "#888888"

ENDS = ("value", "low", "high")

Scores = Mapping[str, Mapping[str, Any]]
"""A metric to its row of a summary (`unike.bench.summary.column`)."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure to be put in a page and in files.

    Attributes:
        name: Of its files.
        caption: What it shows, under which protocol.
        figure: Drawn within `styled`.
    """

    name: str
    caption: str
    figure: Figure

    def inline(self) -> str:
        """An ``<svg>`` for a page."""
        with styled():
            return as_element(self.figure, self.caption)

    def svg(self) -> str:
        """A file that reads on light and dark ground."""
        head, body = self.inline().split(">", 1)
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        title = f"<title>{html.escape(self.caption)}</title>"
        return f"{head.replace('<svg', f'<svg {names}', 1)}>{title}{FOLLOWS_THE_READER}{body}"

    def png(self) -> bytes:
        """A file for print, on white."""
        written = io.BytesIO()
        with styled():
            self.figure.savefig(written, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        return written.getvalue()

    def files(self) -> dict[str, bytes]:
        """Both files, name to content."""
        return {f"{self.name}.svg": self.svg().encode(), f"{self.name}.png": self.png()}


def styled() -> Any:
    """The style of all figures, for a ``with`` block."""
    return matplotlib.rc_context(STYLE)


def as_element(figure: Figure, label: str) -> str:
    """A figure as an element of a page: no addresses, no fixed size, ids that no other figure has."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # the same figure is the same text
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if f"#{found[1]}" in svg else "", svg)
    head, rest = svg.split(">", 1)
    width, height = re.search(r'viewBox="0 0 (\S+) (\S+)"', head).groups()  # type: ignore[union-attr]  # always there
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">{rest}'


def panels(figure: Figure, names: Sequence[str]) -> Iterator[tuple[Axes, str]]:
    """Small multiples that share their axes, `A_ROW` side by side: one for each name."""
    rows, columns = math.ceil(len(names) / A_ROW), min(len(names), A_ROW)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, name in itertools.zip_longest(grid, names):
        if name is None:
            axes.remove()
        else:
            yield axes, name


def in_percent(rows: Sequence[Mapping[str, Any] | None]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals reach below and above; NaN, which is not drawn, where one is not defined."""
    found = [row if row is not None and row["value"] is not None else dict.fromkeys(ENDS, math.nan) for row in rows]
    values, lows, highs = ([100 * row[key] for row in found] for key in ENDS)
    # Of a handful of cases, a bootstrap interval can miss the mean by rounding.
    below = [max(0.0, value - low) for value, low in zip(values, lows, strict=True)]
    above = [max(0.0, high - value) for value, high in zip(values, highs, strict=True)]
    return values, [below, above]


def legend(figure: Figure, columns: int = 4) -> None:
    """One legend above all panels, each name once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=min(columns, len(handles)), frameon=False
    )
