"""Beyond the paper: how scores hold while edits pile up, one after another in a sequence (section 4.3 stops at 20)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from unike.report import Measurement
from unike.report.drawing import Drawing
from unike.report.figures import curves
from unike.studies.base import Findings, VariantStudy, first_view, scores_of, told, whole
from unike.studies.lab import Lab, Variant
from unike.studies.request import Request

EDITS = (1, 10, 100)

METHODS = (
    Variant("UniKE"),
    Variant("UniKE, no gate", {"gate.on": False}),
    Variant("only Intrin", {"ablation": "only_intrinsic"}),
    Variant("FT", editor="ft"),
)
"""What a sequence is made with."""


class Lifelong(VariantStudy):
    """Scores of all that was edited so far, after 1, 10, 100 edits."""

    name: ClassVar[str] = "lifelong"
    title: ClassVar[str] = "Many edits"
    asks: ClassVar[str] = (
        "How well is everything that was edited so far answered, and what else changed, as edits pile up?"
    )

    def variants(self, request: Request) -> list[Variant]:
        """The methods."""
        return list(METHODS)

    def changes(self, request: Request) -> dict[str, Any]:
        """Sequences as long as the largest number."""
        at = edits(request)
        return {"setting": "sequential", "k": at[-1], "evaluate_at": at}

    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Findings:
        """Scores against the number of edits."""
        view, at = first_view(lab), edits(lab.request)
        times = {number: f"sequential:at-{number}" for number in at[:-1]} | {at[-1]: "sequential"}
        lines = {m.method: {number: scores_of(m, view, when) for number, when in times.items()} for m in measurements}
        figure = curves(lines, "edits so far", view, even=True)
        return Findings(drawings=[Drawing(self.name, told(lab, measurements[0], "Scores while edits pile up"), figure)])


def edits(request: Request) -> tuple[int, ...]:
    """After how many edits everything is asked."""
    return whole(request.numbers or EDITS, "a number of edits", least=1)
