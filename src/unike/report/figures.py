"""The figures of a report: bars for tables, dots for many methods, curves against a number, histograms of notes."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

from unike.bench.outcome import CaseResult
from unike.bench.summary import column, select
from unike.bench.verdicts import metric_heads
from unike.data.queries import probe_kinds
from unike.report.blocks import Block
from unike.report.cells import Table
from unike.report.drawing import (
    A_ROW,
    COLOURS,
    GRID,
    INCHES_A_BAR,
    INK,
    MARKERS,
    Drawing,
    Scores,
    as_element,
    in_percent,
    legend,
    panels,
    styled,
)


def bars(block: Block, label: str) -> str:
    """A block of a table: for each metric a bar a method, in percent with its 95 % interval.

    Args:
        block: Of one view.
        label: What the figure shows, for who cannot see it.

    Returns:
        An ``<svg>``. A score that is not defined is written ``n/a``.
    """
    found = {entry.method: column(entry.rows) for entry in block.entries}
    metrics = [metric for metric in metric_heads() if any(metric in rows for rows in found.values())]
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
        axes.set_xticks(range(len(metrics)), [metric_heads()[metric] for metric in metrics])
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 105)
        axes.set_ylabel("percent")
        figure.legend(loc="outside upper left", ncols=max(1, int(width // 2)), frameon=False)
        return as_element(figure, label)


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
    kinds = [kind for kind in probe_kinds() if found.get(kind)]
    if not kinds:
        return None
    everything = [value for kind in kinds for value in found[kind]]
    ends = min(0.0, *everything), max(1.0, *everything)
    with styled():
        figure = Figure(figsize=(1.5 * A_ROW, 1.6 * math.ceil(len(kinds) / A_ROW)), layout="constrained")
        for axes, kind in panels(figure, kinds):
            shares = [100 / len(found[kind])] * len(found[kind])
            axes.hist(found[kind], bins=20, range=ends, weights=shares, color=COLOURS[0])
            axes.set_title(f"{probe_kinds()[kind].short} (n {len(found[kind])})", fontsize=9)
            axes.tick_params(labelbottom=True)
        figure.supxlabel(what, fontsize=9)
        figure.supylabel("percent of questions", fontsize=9)
        return as_element(figure, label)


def dots(methods: Mapping[str, Scores], view: str) -> Figure:
    """Methods by metrics, for more methods than bars could show: a dot with its 95 % interval, in percent.

    Args:
        methods: From top to bottom. A score that is not defined is left out.
        view: Of all scores, see `unike.bench.protocols.base.views`.
    """
    metrics = measured(methods.values())
    with styled():
        names = 0.075 * max(map(len, methods))
        figure = Figure(figsize=(names + 1.05 * len(metrics), 0.7 + 0.24 * len(methods)), layout="constrained")
        grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False).flat
        for axes, metric in zip(grid, metrics, strict=True):
            values, ends = in_percent([scores.get(metric) for scores in methods.values()])
            axes.errorbar(values, range(len(methods)), xerr=ends, fmt="o", color=COLOURS[0], markersize=4, linewidth=1)
            axes.set_title(metric_heads()[metric], fontsize=9)
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
        view: Of all scores, see `unike.bench.protocols.base.views`.
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
            axes.set_title(metric_heads()[metric], fontsize=9)
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
                k = block.header.spec.k
                line = found[k][entry.method]
                line[int(edits)] = column(entry.rows)
                line[k] = column(select(entry.measurement.rows, table.view, setting))
    drawings = []
    for k, lines in found.items():
        in_order = {method: dict(sorted(line.items())) for method, line in lines.items()}
        figure = curves(in_order, "edits so far", table.view, even=True)
        drawings.append(Drawing(f"edits-{k}", f"Scores as {k} edits pile up. {table.title}", figure))
    return drawings


def measured(methods: Iterable[Scores]) -> list[str]:
    """The metrics that any of several methods has, in the order of tables."""
    there = {metric for scores in methods for metric in scores}
    return [metric for metric in metric_heads() if metric in there]
