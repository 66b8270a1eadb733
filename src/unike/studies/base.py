"""What a study is: a question about a method, and how it is answered, by comparing variants of it most of the time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from unike.bench.protocols.base import views
from unike.bench.results import RunResults
from unike.bench.spec import Role
from unike.bench.summary import column, select
from unike.core import registry
from unike.core.errors import UnikeError
from unike.report import Chosen, Measurement, Table, check_shared, named, report_tables, views_of
from unike.report.drawing import Drawing, Scores
from unike.studies.lab import Lab, Variant, plain
from unike.studies.request import Request


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        measurements: Runs by the names of the study.
        tables: Of them, and others.
        drawings: The figures.
        numbers: Rows of the CSV file; if empty, those of the measurements.
        cases: To be shown on the page.
    """

    measurements: Sequence[Measurement] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
    numbers: Sequence[Mapping[str, Any]] = ()
    cases: Sequence[Chosen] = ()


class Study(ABC):
    """A question about a method, and how it is answered."""

    name: ClassVar[str]
    title: ClassVar[str]
    asks: ClassVar[str]
    """What it asks, in a sentence."""

    @abstractmethod
    def check(self, lab: Lab) -> None:
        """Refuse what can be known to be wrong before a model is loaded.

        Raises:
            UnikeError: With what it is.
        """

    @abstractmethod
    def conduct(self, lab: Lab) -> Findings:
        """Measure what is not there yet, and say what was found."""


def study_named(name: str) -> Study:
    """A study by the name of its file, or as the command line has it, with dashes.

    Raises:
        UnikeError: No such study.
    """
    study: Study = registry.studies.get(name.replace("-", "_"))()
    return study


class VariantStudy(Study):
    """A study that compares variants of a method in the ordinary benchmark."""

    @abstractmethod
    def variants(self, request: Request) -> list[Variant]:
        """What is compared, in the order of the table."""

    def followers(self, runs: Mapping[str, RunResults]) -> list[Variant]:
        """Variants that follow from the runs of the others, by name; none, unless a study has some."""
        return []

    def changes(self, request: Request) -> dict[str, Any]:
        """Fields in which their runs differ from what was asked for; none, unless a study has some."""
        return {}

    @abstractmethod
    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Findings:
        """The figures, and tables beside those of the report."""

    def check(self, lab: Lab) -> None:
        """Every variant."""
        for variant in self.variants(lab.request):
            lab.check(variant, **self.changes(lab.request))

    def conduct(self, lab: Lab) -> Findings:
        """Run the variants, then those that follow from them."""
        variants, changes = self.variants(lab.request), self.changes(lab.request)
        runs: dict[str, dict[Path, RunResults]] = {}

        def run_all(wanted: Sequence[Variant]) -> None:
            for variant in wanted:
                folder, run = lab.run(variant, **changes)
                runs.setdefault(variant.name, {})[folder] = run

        run_all(variants)
        run_all(self.followers({name: next(iter(found.values())) for name, found in runs.items()}))
        check_conditions([run for found in runs.values() for run in found.values()])
        measurements = named(runs)
        shown = self.show(lab, measurements)
        tables = [*shown.tables, *report_tables(measurements, views_of(measurements))]
        return Findings(measurements, tables, shown.drawings, shown.numbers, shown.cases)


def check_conditions(runs: Sequence[RunResults]) -> None:
    """Refuse runs that were made under different conditions: begun with another dtype, say, or before `unike prepare`.

    Raises:
        UnikeError: With what differs.
    """
    headers = [run.header for run in runs]
    check_shared(header.values(Role.MODEL, Role.CONDITION) for header in headers)
    for editor in {header.spec.editor for header in headers}:
        learned = [header.learned for header in headers if header.spec.editor == editor and header.learned]
        check_shared({"learned": each} for each in learned)


def whole(numbers: Sequence[float], what: str, *, least: int) -> tuple[int, ...]:
    """Numbers that have to be whole.

    Raises:
        UnikeError: One is not, or is too small.
    """
    for number in numbers:
        if number != int(number) or number < least:
            raise UnikeError(f"--at {number:g} is not {what}; give whole numbers from {least} on")
    return tuple(map(int, numbers))


def scores_of(measurement: Measurement, view: str, setting: str | None = None) -> Scores:
    """A measurement's rows of one view by their metric: at the end, unless a setting says when."""
    return column(select(measurement.rows, view, setting or measurement.header.spec.setting))


def first_view(lab: Lab) -> str:
    """What figures show: the first protocol."""
    return next(view for view in views() if view.partition("/")[0] == lab.request.spec.protocols[0])


def told(lab: Lab, measurement: Measurement, what: str) -> str:
    """The caption of a figure: what it shows, and under which conditions."""
    spec, header = measurement.header.spec, measurement.header
    fixed = ", ".join(plain(lab.request.spec.settings))
    return (
        f"{what}{f', with {fixed}' if fixed else ''}. {spec.setting} editing, {spec.dataset} {spec.split}, "
        f"{spec.model} ({header.fingerprint}, {spec.dtype}), {measurement.done} edits, seed {spec.seed}; "
        f"{first_view(lab)}, percent with bootstrap 95 % intervals"
    )
