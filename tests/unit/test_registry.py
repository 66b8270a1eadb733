"""Names, discovery and "did you mean"."""

import sys
from pathlib import Path

import pytest

from unike.core.errors import UnikeError
from unike.core.registry import Registry, backbones


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "sample_editors"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text("class Base:\n    name = 'base'\n")
    (folder / "_private.py").write_text("")
    (folder / "unike.py").write_text("from sample_editors.base import Base\nclass Unike(Base):\n    name = 'unike'\n")
    (folder / "broken.py").write_text("raise RuntimeError('imported without being asked for')\n")
    (folder / "empty.py").write_text("class Other:\n    name = 'other'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "sample_editors"
    for module in [name for name in sys.modules if name.split(".")[0] == "sample_editors"]:
        del sys.modules[module]


def test_names_are_the_files_without_base_and_private_ones(package: str) -> None:
    assert Registry("editor", package).names() == ["broken", "empty", "unike"]


def test_get_imports_only_what_is_asked_for(package: str) -> None:
    found = Registry("editor", package).get("unike")
    assert found.__name__ == "Unike"
    assert "sample_editors.broken" not in sys.modules


def test_unknown_name_suggests_the_closest(package: str) -> None:
    with pytest.raises(UnikeError) as error:
        Registry("editor", package).get("unik")
    assert str(error.value) == "unknown editor 'unik'; did you mean 'unike'? (known: broken, empty, unike)"


def test_nothing_close_suggests_nothing(package: str) -> None:
    with pytest.raises(UnikeError, match="unknown editor 'zzzz' \\(known"):
        Registry("editor", package).get("zzzz")


def test_a_file_without_its_class_is_a_programming_error(package: str) -> None:
    with pytest.raises(TypeError, match=r"sample_editors\.empty has no class"):
        Registry("editor", package).get("empty")


def test_the_backbones_are_discovered() -> None:
    assert {"blip2", "llava", "qwen_vl", "idefics3"} <= set(backbones.names())
    assert backbones.get("llava").name == "llava"
