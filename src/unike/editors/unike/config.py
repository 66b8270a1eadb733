"""Settings of UniKE, in the parts of the method that they belong to."""

from typing import Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from unike.core.settings import Layers, Settings, merged
from unike.editors.unike.memory import SiteName
from unike.edits.edit import EditorConfig


class PairSettings(Settings):
    """The new key-value pairs (Eq. 1, 3).

    Attributes:
        n: N, key-value pairs a layer (paper: 10).
        key_init: Where keys start, see `unike.editors.unike.pairs`; without anchors all are ``"raw"``.
        shrinkage: Weight of the identity in the covariance of ``"whitened"``: near 0 the sample's own, 1 ``"centred"``.
        threshold: The part of the way to ``q_e`` at which a key begins to fire; ``"raw"`` keys count from the origin.
        noise: Standard deviation, relative to a key, of the noise by which keys of one position differ in training.
        locality: Weight of the locality term ``mean(relu(a + margin))`` over the pre-activations ``a`` of anchors.
        margin: How far below zero the locality term pushes those.
        train_keys: Whether keys and biases are trained, or values alone.
    """

    n: int = Field(10, ge=1)
    key_init: Literal["raw", "centred", "whitened"] = "centred"
    shrinkage: float = Field(0.1, ge=1e-4, le=1)
    threshold: float = Field(0.3, ge=0, lt=1)
    noise: float = Field(0.01, ge=0)
    locality: float = Field(0.0, ge=0)
    margin: float = 0.1
    train_keys: bool = True


class MemorySettings(Settings):
    """The latent in-context memory (Eq. 2, 8).

    Attributes:
        k: K, retrieved entries (paper: 40).
        site: How the memory is read, see `LatentInjection`.
        centred: Whether retrieval compares states minus their mean.
        size: Use only so many triplets of the memory; 0 for none.
        own_entry: Whether the edit's own entry is in the memory.
        entry: Where the own entry's values are read: at the ``"last"`` answer token, as those of the others are, or at
            the positions that predict ``"every"`` one.
        train_entry: Whether the own entry's values are trained too.
    """

    k: int = Field(10, ge=1)
    site: SiteName = "projected"
    centred: bool = True
    size: int | None = Field(None, ge=0)
    own_entry: bool = True
    entry: Literal["last", "every"] = "every"
    train_entry: bool = True


class CollaborationSettings(Settings):
    """How the two act together (Eq. 6, 7).

    Attributes:
        fixed_alpha: Alpha for all inputs (Figure 4b); None for Eq. 7's, or, without collaboration, `PLAIN_ALPHA`.
        alpha_slope: Of an affine calibration of Eq. 7's alpha.
        alpha_offset: Of the same.
        literal_eq7: Alpha as the weight of ``h_input``, as Eq. 2 and 7 are printed.
        zeta: The direction that values are moved in (Figure 4c): ``"truthful"`` is the paper's, ``"semantic"`` and
            ``"random"`` have its norm, ``"learned"`` starts at 0 and is trained, which makes it a bias.
        beta: Length of the move, relative to the norm of what the layer's feed-forward network writes.
    """

    fixed_alpha: float | None = Field(None, ge=0, le=1)
    alpha_slope: float = 1.0
    alpha_offset: float = 0.0
    literal_eq7: bool = False
    zeta: Literal["off", "truthful", "semantic", "random", "learned"] = "truthful"
    beta: float = Field(0.01, ge=0)


class GateSettings(Settings):
    """Which inputs an edit is about (beyond the paper).

    Attributes:
        on: Whether relevance scales both halves.
        slack: How much lower a key's threshold is where the question is of the edit's kind.
        rivalry: How far an edit of a stack may be behind the one that is most like an input before it is silent; None
            lets each act by itself. One edit alone has no rivals.
    """

    on: bool = True
    slack: float = Field(0.3, ge=0)
    rivalry: float | None = Field(0.1, gt=0)


PAPER: dict[str, Any] = {
    "rounds": 1,
    "gate": {"on": False},
    "memory": {"centred": False, "k": 40, "entry": "last", "train_entry": False},
    "pairs": {"key_init": "raw", "threshold": 0.0},
    "everywhere": True,
}
"""What ``paper=True`` changes; other settings still override it."""


class UniKEConfig(EditorConfig):
    """Settings of `UniKE`.

    Attributes:
        paper: The paper's method as docs/method.md reads it, without what is beyond it.
        ablation: A row of Table 4: new pairs alone (``"only_intrinsic"``), the memory alone (``"only_latent"``), both
            with a fixed alpha and without zeta and gate (``"no_collaboration"``), or the whole method.
        layers: The edited layers, counted from the top when negative (paper: the last four).
        knowledge: Folder of `unike prepare`; None for the one that is found for the backbone.
        steps: Adam steps.
        rounds: At most so many rounds of steps: those after the first only for edits that have not taken.
        any_wording: Whether the target is trained behind other questions, too, so that it comes wherever the gate is
            open (`training`); needs a gate.
        lead: An edit has taken when every token of its target is so far ahead of any other, in logits, and behind the
            other questions (`any_wording`) ahead at all.
        lr: Learning rate of Adam.
        clip: Largest gradient norm of an edit, or None.
        seed: Of the noise and of a random zeta.
        everywhere: Whether an edit acts on every position, as in the paper, or only from the prompt's last token on.
            Then what was read before that, pictures above all, stays as it was and need not be computed again.
        pairs: The intrinsic half.
        memory: The latent half.
        collaboration: What makes them one.
        gate: What keeps both from other inputs.
        tells: Whether the model is told the fact where what is asked follows from it (`follows`); needs a gate.
    """

    PLACES: ClassVar[tuple[str, ...]] = ("knowledge",)

    paper: bool = False
    ablation: Literal["none", "only_intrinsic", "only_latent", "no_collaboration"] = "none"
    layers: Layers = (-4, -3, -2, -1)
    knowledge: str | None = None
    steps: int = Field(20, ge=0)
    rounds: int = Field(5, ge=1)
    any_wording: bool = True
    lead: float = 1.0
    lr: float = Field(1e-2, gt=0)
    clip: float | None = Field(1.0, gt=0)
    seed: int = 0
    everywhere: bool = False
    pairs: PairSettings = Field(default_factory=lambda: PairSettings.parse({}))
    memory: MemorySettings = Field(default_factory=lambda: MemorySettings.parse({}))
    collaboration: CollaborationSettings = Field(default_factory=lambda: CollaborationSettings.parse({}))
    gate: GateSettings = Field(default_factory=lambda: GateSettings.parse({}))
    tells: bool = True

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        settings = nested(settings)
        return merged(PAPER, settings) if settings.get("paper") else settings

    @property
    def collaborates(self) -> bool:
        """Whether zeta, Eq. 7's alpha and the gate take part."""
        return self.ablation == "none"

    @property
    def has_pairs(self) -> bool:
        """Whether there is an intrinsic half."""
        return self.ablation != "only_latent"

    @property
    def has_memory(self) -> bool:
        """Whether there is a latent half that does anything."""
        acts = self.collaboration.literal_eq7 or self.collaboration.fixed_alpha != 0
        return self.ablation != "only_intrinsic" and acts

    @property
    def has_zeta(self) -> bool:
        """Whether values are moved."""
        return self.collaborates and self.collaboration.zeta != "off"

    @property
    def has_gate(self) -> bool:
        """Whether relevance gates the edit."""
        return self.collaborates and self.gate.on

    @property
    def needs_knowledge(self) -> bool:
        """Whether a backbone has to be prepared."""
        return self.ablation != "only_intrinsic"


# ---------------------------------------------------------------------- settings of version 0.1

FLAT: dict[str, str] = {
    "n_pairs": "pairs.n",
    **{name: f"pairs.{name}" for name in PairSettings.model_fields if name != "n"},
    "memory_size": "memory.size",
    "centred_retrieval": "memory.centred",
    **{name: f"memory.{name}" for name in ("k", "site", "own_entry", "entry", "train_entry")},
    **{name: f"collaboration.{name}" for name in CollaborationSettings.model_fields},
    **{name: f"gate.{name}" for name in ("slack", "rivalry")},
}
"""What settings were called before they were nested: saved edits and results have these names."""

ROWS = ("only_intrinsic", "only_latent", "no_collaboration")


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names of version 0.1, where they have such, by today's.

    Raises:
        ValueError: Two rows of Table 4.
    """
    rows = [row for row in ROWS if TypeAdapter(bool).validate_python(settings.get(row, False))]
    if len(rows) + ("ablation" in settings) > 1:
        raise ValueError(f"choose one of {', '.join(ROWS)}")
    found: dict[str, Any] = {"ablation": rows[0]} if rows else {}
    for name, value in settings.items():
        room, _, own = FLAT.get(name, name).partition(".")
        if name == "gate" and not isinstance(value, dict | GateSettings):
            room, own = "gate", "on"
        if name not in ROWS:
            found = merged(found, {room: {own: value}} if own else {room: value})
    return found
