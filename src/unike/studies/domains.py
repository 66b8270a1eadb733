"""Beyond the paper: where a method works, how much kinder teacher forcing is than asking, and what an edit costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from unike.bench.results import RunResults
from unike.report import Measurement, Table, arrange, named, score_table
from unike.report.drawing import Drawing
from unike.report.figures import dots
from unike.studies._costs import cost_of, cost_table
from unike.studies.base import Findings, VariantStudy, first_view, scores_of, told
from unike.studies.lab import Lab, Variant
from unike.studies.request import Request

METHODS = (
    Variant("UniKE"),
    Variant("only Intrin", {"ablation": "only_intrinsic"}),
    Variant("FT", editor="ft"),
)


class Domains(VariantStudy):
    """One-step editing by domain (photos, pictograms and flags, if the data set tells), by protocol, and by cost."""

    name: ClassVar[str] = "domains"
    title: ClassVar[str] = "Domains, protocols and costs"
    asks: ClassVar[str] = (
        "Where does a method work, how much of its score is teacher forcing, and what do an edit and an answer cost?"
    )

    def variants(self, request: Request) -> list[Variant]:
        """A few methods."""
        return list(METHODS)

    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Findings:
        """A table by domain, and one of costs; the report has the gap between the protocols."""
        view, variants = first_view(lab), {variant.name: variant for variant in METHODS}
        parts = named({name: runs for m in measurements for name, runs in by_domain(m).items()})
        tables: list[Table] = [
            replace(table, title=f"By domain. {table.title}")
            for blocks in arrange(parts, view)
            for table in [score_table(blocks, view)]
        ]
        costs = {m.method: cost_of(lab, variants[m.method], m.header.spec) for m in measurements}
        figure = dots({part.method: scores_of(part, view) for part in parts}, view)
        return Findings(
            tables=[*tables, cost_table(measurements, costs)],
            drawings=[Drawing(self.name, told(lab, measurements[0], "Scores by domain"), figure)],
        )


def by_domain(measurement: Measurement) -> Mapping[str, Mapping[Path, RunResults]]:
    """``"UniKE: flag"`` to what its runs measured on flags; a data set without domains has one, ``"all"``."""
    runs = measurement.runs
    found = sorted({case.domain for run in runs.values() for case in run.cases})
    return {
        f"{measurement.method}: {domain or 'all'}": {folder: only(run, domain) for folder, run in runs.items()}
        for domain in found
    }


def only(run: RunResults, domain: str) -> RunResults:
    """The part of a one-step run whose cases are of one domain; it counts as finished as far as it goes."""
    units = {name: cases for name, cases in run.units.items() if cases[0].domain == domain}
    return RunResults(replace(run.header, counts=replace(run.header.counts, edited=len(units))), units)
