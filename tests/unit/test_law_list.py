"""The list of laws names tests that exist, and every contract test is in it."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

SECTIONS = re.split(r"^## ", (TESTS / "LAWS.md").read_text(), flags=re.MULTILINE)[1:]

CONTRACT = sorted(path.relative_to(TESTS).as_posix() for path in (TESTS / "contract").glob("test_*.py"))


def functions_of(file: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", (TESTS / file).read_text(), flags=re.MULTILINE))


def named() -> set[tuple[str, str]]:
    """``(file, test)``; a test without a file is in the file that its section's title names, a file without a test is
    meant as a whole."""
    found = set()
    for section in SECTIONS:
        title, text = section.split("\n", 1)
        usual = re.search(r"`([\w/]+\.py)`", title)
        for file, test in re.findall(r"`(?:((?:\w+/)+test_\w+\.py))?(?:::)?(test_\w+(?!\.py))?`", text):
            if file or test:
                found.add((file or (usual[1] if usual else ""), test))
    return found


def test_every_test_that_is_named_exists() -> None:
    assert len(named()) > 100
    for file, test in named():
        assert (TESTS / file).is_file(), file
        assert not test or test in functions_of(file), f"{file}::{test}"


@pytest.mark.parametrize("file", CONTRACT)
def test_every_contract_test_is_named(file: str) -> None:
    missing = functions_of(file) - {test for where, test in named() if where == file}
    assert not missing, f"say in tests/LAWS.md which law {', '.join(sorted(missing))} of {file} holds"
