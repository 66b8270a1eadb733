"""Tables in the layout of the paper: one-step (Table 1), sequential (2), cross-task (3), and their summary (5).

A table shows one view, a protocol with one scorer a metric, of one model. What may stand side by side is a *block*: in
one-step editing a task (E-VQA, E-IC), in sequences the number of edits K. All numbers of a block were measured under
the same conditions; anything else is refused, never mixed. The one table that has two protocols says so in the heads of
its columns: how much kinder ``teacher_forced`` is than ``strict``.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from unike.bench.metrics import METRICS, the_protocol
from unike.bench.results import VIEWS, column, select
from unike.bench.runner import check_names
from unike.core.errors import UnikeError
from unike.report.measurements import CONDITIONS, MODEL, Measurement, check_shared

SHORT = {
    "reliability": "Rel.",
    "t_generality": "T-Gen.",
    "m_generality": "M-Gen.",
    "t_locality": "T-Loc.",
    "m_locality": "M-Loc.",
    "specificity": "Spec.",
    "portability": "Port.",
}
"""Heads of columns, as the paper has them; the last two are beside it, outside of the average."""

FIVE = METRICS[:5]
"""The paper's metrics, and what Avg. is the mean of."""

PROPERTIES = {"Rel.": FIVE[:1], "Gen.": FIVE[1:3], "Loc.": FIVE[3:5]}
"""The three properties of Table 5, each the mean of its metrics."""

TASKS = {"vqa": "E-VQA", "caption": "E-IC"}

SETTINGS = {"one-step": "One-step", "sequential": "Sequential", "cross-task": "Cross-task"}


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Attributes:
        text: What it shows: a share in percent, a difference in points, or a number of cases.
        value: A share from 0 to 1, of which more is better; None for everything else.
        interval: Ends of the 95 % interval.
        n: How many questions the number is a mean of.
        source: Whose number it is.
        best: Whether no finished method has a better one in this column.
        remark: What else is to be said of it.
    """

    text: str = "n/a"
    value: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    source: Measurement | None = None
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
class Entry:
    """One method's numbers in a block.

    Attributes:
        source: The measurement they are of.
        rows: Of its summary.
    """

    source: Measurement
    rows: Sequence[Mapping[str, Any]]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.source.method


@dataclass(frozen=True)
class Block:
    """What stands side by side in a table: columns that were measured under the same conditions.

    Attributes:
        title: Of the columns together: ``"E-VQA"``, ``"K = 10"``.
        entries: One a method.

    Raises:
        UnikeError: Something was measured under other conditions, or one method comes twice.
    """

    title: str
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        check_shared(CONDITIONS, [entry.source.header for entry in self.entries])
        methods = [entry.method for entry in self.entries]
        if len({*methods}) < len(methods):
            raise UnikeError(f"one table cannot have the same method twice ({', '.join(sorted(methods))})")

    @property
    def header(self) -> dict[str, Any]:
        """Of any of its runs; all have the same conditions."""
        return self.entries[0].source.header

    @property
    def conditions(self) -> str:
        """What all its numbers have in common, for people."""
        header = self.header
        return (
            f"{self.title}: {header['dataset']} {header['split']} (cases {header['cases']}), "
            f"answers of at most {header['max_new_tokens']} tokens"
        )


@dataclass(frozen=True)
class Table:
    """A table to be rendered.

    Attributes:
        title: What it shows and under which protocol.
        heads: For each block, its title and the heads of its columns.
        rows: The method, and its cells through all blocks.
        notes: Sentences below it.
        blocks: Whose scores it has, for figures; none if it sums up or compares.
        view: Which scores, one of `unike.bench.results.VIEWS`; empty without blocks.
        of: What a row is.
    """

    title: str
    heads: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    view: str = ""
    of: str = "method"


def report_tables(measurements: Sequence[Measurement], views: Sequence[str]) -> list[Table]:
    """Every table of a report: those of each view, then what the views differ in, then the summaries.

    Args:
        measurements: What was measured.
        views: Of `unike.bench.results.VIEWS`.

    Raises:
        UnikeError: No such view.
    """
    tables = [score_table(blocks, view) for view in views for blocks in arrange(measurements, view)]
    if {"strict/exact", "teacher_forced/em"} <= {*views}:
        tables += gap_tables(measurements)
    return tables + [table for view in views for table in summary_tables(measurements, view)]


def views_of(measurements: Iterable[Measurement], protocols: Sequence[str] | None = None) -> list[str]:
    """The views that there are numbers for.

    Args:
        measurements: What was measured.
        protocols: Only of these; all if None.

    Raises:
        UnikeError: No run has such a protocol.
    """
    there = {row["protocol"] for measurement in measurements for row in measurement.rows}
    for protocol in protocols or ():
        if protocol not in there:
            raise UnikeError(f"no run has the protocol {protocol!r} (there: {', '.join(sorted(there)) or 'none'})")
    wanted = there if protocols is None else {*protocols}
    return [view for view in VIEWS if view.partition("/")[0] in wanted]


# ---------------------------------------------------------------------- what stands side by side


def arrange(measurements: Sequence[Measurement], view: str) -> list[tuple[Block, ...]]:
    """The blocks of each table that a view needs.

    Blocks stand side by side if their titles tell them apart. If they do not (two versions of the data, for example),
    each is a table of its own.

    Raises:
        UnikeError: No such view.
    """
    check_names("view", [view], list(VIEWS))
    entries: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for measurement in measurements:
        for setting in measurement.settings:
            if rows := select(measurement.rows, view, setting):
                entries[(setting, *measurement.conditions())].append(Entry(measurement, rows))
    tables: dict[tuple[Any, ...], list[Block]] = defaultdict(list)
    for (setting, *_), found in entries.items():
        header = found[0].source.header
        when = setting.partition(":")[2]
        family, _, task = header["dataset"].partition("-")
        side: tuple[str, ...]
        if setting == "one-step":
            side = (family,)
            title = TASKS.get(task, header["dataset"])
        else:
            # The end, "own", and all intermediate times, are a table each.
            side = (header["dataset"], header["cases"], header["max_new_tokens"], when.partition("-")[0])
            title = f"K = {header['k']}" + (f", {times(when)}" if when.startswith("at-") else "")
        shared = (header["setting"], *(header[key] for key in MODEL), header["split"])
        tables[(*shared, *side)].append(Block(title, tuple(found)))
    arranged: list[tuple[Block, ...]] = []
    for blocks in tables.values():
        told_apart = len({block.title for block in blocks}) == len(blocks)
        arranged += [tuple(blocks)] if told_apart else [(block,) for block in blocks]
    return arranged


def times(when: str) -> str:
    """When a sequence was asked, in words.

    >>> times("at-10")
    'after 10'
    """
    return {"": "at the end", "own": "right after each edit"}.get(when, when.replace("at-", "after "))


def at_the_end(block: Block) -> bool:
    """Whether its questions were asked after the last edit; in one-step editing, all are."""
    return ":" not in block.entries[0].rows[0]["setting"]


# ---------------------------------------------------------------------- tables


def score_table(blocks: Sequence[Block], view: str) -> Table:
    """Methods by metrics, in the layout of Tables 1 to 3; specificity and portability stand beside Avg.

    Args:
        blocks: Of one model and setting; numbers of ``view`` alone.
        view: One of `unike.bench.results.VIEWS`.

    Raises:
        UnikeError: Blocks that do not belong together, or rows of another view.
    """
    _check_view(blocks, view)
    beside = [
        metric
        for metric in SHORT
        if metric not in FIVE
        and any(row["metric"] == metric for block in blocks for entry in block.entries for row in entry.rows)
    ]
    titles = ("n", *(SHORT[metric] for metric in FIVE), "Avg.", *(SHORT[metric] for metric in beside))

    def cells(entry: Entry) -> list[Cell]:
        found = column(entry.rows)
        scores = {metric: _score(found.get(metric), entry.source) for metric in SHORT}
        average = _mean([scores[metric] for metric in FIVE], entry.source)
        return [_count(entry, found), *(scores[m] for m in FIVE), average, *(scores[m] for m in beside)]

    notes = ["n: edits asked about. Avg.: mean of the five metrics before it. Bold: the best of those that finished."]
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
    _check_view(strict, "strict/exact")
    _check_view(kinder, "teacher_forced/em")
    other = {entry.source: column(entry.rows) for block in kinder for entry in block.entries}
    titles = tuple(f"{name} {what}" for name in PROPERTIES for what in ("strict", "teacher-forced", "gap"))

    def cells(entry: Entry) -> list[Cell]:
        sides = (column(entry.rows), other.get(entry.source, {}))
        found = []
        for metrics in PROPERTIES.values():
            low, high = (_mean([_score(rows.get(m), entry.source) for m in metrics], entry.source) for rows in sides)
            found += [low, high, _difference(high, low)]
        return found

    notes = ["Gen. and Loc. are means of their two metrics (text, multimodal). gap: teacher-forced minus strict."]
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
            header = block.header
            if at_the_end(block) and header["setting"] != "cross-task":
                data = (*(header[key] for key in MODEL), header["dataset"].partition("-")[0], header["split"])
                sides[data][SETTINGS[header["setting"]]].append(block)
    return [
        _summary(settings, view)
        for settings in sides.values()
        if any(len(blocks) > 1 for blocks in settings.values())
        and all(len({_place(block) for block in blocks}) == len(blocks) for blocks in settings.values())
    ]


def _summary(settings: Mapping[str, Sequence[Block]], view: str) -> Table:
    all_blocks = [block for blocks in settings.values() for block in blocks]
    check_shared(MODEL, [entry.source.header for block in all_blocks for entry in block.entries])
    rows: dict[str, list[Cell]] = {entry.method: [] for block in all_blocks for entry in block.entries}
    for blocks in settings.values():
        for method, cells in rows.items():
            entries = [entry for block in blocks for entry in block.entries if entry.method == method]
            for metrics in PROPERTIES.values():
                scores = [
                    _score(column(entry.rows).get(metric), entry.source) for entry in entries for metric in metrics
                ]
                cells.append(_mean(scores if len(entries) == len(blocks) else [], None))
    measured = [f"{title}: {', '.join(' '.join(map(str, _place(b))) for b in settings[title])}" for title in settings]
    unfinished = {entry.method for b in all_blocks for entry in b.entries if not entry.source.finished}
    return Table(
        f"Summary over tasks and sub-metrics; {_model(all_blocks[0])}: {view}, percent",
        tuple((f"{title} editing", tuple(PROPERTIES)) for title in settings),
        _with_best(rows, unfinished),
        (f"Means over {'; '.join(measured)}. n/a: not measured in all of them.", *_unfinished(all_blocks)),
    )


def _place(block: Block) -> tuple[Any, ...]:
    header = block.header
    return (header["dataset"],) if header["setting"] == "one-step" else (header["dataset"], f"K = {header['k']}")


# ---------------------------------------------------------------------- parts


def _table(
    title: str,
    blocks: Sequence[Block],
    titles: tuple[str, ...],
    cells: Callable[[Entry], list[Cell]],
    notes: Sequence[str],
) -> Table:
    """The same columns for each block, a row for each method of any."""
    check_shared((*MODEL, "setting"), [entry.source.header for block in blocks for entry in block.entries])
    rows: dict[str, list[Cell]] = {entry.method: [] for block in blocks for entry in block.entries}
    unfinished = set()
    for block in blocks:
        entries = {entry.method: entry for entry in block.entries}
        unfinished |= {method for method, entry in entries.items() if not entry.source.finished}
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
        f"{entry.method}, {block.title}: {entry.source.done} of {entry.source.planned} cases"
        for block in blocks
        for entry in block.entries
        if not entry.source.finished
    ]
    return [f"Unfinished: {'; '.join(found)}."] if found else []


def _with_best(
    rows: Mapping[str, Sequence[Cell]], unfinished: Container[str]
) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    """Mark the highest share of each column, and all that read the same; of one method alone, nothing is best."""
    found = {method: list(cells) for method, cells in rows.items()}
    for place in range(len(next(iter(found.values())))):
        shares = {method: cells[place] for method, cells in found.items() if cells[place].value is not None}
        finished = {method: cell for method, cell in shares.items() if method not in unfinished}
        highest = max(finished.values(), key=_value).text if finished and len(shares) > 1 else None
        for method, cell in finished.items():
            if cell.text == highest:
                found[method][place] = replace(cell, best=True)
    return tuple((method, tuple(cells)) for method, cells in found.items())


def _score(row: Mapping[str, Any] | None, source: Measurement) -> Cell:
    if row is None or row["value"] is None:
        return Cell(source=source)
    return Cell(f"{100 * row['value']:.1f}", row["value"], (row["low"], row["high"]), row["n"], source)


def _mean(cells: Sequence[Cell], source: Measurement | None) -> Cell:
    """The mean of shares that are all there."""
    values = [cell.value for cell in cells if cell.value is not None]
    if not values or len(values) < len(cells):
        return Cell(source=source)
    return Cell(f"{100 * fmean(values):.1f}", fmean(values), source=source)


def _difference(one: Cell, other: Cell) -> Cell:
    """In points, signed."""
    if one.value is None or other.value is None:
        return Cell(source=one.source)
    return Cell(f"{100 * (one.value - other.value):+.1f}", source=one.source)


def _count(entry: Entry, found: Mapping[str, Mapping[str, Any]]) -> Cell:
    """How many edits were asked about, and how far an unfinished run is."""
    text, source = str(found["reliability"]["n"]) if "reliability" in found else "n/a", entry.source
    return Cell(text, source=source, remark="" if source.finished else f"unfinished: {source.done} of {source.planned}")


def _value(cell: Cell) -> float:
    return -1.0 if cell.value is None else cell.value


def _title(blocks: Sequence[Block], what: str) -> str:
    setting, _, when = blocks[0].entries[0].rows[0]["setting"].partition(":")
    on = "" if setting == "one-step" else f" on {_data(blocks[0].header['dataset'])}"
    then = {"": "", "own": f", asked {times(when)}"}.get(when, ", asked on the way")
    return f"{SETTINGS.get(setting, setting)} editing{on}{then}; {_model(blocks[0])}: {what}"


def _data(dataset: str) -> str:
    """``"E-VQA + E-IC"`` for ``"pocket-vqa+pocket-caption"``."""
    return " + ".join(TASKS.get(name.partition("-")[2], name) for name in dataset.split("+"))


def _model(block: Block) -> str:
    model, fingerprint, dtype = (block.header[key] for key in MODEL)
    return f"{model} ({fingerprint}, {dtype})"


def _check_view(blocks: Sequence[Block], view: str) -> None:
    """Refuse rows that another protocol or scorer made, or another time of a sequence.

    Raises:
        UnikeError: There are some.
    """
    check_names("view", [view], list(VIEWS))
    rows = [row for block in blocks for entry in block.entries for row in entry.rows]
    the_protocol([view.partition("/")[0], *(row["protocol"] for row in rows)])
    others = sorted({row["scorer"] for row in rows} - {*VIEWS[view]})
    if others:
        raise UnikeError(f"a table of {view} cannot have the scorer {', '.join(others)}; make a table of each")
    for block in blocks:
        if len({row["setting"] for entry in block.entries for row in entry.rows}) > 1:
            raise UnikeError(f"{block.title} mixes numbers of several times of a sequence; make a table of each")
