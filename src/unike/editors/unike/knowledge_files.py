"""What the two files of in-context knowledge have to say, see `unike.editors.unike.knowledge`."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from unike.backbones.forward.context import SEEN
from unike.core.schema import Schema
from unike.editors.common.saved import SavedBackbone, SavedTrace
from unike.edits.layout import Declared, check


class SavedPrepared(SavedBackbone):
    """What knowledge was made for."""

    template: str
    n_layers: int = Field(ge=1)


class SavedTriplet(SavedTrace):
    """As `Triplet` keeps itself."""

    positive: str
    negative: str
    tag: str


class SavedRamps(Schema):
    """As `RisingRamp`."""

    low: list[float] = Field(min_length=1)
    high: list[float] = Field(min_length=1)

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if len(self.low) != len(self.high) or any(a >= b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError("a ramp ends where it begins, or below")
        return self


class SavedGate(Schema):
    """As `Gate.settings`."""

    about: SavedRamps


class SavedKnowledge(Schema):
    """``knowledge.json``."""

    backbone: SavedPrepared
    dtype: Literal["float32", "bfloat16", "float16"]
    layers: list[int] = Field(min_length=1)
    gate: SavedGate | None
    triplets: list[SavedTriplet]


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, without that."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def check_layer(index: int, layer: Any, n_triplets: int, first: Any) -> None:
    """Refuse tensors of a layer that do not go together, or with those of the first layer.

    Raises:
        ValueError: As it says.
    """
    tensors = layer.tensors()
    count, width = first.h_sem.shape
    truth = len(tensors["truthfulness.outer.bias"])
    states = ("h_sem", "h_pos", "h_neg", "raw_pos")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(states, (count, width))
    shapes |= {"mean": (width,), "w_zeta": (width, truth), "zeta": (truth,), "ffn_norm": ()}
    shapes |= {"w_semantic": (width, width), "semantic_zeta": (width,), "semantic.outer.bias": (width,)}
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{index}.{name} has the shape {list(tensors[name].shape)}, not {list(shape)}")
    for name in ("truthfulness.inner.weight", "semantic.inner.weight"):
        if tensors[name].shape[1] != width:
            raise ValueError(f"{index}.{name} reads {tensors[name].shape[1]} numbers, not {width}")
    if not count or count > n_triplets:
        raise ValueError(f"there are states of {count} triplets, and {n_triplets} triplets")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{index}.{name} is not finite")


def check_gate(tensors: Mapping[str, Tensor], width: int) -> None:
    """Refuse tensors of a gate that do not go with the layers'.

    Raises:
        ValueError: As it says.
    """
    layout = {"gate.mean": Declared((SEEN * width,)), "gate.discriminant": Declared((2 * width, "P"))}
    layout |= {"gate.contrast": Declared((SEEN * width, "Q")), "gate.cohort": Declared(("n", "R"))}
    check(layout, {f"gate.{name}": tensor for name, tensor in tensors.items()}, {})
    if tensors["cohort"].shape[1] != tensors["discriminant"].shape[1] + tensors["contrast"].shape[1]:
        raise ValueError("gate.cohort is of another metric")
    if not len(tensors["cohort"]):
        raise ValueError("gate.cohort is empty")
