"""Fixtures every test may use: pictures on disk and a tiny model of every family there is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from unike.backbones import tinies
from unike.backbones.base import Backbone
from unike.types import Query

TINIES: dict[str, Callable[..., Backbone]] = tinies()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three RGB pictures of different sizes and shapes, full of detail."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for number, (height, width) in enumerate([(40, 40), (30, 50), (48, 32)]):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels.numpy()).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def facts(pictures: list[Path]) -> list[Query]:
    """Prompts and targets of different lengths."""
    return [
        Query("What is this?", pictures[0], "a cat"),
        Query("Which colour has the thing in the middle of it?", pictures[1], "red"),
        Query("Who?", pictures[2], "bob"),
    ]


@pytest.fixture(scope="session", params=sorted(TINIES))
def make_backbone(request: pytest.FixtureRequest) -> Callable[..., Backbone]:
    """A function ``(seed=0) -> Backbone`` for each tiny model of each family."""
    return TINIES[request.param]


@pytest.fixture(scope="session")
def backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    """Each tiny model in turn. Shared: a test that changes one must put it back."""
    return make_backbone()
