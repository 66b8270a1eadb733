"""What is installed and cited: one version, one name, extras that there are, and every file that the package reads."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import unike
from unike.core.extras import bring
from unike.core.version import DISTRIBUTION

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "unike"


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """``pyproject.toml``."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def test_one_version_everywhere(metadata: dict[str, Any]) -> None:
    assert metadata["project"]["dynamic"] == ["version"] and "version" not in metadata["project"]
    assert metadata["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "unike.core.version.__version__"}
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version: (.+)$", citation, re.MULTILINE)
    (released,) = re.findall(r"^date-released: (.+)$", citation, re.MULTILINE)
    newest, *_ = re.findall(r"^## \[(\d.*?)\] - (.+)$", changes, re.MULTILINE)
    assert newest == (version, released) and version == unike.__version__ and date.fromisoformat(released)


def test_no_name_of_another_project(metadata: dict[str, Any]) -> None:
    project = metadata["project"]
    assert project["name"] == DISTRIBUTION and project["scripts"] == {"unike": "unike.cli:main"}
    required = [each for extra in project["optional-dependencies"].values() for each in extra]
    assert {each.partition("[")[0] for each in required if each.startswith("unike")} == {DISTRIBUTION}
    named = re.compile(r"pip install (?:-\S+ )*[\"']?unike(?!-edit)")
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]:
        assert not named.search(path.read_text(encoding="utf-8")), path


def test_every_extra_that_is_named_exists(metadata: dict[str, Any]) -> None:
    texts = [path.read_text(encoding="utf-8") for path in [*SOURCE.rglob("*.py"), *(ROOT / "docs").glob("*.md")]]
    ways = (r"needing\(\"(\w+)\"\)", r"bring\('(\w+)'\)", r"-e \"\.\[(\w+)\]\"")
    names = {name for text in texts for way in ways for name in re.findall(way, text)}
    assert {"serve", "store", "studio"} <= names <= metadata["project"]["optional-dependencies"].keys()
    assert bring("serve") == 'pip install "unike-edit[serve]"'


def test_a_wheel_has_every_file(metadata: dict[str, Any]) -> None:
    patterns = metadata["tool"]["setuptools"]["package-data"]["unike"]
    there = {path for pattern in patterns for path in SOURCE.glob(pattern)}
    files = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path for path in files if path.suffix != ".py"} <= there
    folders = {path.parent for path in files if path.suffix == ".py"}
    assert all((folder / "__init__.py").is_file() for folder in folders)  # or it would be no package
