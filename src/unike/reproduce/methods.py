"""The rows of the paper's tables: the editor that each is, with which settings, and what it needs to be made first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ABLATION_OF = "unike"
"""Whose parts Table 4 compares."""

SMALL_BATCH = 2
"""Edits in a pass of a method that trains whole matrices: 2.2 GB each in a model of 7B (docs/backbones.md)."""


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        editor: Name of the editor.
        settings: Its own.
        row: The row of the paper that stands beside it.
        knowledge: Whether it reads what ``unike prepare`` made.
        network: Whether it reads what ``unike train`` made.
        pool: Whether it reads demonstrations of the train split.
        sequential: Whether the paper has it in sequences.
        batch: Edits in a pass of a model that is not bundled; None for the default.
        of_minigpt4: Settings that are others for MiniGPT-4.
        training_of_minigpt4: Settings of the network that are others for MiniGPT-4.
    """

    editor: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""
    knowledge: bool = False
    network: bool = False
    pool: bool = False
    sequential: bool = True
    batch: int | None = None
    of_minigpt4: Mapping[str, Any] = field(default_factory=dict)
    training_of_minigpt4: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "no_edit": Method("no_edit", row="no_edit", sequential=False),
    "ft": Method("ft", row="ft", batch=SMALL_BATCH, of_minigpt4={"lr": 1e-4}),
    "ke": Method("ke", row="ke", network=True, training_of_minigpt4={"margin_floor": 1e-7}),
    "t_patcher": Method("t_patcher", row="t_patcher"),
    "mend": Method("mend", row="mend", network=True),
    "ike": Method("ike", row="ike", pool=True, sequential=False),
    "serac": Method("serac", row="serac", network=True),
    "serac_mmedit": Method("serac", {"compat": "mmedit"}, row="serac", network=True),
    "unike": Method("unike", row="unike", knowledge=True),
    "unike_paper": Method("unike", {"paper": True}, row="unike", knowledge=True),
}
"""Name to row, in the order of the paper.

``serac_mmedit`` lets the classifier read the answer, as published numbers do; ``unike_paper`` is without what is beyond
the paper, the gate above all.
"""

PLANNED = tuple(name for name in METHODS if name != "serac_mmedit")
"""What is planned unless others are asked for."""

ABLATION_ROWS = {
    "only Intrin": "only Intrin",
    "only Latent-IKE": "only Latent-IKE",
    "only Latent-IKE, as in the paper": "only Latent-IKE",
    "Intrin + IKE": "Intrin+IKE",
    "Intrin + Latent-IKE": "Intrin+Latent-IKE",
    "UniKE": "UniKE",
    "UniKE as in the paper": "UniKE",
}
"""A row of `unike.studies.ablation` to the row of Table 4 that stands beside it; the others are not in the paper."""
