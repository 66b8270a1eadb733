"""A report as one page: a file that needs nothing else, no network and no script.

`page.html` lays it out; what is put in there is escaped, for prompts and answers may be anything.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from unike.bench.outcome import Asked
from unike.core.progress import Progress, silent
from unike.core.version import __version__
from unike.report.cells import Cell, Table
from unike.report.failures import SEED, Failure, Pictures, failures
from unike.report.figures import bars, histograms, on_the_way
from unike.report.measurements import Measurement
from unike.report.study_figures import StudyFigures
from unike.report.text import provenance, where

SECTIONS = {
    "studies": "Studies",
    "cases": "Cases",
    "tables": "Tables",
    "alpha": "How strongly the memory acts",
    "failures": "What went wrong",
    "provenance": "Provenance",
}
"""Of a page, by their anchors."""

NOTES = {"alpha": "weight of the memory", "gate": "relevance", "activation": "strongest pair"}
"""What a method may say about each question."""


@dataclass(frozen=True)
class Chosen:
    """A case to be shown with everything that was asked about it.

    Attributes:
        title: Of the case.
        dataset: It is from, for pictures.
        asked: Its questions.
        others: What other methods answered to them, by name.
    """

    title: str
    dataset: str
    asked: Sequence[Asked]
    others: Mapping[str, Sequence[str]]

    def shown(self, pictures: Pictures) -> list[dict[str, Any]]:
        """Its questions as the page has them."""
        return [
            _shown(Failure(asked.kind, asked), self.dataset, pictures)
            | {"others": [(name, answers[number]) for name, answers in self.others.items()]}
            for number, asked in enumerate(self.asked)
        ]


def to_html(
    measurements: Sequence[Measurement],
    tables: Sequence[Table],
    view: str | None,
    *,
    count: int = 3,
    data: Path | None = None,
    studies: Sequence[StudyFigures] = (),
    chosen: Sequence[Chosen] = (),
    details: bool = True,
    progress: Progress = silent,
) -> str:
    """The tables with figures, what the methods logged, failed cases with pictures, and where all of it is from.

    Args:
        measurements: What was measured.
        tables: Of it.
        view: One of `unike.bench.protocols.base.views`, which says what failed; None if nothing was measured yet.
        count: Failed cases to show of each kind of question and run; 0 for none.
        data: Folder of the data set's files, see `Pictures`.
        studies: Figures that studies made of the runs.
        chosen: Cases to show in full.
        details: Whether to draw bars for each table, and what the methods logged.
        progress: Told how many figures are drawn and runs looked through.
    """
    drawn = []
    for number, table in enumerate(tables):
        progress("drawing figures", number, len(tables))
        drawn.append((table, figures(table) if details else []))
    progress("drawing figures", len(tables), len(tables))
    logs, failed, pictures = [], [], Pictures(data)
    for number, measurement in enumerate(measurements):
        progress("looking for failures", number, len(measurements))
        logs += logged(measurement) if details else []
        failed += [] if view is None else failed_runs(measurement, view, count, pictures)
    progress("looking for failures", len(measurements), len(measurements))
    return (
        layout()
        .render(
            version=__version__,
            contents=contents(studies=studies, cases=chosen, alpha=logs, failures=failed),
            measurements=measurements,
            tables=drawn,
            studies=studies,
            chosen=[(case, case.shown(pictures)) for case in chosen],
            logs=logs,
            failed=failed,
            view=view,
            sequences=any(measurement.header.spec.in_sequences for measurement in measurements),
            count=count,
            seed=SEED,
            origins=[(m, f"{m.method}: {where(m)}", origins(m)) for m in measurements],
            origin=origin,
        )
        .lstrip()
    )


def contents(**shown: Sequence[Any]) -> list[tuple[str, str]]:
    """Anchor and title of each section; those that not every page has are named with what they show."""
    always = ("tables", "provenance")
    return [(anchor, title) for anchor, title in SECTIONS.items() if anchor in always or shown[anchor]]


def layout() -> Template:
    """`page.html`, which escapes what is put in."""
    text = resources.files("unike.report").joinpath("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        text
    )


def figures(table: Table) -> list[tuple[str, str]]:
    """A caption and an ``<svg>`` for each block of a table of scores; of intermediate times, curves."""
    if drawings := on_the_way(table):
        return [(drawing.caption, drawing.inline()) for drawing in drawings]
    captions = [f"{block.title}. {table.title}" for block in table.blocks]
    return [(caption, bars(block, caption)) for block, caption in zip(table.blocks, captions, strict=True)]


def logged(measurement: Measurement) -> list[tuple[str, str]]:
    """A caption and an ``<svg>`` for each kind of value that the method logged."""
    cases = [case for run in measurement.runs.values() for case in run.cases if case.when == "end"]
    captions = {what: f"{what} ({name}) of {measurement.method}: {where(measurement)}" for what, name in NOTES.items()}
    drawn = ((caption, histograms(cases, what, caption)) for what, caption in captions.items())
    return [(caption, svg) for caption, svg in drawn if svg is not None]


def failed_runs(measurement: Measurement, view: str, count: int, pictures: Pictures) -> list[dict[str, Any]]:
    """For each run in which something failed, some of that, as the page shows it."""
    found = []
    for folder, run in measurement.runs.items():
        groups = [
            {
                "kind": group.kind,
                "failed": group.failed,
                "of": group.of,
                "wanted": group.wanted,
                "cases": [_shown(failure, run.header.spec.dataset, pictures) for failure in group.drawn],
            }
            for group in failures(run, view, count)
        ]
        if groups:
            title = f"{measurement.method}: {where(measurement)}, seed {run.header.spec.seed}"
            found.append({"title": title, "folder": str(folder), "number": measurement.number, "groups": groups})
    return found


def origins(measurement: Measurement) -> list[tuple[dict[str, str], str]]:
    """For each run its provenance, and the whole header as JSON."""
    headers = [json.dumps(run.header.to_json(), indent=1, ensure_ascii=False) for run in measurement.runs.values()]
    return list(zip(provenance(measurement), headers, strict=True))


def origin(cell: Cell) -> str:
    """Where the number of a cell is from, in a line."""
    assert cell.measurement is not None
    between = f"95 % interval {cell.aside}, n = {cell.n}; " if cell.interval else ""
    return f"{between}{cell.measurement.method}: {', '.join(map(str, cell.measurement.runs))}"


def _shown(failure: Failure, dataset: str, pictures: Pictures) -> dict[str, Any]:
    asked = failure.asked
    return {
        "case_id": failure.case_id,
        "prompt": asked.prompt,
        "target": "none" if asked.target is None else " or ".join((asked.target, *asked.also)),
        "before": asked.before,
        "after": asked.after,
        "image": asked.image,
        "address": None if asked.image is None else pictures.address(dataset, asked.image),
    }
