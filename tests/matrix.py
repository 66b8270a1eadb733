"""Which editors are held to their laws on which families; the laws are listed in ``tests/LAWS.md``.

Whether a family is hooked in the right places does not depend on the editor, so one editor that uses all of them is
held to every law on every family. The others are held to theirs on a few families that differ in what an editor sees.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest
from tinies import TINIES

from unike.core import registry
from unike.editors.trained.base import TrainedEditor
from unike.edits.routing import RoutingEdit

T = TypeVar("T")

FEW = ("llava", "blip2-opt", "qwen3_vl")
"""Gated and ungated feed-forward networks; with norms of queries and keys, three-dimensional positions and features of
the image that join above the first layer."""

STACKS = ("llava", "paligemma")
"""Prompts that are read in one direction, so that most of a pass is shared, and in both, so that nothing is."""

WITNESS = "unike"
"""The editor that is held to every law on every family: it acts in both feed-forward networks and attention."""

ROUTING = [name for name in registry.editors.names() if issubclass(registry.editors.get(name).edit_class, RoutingEdit)]
"""Editors that rewrite or route questions."""

IDLE = "no_edit"
"""The control that does nothing, of which no law asks anything; see ``unit/test_no_edit.py``."""

WITHIN = [name for name in registry.editors.names() if name not in (*ROUTING, IDLE)]
"""Editors that act within the model."""

TRAINED = [name for name in registry.editors.names() if issubclass(registry.editors.get(name), TrainedEditor)]
"""Editors with a network."""

PAIRS = [(editor, family) for family in sorted(TINIES) for editor in WITHIN if family in FEW or editor == WITNESS]
"""Of an editor that acts within the model and a family."""

BESIDE = ("qwen2_vl", "smolvlm")
"""Families that another one has all code in common with, Qwen2.5-VL and Idefics3; their laws are slow tests."""


def held_later(values: Iterable[T], family_of: Callable[[T], str]) -> list[Any]:
    """Parameters of a test, those of `BESIDE` marked as slow."""
    marked = {True: pytest.mark.slow, False: ()}
    return [pytest.param(value, marks=marked[family_of(value) in BESIDE]) for value in values]
