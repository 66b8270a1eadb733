"""Figures as inline SVG that reads on light and dark pages: text and lines take the page's own colour.

Bars have one of eight colours of middling brightness (after Okabe and Ito, who chose them for colour-blind readers),
each with a contrast of 3 or more to both white and near-black.
"""

import html
import io
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from unike.metrics import METRICS
from unike.report.tables import SHORT, Block
from unike.results import column
from unike.types import CaseResult

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

INCHES_A_BAR = 0.16
A_ROW = 4
"""Histograms side by side."""


def bars(block: Block, label: str) -> str:
    """A block of a table: for each metric a bar a method, in percent with its 95 % interval.

    Args:
        block: Of one view.
        label: What the figure shows, for who cannot see it.

    Returns:
        An ``<svg>``. A score that is not defined is written ``n/a``.
    """
    found = {entry.method: column(entry.rows) for entry in block.entries}
    metrics = [metric for metric in SHORT if any(metric in rows for rows in found.values())]
    thickness = 0.8 / len(found)
    with matplotlib.rc_context(STYLE):
        width = max(6.0, 1.0 + INCHES_A_BAR * len(metrics) * (len(found) + 1))
        figure = Figure(figsize=(width, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for number, (method, rows) in enumerate(found.items()):
            places = [place + (number - (len(found) - 1) / 2) * thickness for place in range(len(metrics))]
            scores = [
                rows[metric] if metric in rows and rows[metric]["value"] is not None else None for metric in metrics
            ]
            axes.bar(
                places,
                [100 * score["value"] if score else 0 for score in scores],
                thickness * 0.92,
                color=COLOURS[number % len(COLOURS)],
                hatch="//" * (number // len(COLOURS)),  # colours come round again
                label=method,
            )
            for place, score in zip(places, scores, strict=True):
                if score:
                    axes.vlines(place, 100 * score["low"], 100 * score["high"], color=INK, linewidth=1)
                else:
                    axes.text(place, 1, "n/a", ha="center", va="bottom", rotation=90, fontsize=7)
        axes.set_xticks(range(len(metrics)), [SHORT[metric] for metric in metrics])
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 105)
        axes.set_ylabel("percent")
        figure.legend(loc="outside upper left", ncols=max(1, int(width // 2)), frameon=False)
        return _svg(figure, label)


def histograms(cases: Iterable[CaseResult], what: str, label: str) -> str | None:
    """How one of the notes on questions is distributed, for each kind of question: small multiples.

    Args:
        cases: The method may have said something about their questions, see `unike.types.Asked`.
        what: Name of the note, for example ``"alpha"``.
        label: What the figure shows.

    Returns:
        An ``<svg>``; None if no case has such values.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        for asked in case.asked:
            if what in asked.notes:
                found[asked.kind].append(asked.notes[what])
    kinds = [kind for kind in METRICS if found.get(kind)]
    if not kinds:
        return None
    everything = [value for kind in kinds for value in found[kind]]
    ends = min(0.0, *everything), max(1.0, *everything)
    with matplotlib.rc_context(STYLE):
        rows, columns = math.ceil(len(kinds) / A_ROW), min(len(kinds), A_ROW)
        figure = Figure(figsize=(1.5 * A_ROW, 1.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, kind in itertools.zip_longest(grid, kinds):
            if kind is None:
                axes.remove()
                continue
            shares = [100 / len(found[kind])] * len(found[kind])
            axes.hist(found[kind], bins=20, range=ends, weights=shares, color=COLOURS[0])
            axes.set_title(f"{SHORT[kind]} (n {len(found[kind])})", fontsize=9)
            axes.tick_params(labelbottom=True)
        figure.supxlabel(what, fontsize=9)
        figure.supylabel("percent of questions", fontsize=9)
        return _svg(figure, label)


def _svg(figure: Figure, label: str) -> str:
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
