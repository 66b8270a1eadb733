"""A seeded edit gives the numbers that it gave before; see `make` for where they come from."""

import json
from pathlib import Path
from typing import Any

import pytest
from make import FAMILIES, FILE, SETTINGS, values

GOLDEN = json.loads(FILE.read_text())


def flat(value: Any, name: str = "") -> dict[str, float]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: number for part, each in pairs for key, number in flat(each, f"{name}/{part}").items()}
    return {name: value}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_gives_the_same_numbers_as_ever(family: str, tmp_path: Path) -> None:
    found, expected = flat(values(family, tmp_path)), flat(GOLDEN["families"][family])
    assert found.keys() == expected.keys()
    moved = {name: (expected[name], number) for name, number in found.items() if not close(number, expected[name])}
    assert not moved, f"(before, now): {moved}"


def close(number: float, expected: float) -> bool:
    return number == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_the_file_says_where_it_comes_from_and_is_complete() -> None:
    assert GOLDEN["origin"].startswith("Made by tests/golden/make.py with torch")
    assert set(GOLDEN["families"]) == set(FAMILIES)
    for found in GOLDEN["families"].values():
        assert set(found) == {"plain", *SETTINGS}
        for name in SETTINGS:
            losses = zip(found["plain"]["loss"], found[name]["loss"], strict=True)
            assert any(abs(before - after) > 0.1 for before, after in losses)
