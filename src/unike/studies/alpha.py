"""Figure 4b: a fixed weight of the injected knowledge against Eq. 7's, which depends on the input."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import ClassVar

from unike.bench.results import RunResults
from unike.core.errors import UnikeError
from unike.report import Measurement
from unike.report.drawing import Drawing
from unike.report.figures import curves
from unike.studies.base import Findings, VariantStudy, first_view, scores_of, told
from unike.studies.lab import Lab, Variant
from unike.studies.request import Request

VALUES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)

DYNAMIC, CONSTANT = "dynamic", "constant mean of the dynamic one"


class Alpha(VariantStudy):
    """Fixed values, Eq. 7's, and the constant that is the mean of Eq. 7's."""

    name: ClassVar[str] = "alpha"
    title: ClassVar[str] = "Weight of the memory (Figure 4b)"
    asks: ClassVar[str] = (
        "Does it matter that alpha depends on the input, or would a constant do, for example its own mean?"
    )

    def variants(self, request: Request) -> list[Variant]:
        """A variant for each fixed value, and the dynamic one.

        Raises:
            UnikeError: A value that is no weight.
        """
        for value in request.numbers:
            if not 0 <= value <= 1:
                raise UnikeError(f"alpha {value:g} is not between 0 and 1")
        values = request.numbers or VALUES
        fixed = [Variant(f"fixed {value:g}", {"collaboration.fixed_alpha": value}) for value in values]
        return [*fixed, Variant(DYNAMIC)]

    def followers(self, runs: Mapping[str, RunResults]) -> list[Variant]:
        """The constant mean of what the dynamic run logged."""
        return [Variant(CONSTANT, {"collaboration.fixed_alpha": mean_alpha(runs[DYNAMIC])})]

    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Findings:
        """Scores against alpha; the dynamic one, which has no single value, as a level."""
        view = first_view(lab)
        lines: dict[str, dict[float, Mapping[str, Mapping[str, object]]]] = {"fixed": {}, CONSTANT: {}}
        for m in measurements:
            if m.method != DYNAMIC:
                line = lines[CONSTANT if m.method == CONSTANT else "fixed"]
                line[m.header.config["collaboration"]["fixed_alpha"]] = scores_of(m, view)
        (dynamic,) = (m for m in measurements if m.method == DYNAMIC)
        figure = curves(lines, "alpha", view, levels={DYNAMIC: scores_of(dynamic, view)})
        caption = told(lab, dynamic, "Scores against a fixed alpha, beside the dynamic one (Figure 4b)")
        return Findings(drawings=[Drawing("alpha", caption, figure)])


def mean_alpha(run: RunResults) -> float:
    """The mean alpha of all questions that were asked, before the gate, to four digits.

    Raises:
        UnikeError: None was logged: there is no memory, so that nothing is injected.
    """
    logged = [asked.notes["alpha"] for case in run.cases for asked in case.asked if "alpha" in asked.notes]
    if not logged:
        raise UnikeError("the dynamic run logged no alpha, so it has no mean; leave out settings that turn it off")
    return round(fmean(logged), 4)
