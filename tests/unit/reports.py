"""Runs with known numbers, made by hand."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unike.bench.metrics import METRICS
from unike.bench.outcome import Asked, CaseResult
from unike.bench.results import ResultsFile
from unike.editors.ft import FTConfig

HEADER = {
    "unike": "0.1.0",
    "git": {"commit": "c0ffee", "dirty": False},
    "model": "mini",
    "fingerprint": "f00d",
    "dtype": "float32",
    "device": "cpu",
    "editor": "ft",
    "config": FTConfig().model_dump(mode="json"),
    "dataset": "pocket-vqa",
    "split": "eval",
    "cases": "ca5e5",
    "setting": "one-step",
    "k": 1,
    "seed": 0,
    "limit": None,
    "batch": 16,
    "evaluate_at": [],
    "sample": None,
    "protocols": ["strict", "teacher_forced"],
    "max_new_tokens": 16,
    "engine": "fast",
    "threads": 1,
    "counts": {"read": 5, "skipped": 0, "right": 1, "edited": 4},
}
"""Of a run of ``ft`` as it comes."""


def asked(kind: str, right: float | None, **changes: Any) -> Asked:
    """A question that got ``right`` under strict, and full marks under teacher forcing."""
    scores = {"strict/exact": right, "teacher_forced/em": 1.0, "teacher_forced/token": 1.0}
    told = {"prompt": f"{kind}?", "image": None, "target": "new", "before": "old", "after": "new", **changes}
    return Asked(kind, scores=scores, **told)


def case(name: str, wrong: Sequence[str] = (), kinds: Iterable[str] = METRICS, **changes: Any) -> CaseResult:
    """A case whose questions are all right under strict, but those of some kinds."""
    return CaseResult(name, "flag", tuple(asked(kind, float(kind not in wrong)) for kind in kinds), 0.5, **changes)


def write(folder: Path, units: dict[str, list[CaseResult]] | None = None, **changes: Any) -> Path:
    """A run on disk; by default of four cases, in one of which M-Gen. and T-Loc. went wrong.

    Args:
        folder: Where to; made if need be.
        units: What it holds.
        **changes: Of `HEADER`.
    """
    if units is None:
        units = {name: [case(name, ["m_generality", "t_locality"] if name == "a" else [])] for name in "abcd"}
    with ResultsFile(folder, {**HEADER, **changes}) as file:
        for name, cases in units.items():
            file.append(name, cases)
    return folder
