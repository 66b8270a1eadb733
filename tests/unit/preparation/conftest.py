"""Pictures, cases about them, and a backbone that answers by a script."""

from pathlib import Path

import pytest
from preparing import Scripted, cases_about, paint_gallery
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.data.queries import EditCase


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return paint_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def cases(gallery: list[Path]) -> list[EditCase]:
    return cases_about(gallery)


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    tiny = tiny_backbone("llava")
    monkeypatch.setattr(tiny, "generate", Scripted())
    return tiny
