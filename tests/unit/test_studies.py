"""``unike study``: variants are what they claim, runs are ordinary ones and used again, and files say what runs say."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from unike.results import read_run, summarise

Cli = Callable[..., Any]


@pytest.fixture
def args(tiny_folder: Path, mmedit: Path) -> tuple[object, ...]:
    """Two cases of MMEdit in miniature, two steps an edit."""
    options = ("--model", tiny_folder, "--dataset", "mmedit-vqa", "--data", mmedit, "--limit", 2, "--out", "out")
    return (*options, "--set", "steps=2", "--max-new-tokens", 3, "--protocol", "strict")


def test_a_study_is_a_set_of_runs_a_table_and_a_figure(
    cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli("study", "alpha", *args, "--at", "0,0.5", "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert sorted(found["files"]) == [f"out/alpha.{kind}" for kind in ("csv", "md", "png", "svg")]

    dynamic = read_run(Path("out/unike"))
    mean = fmean(asked.notes["alpha"] for case in dynamic.cases for asked in case.asked)
    constant = read_run(Path(f"out/unike-fixed_alpha={round(mean, 4)}"))
    assert dynamic.header["config"]["fixed_alpha"] is None and dynamic.header["config"]["steps"] == 2
    assert constant.header["config"]["fixed_alpha"] == pytest.approx(mean, abs=1e-4)

    rows = list(csv.DictReader(Path("out/alpha.csv").open()))
    assert {row["editor"] for row in rows} == {"fixed 0", "fixed 0.5", "dynamic", "constant mean of the dynamic one"}
    told = {row["metric"]: row["value"] for row in rows if row["editor"] == "dynamic"}
    assert told == {row["metric"]: str(row["value"]) for row in summarise(dynamic)}

    monkeypatch.setattr("unike.studies.base.load_backbone", lambda *args, **kwargs: pytest.fail("loaded"))
    assert json.loads(cli("study", "alpha", *args, "--at", "0,0.5", "--json").out) == found, "finished runs are used"
