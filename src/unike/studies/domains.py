"""Beyond the paper: where a method works, how much kinder teacher forcing is than asking, and what an edit costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from unike.bench.results import Run
from unike.report import Measurement, Table, arrange, named, score_table
from unike.report.figures import Drawing, dots
from unike.studies._costs import cost_of, cost_table
from unike.studies.base import (
    Lab,
    Outcome,
    Request,
    Variant,
    VariantStudy,
    first_view,
    scores_of,
    told,
)

METHODS = (
    Variant("UniKE"),
    Variant("only Intrin", {"only_intrinsic": True}),
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

    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Outcome:
        """A table by domain, and one of costs; the report has the gap between the protocols."""
        view, variants = first_view(lab), {variant.name: variant for variant in METHODS}
        parts = named({name: runs for m in measurements for name, runs in by_domain(m).items()})
        tables: list[Table] = [
            replace(table, title=f"By domain. {table.title}")
            for blocks in arrange(parts, view)
            for table in [score_table(blocks, view)]
        ]
        costs = {m.method: cost_of(lab, variants[m.method], m.header["max_new_tokens"]) for m in measurements}
        figure = dots({part.method: scores_of(part, view) for part in parts}, view)
        return Outcome(
            tables=[*tables, cost_table(measurements, costs)],
            drawings=[Drawing(self.name, told(lab, measurements[0], "Scores by domain"), figure)],
        )


def by_domain(measurement: Measurement) -> Mapping[str, Mapping[Path, Run]]:
    """``"UniKE: flag"`` to what its runs measured on flags; a data set without domains has one, ``"all"``."""
    runs = measurement.runs
    found = sorted({case.domain for run in runs.values() for case in run.cases})
    return {
        f"{measurement.method}: {domain or 'all'}": {folder: only(run, domain) for folder, run in runs.items()}
        for domain in found
    }


def only(run: Run, domain: str) -> Run:
    """The part of a one-step run whose cases are of one domain; it counts as finished as far as it goes."""
    units = {name: cases for name, cases in run.units.items() if cases[0].domain == domain}
    return Run(run.header | {"counts": run.header["counts"] | {"edited": len(units)}}, units)
