"""Ramps of what is asked and of whom, for tests that need a gate to be half open."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from unike.editors.unike import gate
from unike.editors.unike.gate import Ramp

WIDE = {"ASKED": Ramp(-1.0, 0.95), "ASKED_OF_NAMED": Ramp(-1.0, 0.95), "NAMED": Ramp(-0.5, 0.95)}
"""1 for the same words, and something between 0 and 1 for any other."""


@contextmanager
def words(**ramps: Ramp) -> Iterator[None]:
    """Within the block these ramps stand for those that ship."""
    with pytest.MonkeyPatch.context() as patch:
        for name, ramp in ramps.items():
            patch.setattr(gate, name, ramp)
        yield
