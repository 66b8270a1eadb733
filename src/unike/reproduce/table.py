"""A table of the paper with the same table measured here beside it, as Markdown, a page and CSV.

Each table shows one protocol of ours, which its title names; the paper's figures are teacher-forced, of its own model
and data, and every row says whose it is. Nothing of the paper enters what is measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from unike import report
from unike.bench.results import find_runs, read_run
from unike.bench.verdicts import metric_heads
from unike.core.files import replace_file
from unike.core.progress import Progress, silent
from unike.report import Measurement, Table
from unike.report.cells import Cell
from unike.reproduce import published
from unike.reproduce.methods import ABLATION_ROWS, METHODS
from unike.reproduce.plan import SEQUENCES, TASKS, Report
from unike.reproduce.published import METRICS, PROPERTIES, Block
from unike.reproduce.request import PROTOCOLS, Reproduction
from unike.studies.ablation import ROWS

SCORERS = {
    "mmedit": ("token", "top1", "top10"),
    "teacher_forced": ("token", "gold_token"),
    "strict": ("exact",),
}
"""Protocol to the scorers that stand beside the paper's figures; where several say something, the last."""

TOLD = {
    "mmedit": "mmedit (as the published toolkit: teacher-forced; locality at every position)",
    "teacher_forced": "teacher_forced (share of gold tokens; locality at the gold tokens, as the paper's code)",
    "strict": "strict (what the model says; exact match)",
}

HERE, THERE = "here", "published"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """What was measured here of one method in one block.

    Attributes:
        method: Name of `METHODS`, or of a row of the ablation.
        task: ``vqa``, ``caption`` or ``both``.
        k: Edits in a sequence.
        measurement: The runs.
    """

    method: str
    task: str
    k: int
    measurement: Measurement

    def scores(self, protocol: str) -> dict[str, Row]:
        """Metric to the row of its summary, at the end of sequences."""
        setting = self.measurement.header.spec.setting
        found: dict[str, Row] = {}
        for scorer in SCORERS[protocol]:
            for row in self.measurement.rows:
                if (row["setting"], row["protocol"], row["scorer"]) == (setting, protocol, scorer):
                    found[row["metric"]] = row
        return found


def write(step: Report, wanted: Reproduction, *, progress: Progress = silent) -> list[Path]:
    """Write a table: ``table1.md``, ``table1.html`` and, number by number, ``table1.csv``.

    Raises:
        UnikeError: There are no runs, or what is there cannot be read.
    """
    columns = ablation_columns(step.places, progress) if step.table == 4 else bench_columns(step.places, progress)
    measurements = list(dict.fromkeys(column.measurement for column in columns))
    beside = [
        table
        for protocol in PROTOCOLS
        for model in compared_models(step.table, wanted)
        for table in [table_beside(step.table, model, protocol, columns, wanted)]
    ]
    tables = [*beside, *report.report_tables(measurements, report.views_of(measurements))]
    title, preface = f"Table {step.table} of the paper, reproduced", told_before(step.table, wanted)
    studies = report.find_studies(step.places)
    page = report.to_html(
        measurements, tables, None, data=wanted.data, studies=studies, details=False, progress=progress
    )
    texts = {
        ".md": report.to_markdown(measurements, tables, title=title, preface=preface),
        ".html": page,
        ".csv": report.rows_to_csv(list(numbers(step.table, columns))),
    }
    files = [step.folder.with_suffix(suffix) for suffix in texts]
    for file, text in zip(files, texts.values(), strict=True):
        replace_file(file, text.encode(errors="replace"))
    return files


def told_before(table: int, wanted: Reproduction) -> str:
    """What is to be known before the numbers are read."""
    figures = f"Rows called {THERE} are the paper's own: {published.source()}; {published.protocol()}, on MMEdit."
    ours = f"Rows called {HERE} were measured by this package with {wanted.spec.model} on {wanted.family}"
    doubts = []
    if wanted.stands_for is None:
        doubts.append("the model is none of the paper's")
    if wanted.family != "mmedit":
        doubts.append("the data is not the paper's")
    if wanted.spec.limit is not None:
        doubts.append(f"at most {wanted.spec.limit} cases were edited")
    said = f", and do not compare as they stand: {', '.join(doubts)}." if doubts else "."
    return f"{figures} {ours}{said}"


# ---------------------------------------------------------------------- what was measured here


def bench_columns(places: Sequence[Path], progress: Progress = silent) -> list[Column]:
    """Of Tables 1, 2 and 3: folders of runs are called ``{method}-...``; others are passed over."""
    found = []
    for measurement in report.read([place for place in places if place.is_dir()], progress=progress):
        method = next(iter(measurement.runs)).name.partition("-")[0]
        spec = measurement.header.spec
        task = "both" if spec.setting == "cross-task" else spec.dataset.partition("-")[2]
        if method in METHODS:
            found.append(Column(method, task, spec.k, measurement))
    return found


def ablation_columns(places: Sequence[Path], progress: Progress = silent) -> list[Column]:
    """Of Table 4: a study for each task, and in it a folder for each of its rows, under the study's names."""
    names = {row.folder: row.name for row in ROWS}
    found: list[Column] = []
    runs = [folder for place in places for folder in find_runs(place) if folder.name in names]
    for task in TASKS:
        groups: dict[str, dict[Path, Any]] = {row.name: {} for row in ROWS}
        for number, folder in enumerate(runs):
            progress("reading runs", number, len(runs))
            run = read_run(folder)
            if run.header.spec.dataset.partition("-")[2] == task:
                groups[names[folder.name]][folder] = run
        measured = report.named({name: group for name, group in groups.items() if group})
        found += [Column(m.method, task, 1, replace(m, number=m.number + len(found))) for m in measured]
    return found


def compared_models(table: int, wanted: Reproduction) -> list[str]:
    """The paper's models whose figures stand beside: that which the model is, else all that the table has."""
    there = list(dict.fromkeys(block.model for block in published.blocks() if block.table == table))
    return [wanted.stands_for] if wanted.stands_for in there else there if table != 5 else ["both"]


def rows_of(table: int, columns: Sequence[Column]) -> Iterator[tuple[str, str, str]]:
    """Row of the paper, whose it is, and, of ours, the method: ours first, then the paper's; then what it lacks."""
    own = {name: method.row for name, method in METHODS.items()} if table != 4 else ABLATION_ROWS
    measured = list(dict.fromkeys(column.method for column in columns))
    blocks = [block for block in published.blocks() if block.table == table]
    for row in dict.fromkeys(row for block in blocks for row in block.rows):
        yield from ((row, HERE, method) for method in own if own[method] == row and method in measured)
        yield row, THERE, ""
    known = {row for block in blocks for row in block.rows}
    yield from ((own.get(method, ""), HERE, method) for method in measured if own.get(method, "") not in known)


# ---------------------------------------------------------------------- side by side


def table_beside(table: int, model: str, protocol: str, columns: Sequence[Column], wanted: Reproduction) -> Table:
    """One of the paper's tables, ours and theirs row by row.

    Args:
        table: Its number.
        model: One of the paper's, whose figures stand beside; ``both`` for Table 5.
        protocol: Of our numbers.
        columns: What was measured.
        wanted: What was asked for.
    """
    blocks = [block for block in published.blocks() if block.table == table and model in (block.model, "both")]
    if table == 5:
        blocks = [block for block in published.blocks() if block.table == 5]
    rows = []
    for row, whose, method in rows_of(table, columns):
        cells: list[Cell] = []
        for block in blocks:
            if whose == THERE:
                cells += [Cell(""), *(Cell(f"{figure:.1f}") for figure in block.rows.get(row, ()))]
                cells += [Cell("")] * (len(block.columns) - len(block.rows.get(row, ())))
            else:
                cells += own_cells(block, method, protocol, columns)
        name = method if whose == HERE else published.method_title(row)
        rows.append((f"{name}, {whose}", tuple(cells)))
    heads = tuple((block.title, ("n", *(head(name, table) for name in block.columns))) for block in blocks)
    which = published.model_title("both" if table == 5 else model)
    return Table(
        f"Table {table} beside the paper's of {which}: {TOLD[protocol]}, percent [95 % interval]",
        heads,
        tuple(rows),
        tuple(notes(table, protocol, columns, wanted)),
        of="method",
    )


def head(name: str, table: int) -> str:
    """``"T-Gen."`` of ``t_generality``; in Table 5, ``"Generality"`` of what several are averaged to."""
    return name.capitalize() if table == 5 else metric_heads()[name]


def own_cells(block: Block, method: str, protocol: str, columns: Sequence[Column]) -> list[Cell]:
    """How many edits, and a score for each of the block's columns; n/a for what was not measured."""
    if block.table == 5:
        return mean_cells(block, method, protocol, columns)
    column = chosen(columns, method, block.task, block.k)
    if column is None:
        return [Cell()] * (1 + len(block.columns))
    scores = column.scores(protocol)
    found = [
        Cell(str(scores["reliability"]["n"]) if "reliability" in scores else "n/a", measurement=column.measurement)
    ]
    return found + [score_cell(scores.get(name), column.measurement) for name in block.columns]


def score_cell(row: Row | None, measurement: Measurement) -> Cell:
    """A share in percent with its interval."""
    if row is None or row["value"] is None:
        return Cell(measurement=measurement)
    return Cell(f"{100 * row['value']:.1f}", row["value"], (row["low"], row["high"]), row["n"], measurement)


def mean_cells(block: Block, method: str, protocol: str, columns: Sequence[Column]) -> list[Cell]:
    """Of Table 5: means over tasks, numbers of edits and sub-metrics; n/a if one of them was not measured."""
    sizes = (1,) if block.setting == "one-step" else SEQUENCES
    parts = [chosen(columns, method, task, k) for task in TASKS for k in sizes]
    if any(part is None for part in parts):
        return [Cell()] * (1 + len(block.columns))
    scores = [part.scores(protocol) for part in parts if part is not None]
    count = sum(each["reliability"]["n"] for each in scores if "reliability" in each)
    cells = [Cell(str(count))]
    for name in block.columns:
        rows = [each.get(metric) for each in scores for metric in PROPERTIES[name]]
        values = [row["value"] for row in rows if row is not None and row["value"] is not None]
        cells.append(Cell(f"{100 * fmean(values):.1f}", fmean(values)) if len(values) == len(rows) else Cell())
    return cells


def chosen(columns: Sequence[Column], method: str, task: str, k: int) -> Column | None:
    """What was measured of a method in a block; of several, that with the most edits."""
    there = [each for each in columns if (each.method, each.task, each.k) == (method, task, k)]
    return max(there, key=lambda each: each.measurement.done, default=None)


def notes(table: int, protocol: str, columns: Sequence[Column], wanted: Reproduction) -> Iterator[str]:
    """Sentences below a table."""
    headers = [column.measurement.header for column in columns]
    models = dict.fromkeys(f"{h.spec.model} ({h.fingerprint}, {h.spec.dtype})" for h in headers)
    data = dict.fromkeys(f"{h.spec.dataset} {h.spec.split} (cases {h.cases})" for h in headers)
    yield f"{HERE}: {', '.join(models)} on {', '.join(data)}; n: edits asked about."
    yield f"{THERE}: {published.source()}; {published.protocol()}, the paper's models on MMEdit."
    if protocol == "strict":
        yield "Strict asks for more than teacher-forcing does: these two kinds of rows are not one measure."
    if table == 5:
        yield "Means as in the paper: over both tasks, K = 10 and 20, and the text and image sub-metrics."
        yield "The paper's one-step means are over both of its models, ours of one."
    if table == 3:
        yield "Knowledge and networks here are those of E-VQA; the paper does not say what its own were made from."
    if table == 4:
        yield "Intrin + IKE has its demonstrations from PocketEdit; rows without a published one are not in the paper."
    unfinished = [column for column in columns if not column.measurement.finished]
    if unfinished:
        told = [f"{c.method} {c.task} {c.measurement.done} of {c.measurement.planned}" for c in unfinished]
        yield f"Unfinished: {'; '.join(told)}."


# ---------------------------------------------------------------------- number by number


def numbers(table: int, columns: Sequence[Column]) -> Iterator[dict[str, Any]]:
    """A row for each number of ours, with the paper's beside it (of its two models, in columns of their own)."""
    own = {name: method.row for name, method in METHODS.items()} if table != 4 else ABLATION_ROWS
    sources = [block for block in published.blocks() if block.table in ((1, 2) if table == 5 else (table,))]
    for column in columns:
        for protocol in PROTOCOLS:
            scores = column.scores(protocol)
            for metric in METRICS:
                row = scores.get(metric, {})
                found = {
                    "method": column.method,
                    "task": column.task,
                    "k": column.k,
                    "metric": metric,
                    "protocol": protocol,
                    "scorer": row.get("scorer"),
                    **{f"{HERE}_{key}": row.get(key) for key in ("value", "low", "high", "n")},
                }
                for model in published.MODELS:
                    there = [
                        block.figures(own.get(column.method, "")).get(metric)
                        for block in sources
                        if (block.model, block.task, block.k) == (model, column.task, column.k)
                    ]
                    found[f"{THERE}_{model}_percent"] = there[0] if there else None
                yield found
