"""README's table, from the lines in ``results/``.

python scripts/docs/table.py            # writes it anew
python scripts/docs/table.py --check    # ends with exit code 1 if README says anything else

`BLOCKS` says which runs have a row. A block is measured under the same conditions, the strict protocol, at the end of
sequences; its rows stand best first, and have the columns that the lines have numbers for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import between
from unike.bench.header import Header
from unike.bench.results import RunResults, read_run
from unike.bench.summary import column, select, summarise
from unike.bench.verdicts import SCOPE
from unike.data.queries import probe_kinds
from unike.report import check_shared
from unike.report.measurements import COLUMN

README = between.ROOT / "README.md"
RESULTS = between.ROOT / "results"
COMMAND = "python scripts/docs/table.py"
BEGIN, END = f"<!-- table: {COMMAND} -->", "<!-- end of table -->"

VIEW = "strict/exact"
COLUMNS = (
    SCOPE,
    "reliability",
    "t_generality",
    "m_generality",
    "t_locality",
    "m_locality",
    "near_locality",
    "specificity",
    "portability",
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """Rows that were measured under the same conditions.

    Attributes:
        title: What was edited and when it was asked.
        rows: Folder of a run, within ``results/``, to what its row says beside the method's name; ``{lr}`` is the run's.
        cases: The run whose cases all rows are of: of those with more, only these count; those with fewer say so.
    """

    title: str
    rows: Mapping[str, str]
    cases: str


BLOCKS = (
    Block(
        "one-step, E-VQA of PocketEdit 2",
        {
            "pocket2/unike/one-step-vqa": "",
            "pocket2/ft/one-step-vqa": "lr {lr}",
            "pocket2/t_patcher/one-step-vqa": "lr {lr}, {steps} steps",
            "pocket2/answer_cache/one-step-vqa": "",
            "pocket2/retrieval_prompt/one-step-vqa": "",
        },
        cases="pocket2/unike/one-step-vqa",
    ),
    Block(
        "after 20 edits of PocketEdit 2's E-VQA",
        {
            "pocket2/unike/sequential-20-vqa": "",
            "pocket2/ft/sequential-20-vqa": "lr {lr}",
            "pocket2/answer_cache/sequential-20-vqa": "",
        },
        cases="pocket2/unike/sequential-20-vqa",
    ),
    Block(
        "one-step, E-VQA of PocketEdit 1",
        {
            "pocket/unike/one-step-vqa": "",
            "pocket/ft/one-step-vqa": "lr {lr}",
            "pocket/t_patcher/one-step-vqa": "lr {lr}",
            "pocket/mend/one-step-vqa": "",
            "pocket/ke/one-step-vqa": "",
            "pocket/serac-threshold-0.3/one-step-vqa": "threshold {threshold}",
            "pocket/ike-no-demonstrations/one-step-vqa": "no demonstrations",
            "pocket/answer_cache/one-step-vqa": "",
            "pocket/retrieval_prompt/one-step-vqa": "",
        },
        cases="pocket/ft/one-step-vqa",
    ),
)


def conditions(header: Header) -> dict[str, Any]:
    """What the rows of a block have in common: all but the precision, which a row says."""
    return {name: value for name, value in header.values(*COLUMN).items() if name != "dtype"}


def label(header: Header, beside: str) -> str:
    """The method, and what is said beside it, with the run's own settings."""
    told = beside.format(**header.config)
    return f"`{header.spec.editor}`, {told}" if told else f"`{header.spec.editor}`"


def scores(run: RunResults) -> dict[str, Row]:
    """Metric to its row of the summary."""
    rows = summarise(run, resamples=1)  # no interval is shown
    return dict(column(select(rows, VIEW, run.header.spec.setting)))


def rank(found: Mapping[str, Row]) -> tuple[float, float]:
    """By scope; where that is equal or missing, by the mean of the paper's five."""
    known = {name: row["value"] for name, row in found.items() if row["value"] is not None}
    return known.get(SCOPE, 0.0), fmean(
        known[name] for name, kind in probe_kinds().items() if kind.of and name in known
    )


def cell(row: Row | None) -> str:
    """A share in percent."""
    return "" if row is None or row["value"] is None else f"{100 * row['value']:.1f}".replace("100.0", "100")


def rows_of(block: Block) -> tuple[int, list[tuple[str, dict[str, Row]]]]:
    """How many edits were asked about, and of each row its name and scores, best first."""
    runs = {name: read_run(RESULTS / name) for name in {*block.rows, block.cases}}
    check_shared(conditions(run.header) for run in runs.values())
    shared = runs[block.cases].units.keys()
    found = []
    for name, beside in block.rows.items():
        units = {unit: cases for unit, cases in runs[name].units.items() if unit in shared}
        run = replace(runs[name], units=units)
        fewer = f" (n = {run.cases_done})" if units.keys() != shared else ""
        dagger = " †" if run.header.spec.dtype != "float32" else ""
        found.append((f"{label(run.header, beside)}{fewer}{dagger}", scores(run)))
    found.sort(key=lambda each: rank(each[1]), reverse=True)
    return runs[block.cases].cases_done, found


def table(block: Block) -> str:
    """A block in Markdown."""
    count, rows = rows_of(block)
    there = [name for name in COLUMNS if any(cell(found.get(name)) for _, found in rows)]
    lines = [[f"{block.title} (n = {count})", *(name.replace("_", "-") for name in there)]]
    lines += [[name, *(cell(found.get(metric)) for metric in there)] for name, found in rows]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * (len(there) + 1) + "|", *body])


def tables() -> str:
    """All blocks."""
    return "\n\n".join(map(table, BLOCKS))


def main() -> None:
    between.write({README: between.put(README, BEGIN, END, tables())}, COMMAND)


if __name__ == "__main__":
    main()
