"""Runs with known numbers, made by hand."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unike.bench.header import Counts, Header
from unike.bench.outcome import Asked, CaseResult
from unike.bench.results import ResultsFile
from unike.bench.spec import RunSpec
from unike.data.queries import probe_kinds
from unike.editors.ft import FTConfig
from unike.editors.unike.config import UniKEConfig
from unike.report import Table

HEADER = Header(
    spec=RunSpec(editor="ft", dataset="pocket-vqa", dtype="float32", device="cpu", max_new_tokens=16),
    config=FTConfig().model_dump(mode="json"),
    fingerprint="f00d",
    cases="ca5e5",
    counts=Counts(read=5, right=1, edited=4),
    unike="0.1.0",
    git={"commit": "c0ffee", "dirty": False},
    threads=1,
)
"""Of a run of ``ft`` as it comes."""


def header(**changes: Any) -> Header:
    """`HEADER` with some fields, of its `RunSpec` too, changed; of counts, ``edited``."""
    of_spec = {name: changes.pop(name) for name in list(changes) if hasattr(HEADER.spec, name)}
    if "edited" in changes:
        changes["counts"] = replace(HEADER.counts, edited=changes.pop("edited"))
    return replace(HEADER, spec=replace(HEADER.spec, **of_spec), **changes)


def asked(kind: str, right: float | None, **changes: Any) -> Asked:
    """A question that got ``right`` under strict, and full marks under teacher forcing."""
    scores = {"strict/exact": right, "teacher_forced/em": 1.0, "teacher_forced/token": 1.0}
    told = {"prompt": f"{kind}?", "image": None, "target": "new", "before": "old", "after": "new", **changes}
    return Asked(kind, scores=scores, **told)


def case(
    name: str, wrong: Sequence[str] = (), kinds: Iterable[str] = tuple(probe_kinds()), **changes: Any
) -> CaseResult:
    """A case whose questions are all right under strict, but those of some kinds."""
    return CaseResult(name, "flag", tuple(asked(kind, float(kind not in wrong)) for kind in kinds), 0.5, **changes)


def write(folder: Path, units: dict[str, list[CaseResult]] | None = None, **changes: Any) -> Path:
    """A run on disk; by default of four cases, in one of which M-Gen. and T-Loc. went wrong.

    Args:
        folder: Where to; made if need be.
        units: What it holds.
        **changes: As in `header`.
    """
    if units is None:
        units = {name: [case(name, ["m_generality", "t_locality"] if name == "a" else [])] for name in "abcd"}
    with ResultsFile(folder, header(**changes)) as file:
        for name, cases in units.items():
            file.append(name, cases)
    return folder


def shown(table: Table) -> dict[str, list[str]]:
    """Method to the texts of its cells."""
    return {method: [cell.text for cell in cells] for method, cells in table.rows}


def bold(table: Table) -> dict[str, list[bool]]:
    return {method: [cell.best for cell in cells] for method, cells in table.rows}


def sequence(number: int, k: int, wrong: dict[str, list[str]] | None = None) -> dict[str, list[CaseResult]]:
    """A sequence of k cases, each asked right after its edit (all right) and at the end."""
    names = [f"{number}-{position}" for position in range(k)]
    where = [{"sequence": number, "position": position} for position in range(k)]
    own = [case(name, when="own", **there) for name, there in zip(names, where, strict=True)]
    end = [case(name, (wrong or {}).get(name, []), **there) for name, there in zip(names, where, strict=True)]
    return {f"sequence-{number:05d}": own + end}


def unike(**settings: Any) -> dict[str, Any]:
    config = UniKEConfig.parse(settings)
    return {"editor": "unike", "config": config.model_dump(mode="json"), "settings": config.fewest()}
