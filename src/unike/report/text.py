"""Reports as text: Markdown for people, CSV for programs."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unike.bench.summary import COLUMNS
from unike.report.cells import Cell, Table
from unike.report.measurements import Measurement

MARKED = re.compile(r"([\\`*|<>\[\]])")
"""What Markdown would read as markup; ``_`` within a word is none."""


FORMULAS = ("=", "+", "-", "@")
"""What a cell that a spreadsheet computes begins with."""


def to_csv(measurements: Sequence[Measurement], protocols: Sequence[str] | None = None) -> str:
    """Every number, in the columns of `COLUMNS`: a row a measurement, time, protocol, scorer and metric.

    Args:
        measurements: What was measured.
        protocols: Only of these; all if None.

    Returns:
        Shares are from 0 to 1, as ``unike bench --json`` has them, and empty where a score is not defined.
    """
    rows = [row for measurement in measurements for row in measurement.rows]
    return rows_to_csv([row for row in rows if protocols is None or row["protocol"] in protocols], COLUMNS)


def rows_to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows with the same keys, under a line of these.

    Args:
        rows: The rows; None is an empty field.
        columns: The keys in their order; those of the first row if None.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _csv_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    """Text that a spreadsheet would compute, as a model's name may be, is marked as text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in FORMULAS:
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def to_markdown(
    measurements: Sequence[Measurement],
    tables: Sequence[Table],
    *,
    title: str = "Report",
    preface: str = "",
    figures: Mapping[str, str] | None = None,
) -> str:
    """The tables, and where their numbers are from.

    Args:
        measurements: What was measured.
        tables: Of it.
        title: Of the whole.
        preface: What is said before the tables.
        figures: File to caption of pictures to show behind the preface.
    """
    pictures = [f"![{_escaped(caption)}]({file})" for file, caption in (figures or {}).items()]
    parts = [f"# {_escaped(title)}", *([_escaped(preface)] if preface else []), *pictures, *map(_table, tables)]
    origins = ["## Provenance", *map(_origin, measurements)] if measurements else []
    return "\n\n".join([*parts, *origins]) + "\n"


def _table(table: Table) -> str:
    # Markdown has no head over several columns, so the first of each block says what they are.
    heads = [
        f"{title} {head}".strip() if not place else head
        for title, heads in table.heads
        for place, head in enumerate(heads)
    ]
    lines = [[_escaped(table.of), *map(_escaped, heads)], ["---", *("---:" for _ in heads)]]
    lines += [[_escaped(method), *(_cell(cell) for cell in cells)] for method, cells in table.rows]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {_escaped(table.title)}\n\n{grid}\n\n{_escaped(' '.join(table.notes))}"


def _cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} {cell.aside}".rstrip()


def _origin(measurement: Measurement) -> str:
    lines = [f"### {measurement.number}. {_escaped(measurement.method)}: {_escaped(where(measurement))}"]
    for fact in provenance(measurement):
        told = "; ".join(f"{key} {_escaped(value)}" for key, value in fact.items() if key not in ("run", "command"))
        lines.append(f"- {_escaped(fact['run'])}: {told}\n\n  {_fenced(fact['command'])}")
    return "\n\n".join(lines)


def _fenced(command: str) -> str:
    """A block within a list, which nothing in it can end."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", command))])
    return re.sub(r"(\r\n?|\n)", r"\1  ", f"{fence}sh\n{command}\n{fence}")


def _escaped(text: str) -> str:
    return MARKED.sub(r"\\\1", " ".join(text.split()))


# ---------------------------------------------------------------------- provenance


def where(measurement: Measurement) -> str:
    """Setting, data and model in a few words."""
    spec = measurement.header.spec
    k = f" K = {spec.k}" if spec.in_sequences else ""
    return f"{spec.setting}{k}, {spec.dataset} {spec.split}, {spec.model}"


def provenance(measurement: Measurement) -> list[dict[str, str]]:
    """For each run, what its numbers depend on."""
    return [
        {
            "run": str(folder),
            "cases": f"{run.cases_done} of {header.counts.edited}",
            "left out": f"{header.counts.right} already right, {header.counts.skipped} skipped",
            "seed": str(spec.seed),
            "protocols": ", ".join(spec.protocols),
            "model": f"{spec.model} ({header.fingerprint}, {spec.dtype})",
            "cases' hash": header.cases,
            "unike": header.unike,
            "commit": _commit(header.git),
            "seconds an edit": _seconds([case.edit_seconds for case in run.cases]),
            "command": spec.command(),
        }
        for folder, run in measurement.runs.items()
        for header, spec in [(run.header, run.header.spec)]
    ]


def _commit(git: Mapping[str, Any] | None) -> str:
    return "unknown" if git is None else f"{git['commit']}{' (with changes)' if git['dirty'] else ''}"


def _seconds(found: Sequence[float]) -> str:
    return f"{sum(found) / len(found):.2f}" if found else "n/a"
