"""Table 4: what each part contributes, alone and together; and the cells that the paper leaves out."""

from collections.abc import Sequence
from typing import ClassVar

from unike.report import Measurement
from unike.report.drawing import Drawing
from unike.report.figures import dots
from unike.studies.base import Findings, VariantStudy, first_view, scores_of, told
from unike.studies.lab import INTRINSIC_IKE, Lab, Variant
from unike.studies.request import Request

CONSTANT_ALPHA = 0.1
"""Of rows where alpha does not depend on the input."""

AS_IN_THE_PAPER = {"memory.train_entry": False, "memory.entry": "last", "memory.k": 40}
"""What an entry of the memory is, and how many are retrieved."""

ROWS = (
    Variant("only Intrin", {"ablation": "only_intrinsic"}),
    Variant("only Latent-IKE", {"ablation": "only_latent"}),
    Variant("only Latent-IKE, as in the paper", {"ablation": "only_latent", **AS_IN_THE_PAPER}),
    Variant("Intrin + IKE", editor=INTRINSIC_IKE),
    Variant("Intrin + Latent-IKE", {"ablation": "no_collaboration", "collaboration.fixed_alpha": CONSTANT_ALPHA}),
    Variant("+ zeta", {"gate.on": False, "collaboration.fixed_alpha": CONSTANT_ALPHA}),
    Variant("+ alpha", {"gate.on": False, "collaboration.zeta": "off"}),
    Variant("+ gate", {"collaboration.zeta": "off", "collaboration.fixed_alpha": CONSTANT_ALPHA}),
    Variant("+ zeta + alpha (no gate)", {"gate.on": False}),
    Variant("UniKE"),
    Variant("UniKE, literal Eq. 7", {"collaboration.literal_eq7": True}),
    Variant("UniKE, no own entry", {"memory.own_entry": False}),
    Variant("UniKE, at every position", {"everywhere": True}),
    Variant("UniKE as in the paper", {"paper": True}),
)
"""The first three, the fifth and UniKE are the paper's; a row that begins with + is Intrin + Latent-IKE and that."""


class Ablation(VariantStudy):
    """Rows of Table 4."""

    name: ClassVar[str] = "ablation"
    title: ClassVar[str] = "Ablation (Table 4)"
    asks: ClassVar[str] = "What does each part contribute: the new pairs, the memory, zeta, alpha and the gate?"

    def variants(self, request: Request) -> list[Variant]:
        """All rows."""
        return list(ROWS)

    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Findings:
        """Every row's scores with their intervals."""
        view = first_view(lab)
        figure = dots({m.method: scores_of(m, view) for m in measurements}, view)
        return Findings(drawings=[Drawing("ablation", told(lab, measurements[0], "Ablation (Table 4)"), figure)])
