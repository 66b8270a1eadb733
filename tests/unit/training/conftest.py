"""A model that knows a little, what it learned and what it is judged by, and a home of its own."""

from pathlib import Path

import miniature
import pytest

from unike.backbones.adapter import Backbone
from unike.data.queries import EditCase


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return miniature.paint_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def learned(gallery: list[Path]) -> list[EditCase]:
    return miniature.learned_cases(gallery)


@pytest.fixture(scope="module")
def judged(gallery: list[Path]) -> list[EditCase]:
    return miniature.judged_cases(gallery)


@pytest.fixture(scope="module")
def model(learned: list[EditCase]) -> Backbone:
    return miniature.teach(learned)


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
