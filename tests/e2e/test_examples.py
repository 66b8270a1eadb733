"""Every example runs, on a tiny model: what it prints is not sensible, but each line works."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
from tinies import tiny_backbone

from unike import api
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path, monkeypatch, capsys, home):
    tiny_backbone("llava").save_pretrained(tmp_path / "tiny")
    shutil.copytree(home / "knowledge", tmp_path / "home" / "knowledge")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(api, "default_anchors", lambda: Anchors([Query("What is two plus two?")]))
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "tiny")])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert "before:" in printed
    assert len(printed.splitlines()) >= 4


def test_there_are_examples():
    assert len(EXAMPLES) >= 2
