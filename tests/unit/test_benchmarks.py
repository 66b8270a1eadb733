"""Benchmarks that a GPU is for can be run without one."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from unike.core import registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def large_models(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return runpy.run_path(str(BENCHMARKS / "large_models.py"))


@pytest.mark.slow
def test_a_tiny_one_is_measured(
    large_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "tiny.json"
    args = ["--size", "tiny", "--device", "cpu", "--steps", "2", "--batches", "1", "2", "--repeat", "1"]
    monkeypatch.setattr(sys, "argv", ["large_models.py", *args, "--out", str(out)])
    large_models["main"]()
    report = json.loads(out.read_text())
    assert (report["device"], report["dtype"], report["editor"]["config"]["steps"]) == ("cpu", "torch.float32", 2)
    assert [row["batch"] for row in report["edits"]] == [1, 2]
    assert all(row["edits_per_second"] > 0 < row["ratio"] and row["peak_gb"] is None for row in report["edits"])
    assert report["probes"]["probes_per_second"] > 0 < report["probes"]["with_full_forwards"]
    assert str(tmp_path) not in out.read_text()


@pytest.mark.parametrize(
    ("size", "layers", "width", "vocabulary"), [("7b", 32, 4096, 32000), ("2.7b", 32, 2560, 50304)]
)
def test_the_large_ones_are_the_published_ones(
    large_models: Any, size: str, layers: int, width: int, vocabulary: int
) -> None:
    config = large_models["config"](size)
    text, vision = config.text_config, config.vision_config
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size) == (layers, width, vocabulary)
    assert (vision.num_hidden_layers, vision.hidden_size) == (39, 1408)
    assert (config.qformer_config.num_hidden_layers, config.num_query_tokens) == (12, 32)


def test_every_method_of_the_paper_has_the_same_budget() -> None:
    """And settings that its editor, or its network, understands."""
    tuning = runpy.run_path(str(BENCHMARKS / "tuning.py"))
    others = {"answer_cache", "intrinsic_ike", "no_edit", "retrieval_prompt"}
    methods = {*registry.editors.names()} - others
    assert set(tuning["GRID"]) == methods
    assert {len(settings) for settings in tuning["GRID"].values()} == {4}
    for editor, grid in tuning["GRID"].items():
        method = registry.editors.get(editor)
        parse = (method.network_settings if editor in tuning["TRAINED"] else method.config_class).parse
        assert grid[0] == {} and len({str(parse(settings)) for settings in grid}) == 4, editor


def test_the_best_setting_of_each_method_is_marked() -> None:
    tuning = runpy.run_path(str(BENCHMARKS / "tuning.py"))
    metrics = (*tuning["JUDGED"], *tuning["ALSO"])
    rows = [
        ("ft", {}, dict.fromkeys(metrics, 50.0)),
        ("ft", {"lr": 0.001}, dict.fromkeys(metrics, 50.0) | {"reliability": 60.0, "portability": 0.0}),
        ("ke", {"layers": [-1]}, dict.fromkeys(metrics, 10.0)),
    ]
    lines = tuning["table"](rows).splitlines()[2:]
    assert lines == [
        "| `ft` | default | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 |",
        "| `ft` | **lr=0.001** | 60.0 | 50.0 | 50.0 | 50.0 | 50.0 | 52.0 | 50.0 | 0.0 |",
        "| `ke` | **layers=[-1]** | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 |",
    ]
