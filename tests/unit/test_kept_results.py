"""What ``results/`` holds: compressed lines, and what is small and made of them."""

import gzip
import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from reports import case, header, write

from unike.bench.results import ResultsFile, find_runs, read_run
from unike.core.errors import UnikeError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"

KINDS = {".md", ".csv", ".json", ".svg", ".gz"}
MADE = ("report.html",)
"""By `make report`, and ignored."""


@pytest.fixture(scope="module")
def packing() -> ModuleType:
    """``scripts/results/pack.py``."""
    spec = importlib.util.spec_from_file_location("pack", ROOT / "scripts" / "results" / "pack.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_kept_is_small_and_of_few_kinds() -> None:
    kept = [path for path in RESULTS.rglob("*") if path.is_file() and path.name not in MADE]
    others = [path for path in kept if path.suffix not in KINDS and path != RESULTS / "mini" / "train_log.jsonl"]
    assert not others
    assert all(path.stat().st_size < 2 << 20 for path in kept)


def test_lines_are_packed_without_a_time() -> None:
    for run in find_runs(RESULTS):
        (path,) = run.glob("results*.jsonl*")
        assert path.name == "results.jsonl.gz" and path.read_bytes()[4:8] == bytes(4), path


def test_parts_become_one_file_which_is_the_same_each_time(packing: ModuleType, tmp_path: Path) -> None:
    for part, names in enumerate(["ac", "bc"]):
        with ResultsFile(tmp_path / "runs" / "ft", header(edited=3), part=part) as file:
            for name in names:
                file.append(name, [case(name)])
    (packed,) = packing.pack(tmp_path / "runs", tmp_path / "kept")
    assert packed == tmp_path / "kept" / "ft" / "results.jsonl.gz"
    whole, kept = read_run(tmp_path / "runs" / "ft"), read_run(packed.parent)
    assert kept.header == whole.header and kept.units == whole.units and [*kept.units] == ["a", "c", "b"]
    assert Counter(gzip.decompress(packed.read_bytes()).split(b"\n"))[b""] == 1
    before = packed.read_bytes()
    packing.pack(tmp_path / "runs" / "ft", tmp_path / "kept" / "ft")
    assert packed.read_bytes() == before


def test_what_is_not_finished_or_in_the_way_is_refused(packing: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "runs" / "done")
    write(tmp_path / "runs" / "half", edited=9)
    with pytest.raises(UnikeError, match="half has 4 of 9 cases; finish it first"):
        packing.pack(tmp_path / "runs", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    write(tmp_path / "kept", seed=1)
    with pytest.raises(UnikeError, match="kept holds results already"):
        packing.pack(tmp_path / "runs" / "done", tmp_path / "kept")
