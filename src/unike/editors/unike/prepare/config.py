"""Settings of `unike.editors.unike.prepare.pipeline.prepare`."""

from typing import Literal

from pydantic import Field

from unike.core.settings import Layers, Settings


class PrepareConfig(Settings):
    """Settings of `prepare`.

    Attributes:
        layers: Which layers to prepare (paper: the last four).
        limit: Learn from at most so many triplets, evenly spread over the cases, and ask no more than that takes.
        keep: Store the states of at most so many of them; None for all.
        hidden: Width of the encoders' inner layer.
        truth_width: ``d``, of the truthfulness space.
        tau: Temperature of both losses.
        lr: Learning rate (paper: 1e-4).
        max_epochs: Of either encoder.
        patience: Epochs without a gain on held-out triplets after which an encoder is done.
        ridge: Of `fit_w_zeta`.
        batch: Triplets a step.
        seed: Of every choice.
        store_dtype: Precision of what is kept.
        max_new_tokens: An answer of the backbone that is as long is taken to be cut off.
        rows: Questions the backbone reads at once.
        gate_cases: How many cases' pictures the gate is made from; 0 for no gate.
        gate_hands: Made-up hands that show pictures again, see `unike.editors.unike.prepare.views`.
        gate_steps: Of the contrast, see `unike.editors.unike.contrast`.
        gate_error: See `unike.editors.unike.calibration.calibrate`.
    """

    layers: Layers = (-4, -3, -2, -1)
    limit: int | None = Field(default=None, ge=1)
    keep: int | None = Field(default=None, ge=1)
    hidden: int = Field(default=512, ge=1)
    truth_width: int = Field(default=128, ge=1)
    tau: float = Field(default=0.1, gt=0)
    lr: float = Field(default=1e-4, gt=0)
    max_epochs: int = Field(default=300, ge=0)
    patience: int = Field(default=20, ge=1)
    ridge: float = Field(default=1e-2, gt=0)
    batch: int = Field(default=256, ge=2)
    seed: int = 0
    store_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    max_new_tokens: int = Field(default=32, ge=1)
    rows: int = Field(default=32, ge=1)
    gate_cases: int = Field(default=10_000, ge=0)
    gate_hands: int = Field(default=16, ge=0)
    gate_steps: int = Field(default=800, ge=0)
    gate_error: float = Field(default=0.2, gt=0, lt=0.5)
