"""Editors set so that they teach a tiny model quickly, and how alike an edit of a batch is to one made alone."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from unike.core import registry
from unike.editors.base import Editor
from unike.editors.common.anchors import Anchors

SETTINGS: dict[str, dict[str, Any]] = {
    "ft": {"lr": 1e-2, "steps": 30},
    "t_patcher": {"lr": 6e-2, "steps": 60, "max_neurons": 8, "amplify": 2.0, "memory_weight": 0.0, "layers": (-2, -1)},
    "unike": {
        "lr": 4e-2,
        "steps": 60,
        "n_pairs": 6,
        "threshold": 0.0,
        "layers": (-3, -2, -1),
        "k": 5,
        "alpha_offset": 0.2,
    },
}
"""What makes a random model of width 32 learn a target quickly; an editor that is not named is run as it comes."""

ONLY_TRAINED: dict[str, dict[str, Any]] = {"unike": {"only_intrinsic": True}, "t_patcher": {"amplify": 0.0}}
"""What leaves out the parts of an edit that act without any training: a memory, values that start at random."""

ATOL, RTOL = 5e-4, 5e-3
"""Between the logits of the same edit in a batch and alone, and between the elements of an edit that was made in a
batch and of the same edit made alone (over their root mean square).

The matrix products of a longer, padded row add up in another order, which moves a gradient by about 1e-7. Adam divides
each element by its own size: nearly all elements differ by 1e-6 after three steps, but one whose gradient is as small
as the noise may step the other way, and which one does depends on the processor. So nine elements in ten are looked
at, and of the logits how far they are apart beside what the edit changed. In a row that sees another row's edit,
nearly all elements are off by more than 1e-2. With more steps the noise grows, hence three.
"""


def an_editor(name: str, anchors: Anchors, **settings: Any) -> Editor[Any]:
    editor: Editor[Any] = registry.editors.get(name)(anchors=anchors, **SETTINGS.get(name, {}) | settings)
    return editor


def alike(batched: Tensor, alone: Tensor) -> bool:
    """Whether a tensor of a batch is that of an edit made alone, filled up with zeros where others have more tokens."""
    own = tuple(slice(size) for size in alone.shape)
    apart, scale = (batched[own] - alone).float().abs(), alone.float().square().mean().sqrt()
    return bool(apart.quantile(0.9) <= RTOL * scale) and batched[own].count_nonzero() == batched.count_nonzero()


def few(make_editor: Callable[..., Editor[Any]], steps: int = 3) -> Editor[Any]:
    """An editor that takes few steps, where it takes steps at all."""
    return make_editor(**({"steps": steps} if "steps" in make_editor().config_class.model_fields else {}))
