"""Tables in the layout of the paper: one-step (Table 1), sequential (2), cross-task (3), and their summary (5).

A table shows one view, a protocol with one scorer a metric, of one model. What may stand side by side is a *block*: in
one-step editing a task (E-VQA, E-IC), in sequences the number of edits K. All numbers of a block were measured under
the same conditions; anything else is refused, never mixed. The one table that has two protocols says so in the heads of
its columns: how much kinder ``teacher_forced`` is than ``strict``.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from unike.bench.spec import Role
from unike.bench.summary import column
from unike.bench.verdicts import GARBLED, SCOPE, metric_heads
from unike.data.queries import probe_kinds
from unike.report.blocks import TASKS, Block, Entry, arrange, at_the_end, check_view, times
from unike.report.cells import Cell, Table
from unike.report.measurements import Measurement, check_shared

TITLES = {"one-step": "One-step", "sequential": "Sequential", "cross-task": "Cross-task"}


def averaged() -> dict[str, list[str]]:
    """Scope and the paper's properties, "Gen." for example, and the metrics that each is the mean of."""
    found: dict[str, list[str]] = defaultdict(list, {metric_heads()[SCOPE]: [SCOPE]})
    for kind in probe_kinds().values():
        if kind.of:
            found[kind.of].append(kind.name)
    return dict(found)


def report_tables(measurements: Sequence[Measurement], views: Sequence[str]) -> list[Table]:
    """Every table of a report: those of each view, then what the views differ in, then the summaries.

    Args:
        measurements: What was measured.
        views: Of `unike.bench.protocols.base.views`.

    Raises:
        UnikeError: No such view.
    """
    tables = [score_table(blocks, view) for view in views for blocks in arrange(measurements, view)]
    if {"strict/exact", "teacher_forced/em"} <= {*views}:
        tables += gap_tables(measurements)
    return tables + [table for view in views for table in summary_tables(measurements, view)]


def score_table(blocks: Sequence[Block], view: str) -> Table:
    """Methods by metrics, in the layout of Tables 1 to 3; scope stands first, specificity and the like beside Avg.

    Args:
        blocks: Of one model and setting; numbers of ``view`` alone.
        view: One of `unike.bench.protocols.base.views`.

    Raises:
        UnikeError: Blocks that do not belong together, or rows of another view.
    """
    check_view(blocks, view)
    there = {row["metric"] for block in blocks for entry in block.entries for row in entry.rows}
    averages = [name for name, kind in probe_kinds().items() if kind.of]
    beside = [name for name in metric_heads() if name not in (SCOPE, *averages) and name in there]
    beside += sorted(metric for metric in there if ":" in metric)  # behind the whole: portability by hop
    whole = [SCOPE, *averages, *beside]
    shorts = {name: " ".join([metric_heads()[name.partition(":")[0]], *name.split(":")[1:]]) for name in whole}
    titles = ("n", *(shorts[name] for name in (SCOPE, *averages)), "Avg.", *(shorts[name] for name in beside))

    def cells(entry: Entry) -> list[Cell]:
        found = column(entry.rows)
        scores = {metric: _score(found.get(metric), entry.measurement) for metric in shorts}
        average = _mean([scores[name] for name in averages], entry.measurement)
        first = [_count(entry, found), *(scores[name] for name in (SCOPE, *averages))]
        return [*first, average, *(scores[name] for name in beside)]

    notes = [
        "n: edits asked about. Scope: edits with every question right but portability. "
        "Avg.: mean of the five metrics before it. Bold: the best of those that finished."
    ]
    table = _table(_title(blocks, f"{view}, percent [95 % interval]"), blocks, titles, cells, notes)
    return replace(table, blocks=tuple(blocks), view=view)


def gap_tables(measurements: Sequence[Measurement]) -> list[Table]:
    """How much kinder ``teacher_forced`` is than ``strict``, wherever both were measured; at the end of sequences."""
    both = [m for m in measurements if {"strict", "teacher_forced"} <= {row["protocol"] for row in m.rows}]
    sides = (arrange(both, view) for view in ("strict/exact", "teacher_forced/em"))
    return [gap_table(strict, kinder) for strict, kinder in zip(*sides, strict=True) if at_the_end(strict[0])]


def gap_table(strict: Sequence[Block], kinder: Sequence[Block]) -> Table:
    """Both protocols for each property, and the difference in points; each column's head names its protocol.

    Args:
        strict: Blocks of ``strict/exact``.
        kinder: The same blocks of ``teacher_forced/em``.

    Raises:
        UnikeError: Blocks that do not belong together, or rows of another view.
    """
    check_view(strict, "strict/exact")
    check_view(kinder, "teacher_forced/em")
    other = {entry.measurement: column(entry.rows) for block in kinder for entry in block.entries}
    titles = tuple(f"{name} {what}" for name in averaged() for what in ("strict", "teacher-forced", "gap"))

    def cells(entry: Entry) -> list[Cell]:
        sides = (column(entry.rows), other.get(entry.measurement, {}))
        found = []
        for metrics in averaged().values():
            low, high = (
                _mean([_score(rows.get(m), entry.measurement) for m in metrics], entry.measurement) for rows in sides
            )
            found += [low, high, _difference(high, low)]
        return found

    notes = [
        "Scope: edits with every question right but portability. Gen. and Loc. are means of their two metrics (text, "
        "multimodal). gap: teacher-forced minus strict."
    ]
    title = _title(strict, "strict/exact beside teacher_forced/em, percent, and the gap in points")
    return _table(title, strict, titles, cells, notes)


def summary_tables(measurements: Sequence[Measurement], view: str) -> list[Table]:
    """Reliability, generality and locality over all tasks and K, in the layout of Table 5; one for each model and data.

    A method that was not measured in all blocks of a setting has no mean there: it would be of easier or harder tasks.
    Where blocks cannot be told apart (see `arrange`) or there is but one, there is nothing to sum up.
    """
    sides: dict[tuple[Any, ...], dict[str, list[Block]]] = defaultdict(lambda: defaultdict(list))
    for blocks in arrange(measurements, view):
        for block in blocks:
            spec = block.header.spec
            if at_the_end(block) and spec.setting != "cross-task":
                data = (*block.header.values(Role.MODEL).values(), spec.dataset.partition("-")[0], spec.split)
                sides[data][TITLES[spec.setting]].append(block)
    return [
        _summary(settings, view)
        for settings in sides.values()
        if any(len(blocks) > 1 for blocks in settings.values())
        and all(len({_place(block) for block in blocks}) == len(blocks) for blocks in settings.values())
    ]


def _summary(settings: Mapping[str, Sequence[Block]], view: str) -> Table:
    all_blocks = [block for blocks in settings.values() for block in blocks]
    check_shared(entry.measurement.header.values(Role.MODEL) for block in all_blocks for entry in block.entries)
    rows: dict[str, list[Cell]] = {entry.method: [] for block in all_blocks for entry in block.entries}
    for blocks in settings.values():
        for method, cells in rows.items():
            entries = [entry for block in blocks for entry in block.entries if entry.method == method]
            for metrics in averaged().values():
                scores = [
                    _score(column(entry.rows).get(metric), entry.measurement) for entry in entries for metric in metrics
                ]
                cells.append(_mean(scores if len(entries) == len(blocks) else [], None))
    measured = [f"{title}: {', '.join(' '.join(map(str, _place(b))) for b in settings[title])}" for title in settings]
    unfinished = {entry.method for b in all_blocks for entry in b.entries if not entry.measurement.finished}
    return Table(
        f"Summary over tasks and sub-metrics; {all_blocks[0].model}: {view}, percent",
        tuple((f"{title} editing", tuple(averaged())) for title in settings),
        _with_best(rows, unfinished),
        (f"Means over {'; '.join(measured)}. n/a: not measured in all of them.", *_unfinished(all_blocks)),
    )


def _place(block: Block) -> tuple[Any, ...]:
    spec = block.header.spec
    return (spec.dataset, f"K = {spec.k}") if spec.in_sequences else (spec.dataset,)


# ---------------------------------------------------------------------- parts


def _table(
    title: str,
    blocks: Sequence[Block],
    titles: tuple[str, ...],
    cells: Callable[[Entry], list[Cell]],
    notes: Sequence[str],
) -> Table:
    """The same columns for each block, a row for each method of any."""
    headers = [entry.measurement.header for block in blocks for entry in block.entries]
    check_shared(header.values(Role.MODEL) | {"setting": header.spec.setting} for header in headers)
    rows: dict[str, list[Cell]] = {entry.method: [] for block in blocks for entry in block.entries}
    unfinished = set()
    for block in blocks:
        entries = {entry.method: entry for entry in block.entries}
        unfinished |= {method for method, entry in entries.items() if not entry.measurement.finished}
        for method, row in rows.items():
            row += cells(entries[method]) if method in entries else [Cell()] * len(titles)
    about = ". ".join(block.conditions for block in blocks) + "."
    return Table(
        title,
        tuple((block.title, titles) for block in blocks),
        _with_best(rows, unfinished),
        (about, *notes, *_unfinished(blocks)),
    )


def _unfinished(blocks: Iterable[Block]) -> list[str]:
    """A note that names what is not finished, if anything."""
    found = [
        f"{entry.method}, {block.title}: {entry.measurement.done} of {entry.measurement.planned} cases"
        for block in blocks
        for entry in block.entries
        if not entry.measurement.finished
    ]
    return [f"Unfinished: {'; '.join(found)}."] if found else []


def _with_best(
    rows: Mapping[str, Sequence[Cell]], unfinished: Container[str]
) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    """Mark the best share of each column, and all that read the same; of one method alone, nothing is best."""
    found = {method: list(cells) for method, cells in rows.items()}
    for place in range(len(next(iter(found.values())))):
        shares = {method: cells[place] for method, cells in found.items() if cells[place].value is not None}
        finished = {method: cell for method, cell in shares.items() if method not in unfinished}
        best = _best(finished.values()).text if finished and len(shares) > 1 else None
        for method, cell in finished.items():
            if cell.text == best:
                found[method][place] = replace(cell, best=True)
    return tuple((method, tuple(cells)) for method, cells in found.items())


def _score(row: Mapping[str, Any] | None, measurement: Measurement) -> Cell:
    if row is None or row["value"] is None:
        return Cell(measurement=measurement)
    text, ends, lower = f"{100 * row['value']:.1f}", (row["low"], row["high"]), row["metric"] == GARBLED
    return Cell(text, row["value"], ends, row["n"], measurement, lower)


def _mean(cells: Sequence[Cell], measurement: Measurement | None) -> Cell:
    """The mean of shares that are all there."""
    values = [cell.value for cell in cells if cell.value is not None]
    if not values or len(values) < len(cells):
        return Cell(measurement=measurement)
    return Cell(f"{100 * fmean(values):.1f}", fmean(values), measurement=measurement)


def _difference(one: Cell, other: Cell) -> Cell:
    """In points, signed."""
    if one.value is None or other.value is None:
        return Cell(measurement=one.measurement)
    return Cell(f"{100 * (one.value - other.value):+.1f}", measurement=one.measurement)


def _count(entry: Entry, found: Mapping[str, Mapping[str, Any]]) -> Cell:
    """How many edits were asked about, and how far an unfinished run is."""
    text, its = str(found["reliability"]["n"]) if "reliability" in found else "n/a", entry.measurement
    remark = "" if its.finished else f"unfinished: {its.done} of {its.planned}"
    return Cell(text, measurement=its, remark=remark)


def _best(cells: Collection[Cell]) -> Cell:
    return max(cells, key=lambda cell: (cell.value or 0.0) * (-1 if cell.lower else 1))


def _title(blocks: Sequence[Block], what: str) -> str:
    setting, _, when = blocks[0].entries[0].rows[0]["setting"].partition(":")
    on = "" if setting == "one-step" else f" on {_data(blocks[0].header.spec.dataset)}"
    then = {"": "", "own": f", asked {times(when)}"}.get(when, ", asked on the way")
    return f"{TITLES.get(setting, setting)} editing{on}{then}; {blocks[0].model}: {what}"


def _data(dataset: str) -> str:
    """``"E-VQA + E-IC"`` for ``"pocket-vqa+pocket-caption"``."""
    return " + ".join(TASKS.get(name.partition("-")[2], name) for name in dataset.split("+"))
