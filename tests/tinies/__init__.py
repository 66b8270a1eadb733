"""A tiny random model of every family: 4 layers in fp32, built on the spot from a config, without a download.

The file of a family has the family's name and a dictionary `TINIES`: one function ``(seed=0) -> Backbone`` where one
will do, several where a family comes with several decoders or in several generations. Files are found, not listed.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unike.backbones.adapter import Backbone
from unike.core import registry

HERE = Path(__file__).parent

MISSING = [name for name in registry.backbones.names() if not (HERE / f"{name}.py").is_file()]
"""Families that nobody has written a tiny model of; `unit/test_tinies.py` says what to write."""

TINIES: dict[str, Callable[..., Backbone]] = {
    name: make
    for family in registry.backbones.names()
    if family not in MISSING
    for name, make in importlib.import_module(f"tinies.{family}").TINIES.items()
}
"""Every tiny model there is, by its name."""


def tiny_backbone(name: str, seed: int = 0, **config: Any) -> Any:
    """One of `TINIES`.

    Args:
        name: Of the model, for example ``"llava"`` or ``"blip2-opt"``.
        seed: Of the weights.
        **config: Further fields of its decoder's config, where its function takes them.
    """
    return TINIES[name](seed, **config)
