"""Every family has a tiny model, which depends on its seed alone; without one nothing would be tested on the family."""

import pytest
import torch
from tinies import MISSING, TINIES, tiny_backbone

from unike.core import registry


def test_every_family_has_one() -> None:
    assert not MISSING, (
        f"no tiny model of {', '.join(MISSING)}: write tests/tinies/{MISSING[0]}.py with a random model of 4 layers in "
        'fp32, built from a config by the parts in tests/tinies/parts.py, and TINIES = {"name": function of a seed}; '
        "tests/tinies/llava.py is an example"
    )
    assert {TINIES[name]().name for name in TINIES} == set(registry.backbones.names())


@pytest.mark.parametrize("name", TINIES)
def test_it_depends_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    random = torch.random.get_rng_state()
    first = tiny_backbone(name).model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), random), "the caller's random numbers are the caller's"
    torch.rand(3)
    again, other = (tiny_backbone(name, seed).model.state_dict() for seed in (0, 1))
    assert all(torch.equal(first[key], tensor) for key, tensor in again.items())
    assert any(not torch.equal(first[key], tensor) for key, tensor in other.items())
    assert {tensor.dtype for tensor in first.values() if tensor.is_floating_point()} == {torch.float32}
