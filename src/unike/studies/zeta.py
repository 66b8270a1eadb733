"""Figure 4c: what moves the new values, the direction of truth or any direction at all."""

from collections.abc import Sequence
from typing import ClassVar

from unike.report import Measurement
from unike.report.drawing import Drawing
from unike.report.figures import dots
from unike.studies.base import Findings, VariantStudy, first_view, scores_of, told
from unike.studies.lab import Lab, Variant
from unike.studies.request import Request

SEEDS = 3
"""Of random directions."""


class Zeta(VariantStudy):
    """Without zeta, with a random, a semantic and a learned one of the same length, and with the paper's."""

    name: ClassVar[str] = "zeta"
    title: ClassVar[str] = "Direction of truth (Figure 4c)"
    asks: ClassVar[str] = "Is it the direction of truth that helps, or would any shift of the same length do?"

    def variants(self, request: Request) -> list[Variant]:
        """Random ones share a row: they are one treatment, drawn several times."""
        zeta = "collaboration.zeta"
        drawn = [Variant(f"random, {SEEDS} seeds", {zeta: "random", "seed": seed}) for seed in range(SEEDS)]
        others = [Variant(name, {zeta: name}) for name in ("semantic", "learned")]
        return [Variant("without", {zeta: "off"}), *drawn, *others, Variant("truthful (UniKE)")]

    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Findings:
        """Every treatment's scores with their intervals."""
        view = first_view(lab)
        figure = dots({m.method: scores_of(m, view) for m in measurements}, view)
        return Findings(
            drawings=[Drawing("zeta", told(lab, measurements[0], "Treatments of zeta (Figure 4c)"), figure)]
        )
