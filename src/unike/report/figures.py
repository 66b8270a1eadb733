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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unike.bench.metrics import METRICS
from unike.bench.outcome import CaseResult
from unike.bench.results import column, select
from unike.report.tables import SHORT, Block, Table

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
"""A metric to its row of a summary (`unike.bench.results.column`)."""


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
            return _svg(self.figure, self.caption)

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
    with styled():
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
        cases: The method may have said something about their questions, see `unike.bench.outcome.Asked`.
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
    with styled():
        figure = Figure(figsize=(1.5 * A_ROW, 1.6 * math.ceil(len(kinds) / A_ROW)), layout="constrained")
        for axes, kind in panels(figure, kinds):
            shares = [100 / len(found[kind])] * len(found[kind])
            axes.hist(found[kind], bins=20, range=ends, weights=shares, color=COLOURS[0])
            axes.set_title(f"{SHORT[kind]} (n {len(found[kind])})", fontsize=9)
            axes.tick_params(labelbottom=True)
        figure.supxlabel(what, fontsize=9)
        figure.supylabel("percent of questions", fontsize=9)
        return _svg(figure, label)


def panels(figure: Figure, names: Sequence[str]) -> Iterator[tuple[Axes, str]]:
    """Small multiples that share their axes, `A_ROW` side by side: one for each name."""
    rows, columns = math.ceil(len(names) / A_ROW), min(len(names), A_ROW)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, name in itertools.zip_longest(grid, names):
        if name is None:
            axes.remove()
        else:
            yield axes, name


def dots(methods: Mapping[str, Scores], view: str) -> Figure:
    """Methods by metrics, for more methods than bars could show: a dot with its 95 % interval, in percent.

    Args:
        methods: From top to bottom. A score that is not defined is left out.
        view: Of all scores, see `unike.bench.results.VIEWS`.
    """
    metrics = measured(methods.values())
    with styled():
        names = 0.075 * max(map(len, methods))
        figure = Figure(figsize=(names + 1.05 * len(metrics), 0.7 + 0.24 * len(methods)), layout="constrained")
        grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False).flat
        for axes, metric in zip(grid, metrics, strict=True):
            values, ends = in_percent([scores.get(metric) for scores in methods.values()])
            axes.errorbar(values, range(len(methods)), xerr=ends, fmt="o", color=COLOURS[0], markersize=4, linewidth=1)
            axes.set_title(SHORT[metric], fontsize=9)
            axes.set_xlim(-4, 104)
            axes.set_xticks([0, 50, 100])
            axes.set_yticks(range(len(methods)), list(methods))
            axes.set_ylim(len(methods) - 0.5, -0.5)  # the first on top
            axes.tick_params(axis="y", length=0)
            axes.grid(color=GRID, alpha=0.25, linewidth=0.5)
        figure.supxlabel(f"{view}, percent with 95 % intervals", fontsize=9)
        return figure


def curves(
    lines: Mapping[str, Mapping[Any, Scores]],
    x: str,
    view: str,
    *,
    levels: Mapping[str, Scores] | None = None,
    even: bool = False,
) -> Figure:
    """Scores against a number, a panel for each metric: lines with 95 % intervals, in percent.

    Args:
        lines: Name to number, whole or not, to scores.
        x: What the numbers are.
        view: Of all scores, see `unike.bench.results.VIEWS`.
        levels: What has no such number: a dashed line across, its interval shaded.
        even: Whether numbers stand at even distances, whatever they are: for 0, 1, 2, 4, 8.
    """
    levels = levels or {}
    metrics = measured([*(scores for line in lines.values() for scores in line.values()), *levels.values()])
    numbers = sorted({number for line in lines.values() for number in line})
    places = {number: float(index) if even else number for index, number in enumerate(numbers)}
    with styled():
        figure = Figure(figsize=(1.9 * A_ROW, 0.6 + 1.7 * math.ceil(len(metrics) / A_ROW)), layout="constrained")
        for axes, metric in panels(figure, metrics):
            for index, (name, line) in enumerate(lines.items()):
                aside = min(0.08, 0.4 / len(lines)) * index if even else 0.0  # intervals should not hide each other
                values, ends = in_percent([scores.get(metric) for scores in line.values()])
                style: dict[str, Any] = {
                    "color": COLOURS[index % len(COLOURS)],
                    "marker": MARKERS[index % len(MARKERS)],
                    "linestyle": ":" if index // len(COLOURS) % 2 else "-",  # colours come round again
                }
                where = [places[number] + aside for number in line]
                axes.errorbar(where, values, yerr=ends, markersize=4, linewidth=1, label=name, **style)
            for index, (name, scores) in enumerate(levels.items(), len(lines)):
                (value,), ((below,), (above,)) = in_percent([scores.get(metric)])
                colour = COLOURS[index % len(COLOURS)]
                axes.axhline(value, color=colour, linestyle="--", linewidth=1, label=name)
                axes.axhspan(value - below, value + above, color=colour, alpha=0.15, linewidth=0)
            axes.set_title(SHORT[metric], fontsize=9)
            axes.set_ylim(-4, 104)
            axes.tick_params(labelbottom=True)
            if even:
                axes.set_xticks([*places.values()], [f"{number:g}" for number in numbers], fontsize=7)
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(f"{view}, percent\nwith 95 % intervals", fontsize=9)
        legend(figure)
        return figure


def on_the_way(table: Table) -> list[Drawing]:
    """What sequences were asked on the way, as curves that go on to their end: a figure for each length, if any."""
    found: dict[int, dict[str, dict[int, Scores]]] = defaultdict(lambda: defaultdict(dict))
    for block in table.blocks:
        for entry in block.entries:
            setting, _, edits = entry.rows[0]["setting"].partition(":at-")
            if edits:
                k = block.header["k"]
                line = found[k][entry.method]
                line[int(edits)] = column(entry.rows)
                line[k] = column(select(entry.source.rows, table.view, setting))
    drawings = []
    for k, lines in found.items():
        in_order = {method: dict(sorted(line.items())) for method, line in lines.items()}
        figure = curves(in_order, "edits so far", table.view, even=True)
        drawings.append(Drawing(f"edits-{k}", f"Scores as {k} edits pile up. {table.title}", figure))
    return drawings


def pair_of_axes(
    left: Mapping[str, Mapping[float, float]], right: Mapping[str, Mapping[float, float]], x: str, y: str, other_y: str
) -> Figure:
    """Two quantities against one number, at even distances: one on the left, the other, dashed, on the right.

    Args:
        left: Name to number to value.
        right: The same names and numbers.
        x: What the numbers are.
        y: The quantity on the left.
        other_y: That on the right.
    """
    numbers = sorted({number for line in left.values() for number in line})
    with styled():
        figure = Figure(figsize=(5.5, 3.0), layout="constrained")
        axes = figure.add_subplot()
        other = axes.twinx()
        for scale, lines, dash, quantity in ((axes, left, "-", y), (other, right, "--", other_y)):
            for index, (name, line) in enumerate(lines.items()):
                places = [numbers.index(number) for number in line]
                style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": dash}
                label = f"{name}: {quantity}"
                scale.plot(places, list(line.values()), markersize=4, linewidth=1, label=label, **style)
            scale.set_ylabel(quantity)
            scale.set_ylim(bottom=0)
        other.spines["right"].set_visible(True)
        axes.set_xticks(range(len(numbers)), [f"{number:g}" for number in numbers])
        axes.set_xlabel(x)
        legend(figure, columns=2)
        return figure


def drifts(rows: Sequence[Mapping[str, Any]], quantities: Mapping[str, str]) -> Figure:
    """Several quantities against the number of edits, each in a panel and a unit of its own, with 95 % intervals.

    Args:
        rows: With ``editor``, ``edits``, ``quantity``, ``value``, ``low``, ``high``; shares from 0 to 1 are shown in
            percent if the quantity's name says so.
        quantities: Their names.
    """
    numbers = sorted({row["edits"] for row in rows})
    methods = list(dict.fromkeys(row["editor"] for row in rows))
    with styled():
        figure = Figure(figsize=(2.5 * len(quantities), 3.0), layout="constrained")
        for axes, (quantity, name) in zip(figure.subplots(1, len(quantities)), quantities.items(), strict=True):
            for index, method in enumerate(methods):
                own = [row for row in rows if (row["editor"], row["quantity"]) == (method, quantity)]
                values, ends = in_percent(own)
                scale = 1.0 if "percent" in name else 0.01
                places = [numbers.index(row["edits"]) + 0.06 * index for row in own]  # intervals beside each other
                style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index]}
                scaled = [[scale * end for end in side] for side in ends]
                heights = [scale * value for value in values]
                axes.errorbar(places, heights, yerr=scaled, markersize=4, linewidth=1, label=method, **style)
            axes.set_title(name, fontsize=9)
            axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
            axes.set_ylim((-4, 104) if "percent" in name else (0, None))
        figure.supxlabel("edits so far", fontsize=9)
        legend(figure)
        return figure


def clouds(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Points in a plane: a row of panels each with one or more clouds.

    Args:
        rows: Title of a row to title of a panel to name of a cloud to its points ``[n, 2]``. Axes have no unit.
    """
    with styled():
        columns = max(map(len, rows.values()))
        figure = Figure(figsize=(2.4 * columns, 0.5 + 2.3 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, (row, panel) in zip(grid, rows.items(), strict=True):
            line[0].set_ylabel(row)
            for axes, (title, found) in zip(line, panel.items(), strict=True):
                for index, (name, points) in enumerate(found.items()):
                    style: dict[str, Any] = {"color": COLOURS[index], "marker": "ox^v"[index % 4], "linewidths": 0.8}
                    axes.scatter(*points.T, s=8, alpha=0.7, label=name, **style)
                axes.set_title(title, fontsize=8)
                axes.set_xticks([])
                axes.set_yticks([])
        legend(figure)
        return figure


def cards(cases: Sequence[Sequence[tuple[Any, str]]]) -> Figure:
    """Cases as rows of cards: a picture, if there is one, with a text below it.

    Args:
        cases: For each, its cards: pixels ``[H, W, 3]`` or None, and lines of text that fit the card.
    """
    with styled():
        columns = max(map(len, cases))
        lines = max(text.count("\n") + 1 for case in cases for _, text in case)
        height = 1.1 + 0.13 * lines
        figure = Figure(figsize=(1.75 * columns, height * len(cases)), layout="constrained")
        grid = figure.subplots(len(cases), columns, squeeze=False)
        for line, case in zip(grid, cases, strict=True):
            for axes, card in itertools.zip_longest(line, case):
                axes.set_axis_off()
                if card is None:
                    continue
                pixels, text = card
                axes.set_anchor("N")
                axes.imshow(pixels if pixels is not None else [[(0, 0, 0, 0)]])
                axes.text(0, -0.04, text, transform=axes.transAxes, va="top", fontsize=6.5)
        return figure


def measured(methods: Iterable[Scores]) -> list[str]:
    """The metrics that any of several methods has, in the order of tables."""
    there = {metric for scores in methods for metric in scores}
    return [metric for metric in SHORT if metric in there]


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
