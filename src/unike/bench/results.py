"""Results of a benchmark run: append-only JSON lines that survive a kill at any moment, and their summary.

=====================  ================================================================================
line                   what it holds
=====================  ================================================================================
the first              the header: everything the numbers depend on (`unike.bench.runner` writes it)
each other             ``{"unit": "vqa-eval-0007", "cases": [...]}``: a case in one-step editing, a whole
                       sequence otherwise; each entry of ``cases`` is a `unike.bench.outcome.CaseResult`
=====================  ================================================================================

A line is on disk as a whole or not at all: one that was cut short is dropped when the run goes on. Several processes
write ``results.0.jsonl``, ``results.1.jsonl`` and so on, each with the same header; whoever reads takes all together.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from typing_extensions import Self

from unike.bench.metrics import METRICS, PROTOCOLS, the_protocol
from unike.bench.outcome import Asked, CaseResult
from unike.core.errors import UnikeError
from unike.core.files import check_writable

FORMAT = 1

MAY_DIFFER = frozenset({"threads"})
"""Parts of a header that may change when a run goes on."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk, finished or not.

    Args:
        header: See the module.
        units: Name of a unit to its cases, in the order in which units were finished.
    """

    header: dict[str, Any]
    units: dict[str, list[CaseResult]]

    @property
    def cases(self) -> list[CaseResult]:
        """The results of every unit."""
        return [case for unit in self.units.values() for case in unit]


class ResultsFile:
    """One process's part of a run, open for appending; to be used in a ``with`` block.

    Args:
        folder: Of the run; made if need be.
        header: Of the run.
        part: Number of this process, or None if it is the only one.

    Raises:
        UnikeError: The folder holds another run (what differs is named) or something else, cannot be written, or is
            being written by another process.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], *, part: int | None = None) -> None:
        self.path = folder / ("results.jsonl" if part is None else f"results.{part}.jsonl")
        self._lock = FileLock(folder / f".{self.path.name}.lock")
        check_same_run(folder, header)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()  # before its lock: a folder with a lock alone would be something else
            self._lock.acquire(timeout=0)
            self._file = self.path.open("ab")
            whole = _whole_bytes(self.path)
            self._file.truncate(whole)
            if not whole:
                self._write({"format": FORMAT, **header})
        except Timeout:
            raise UnikeError(f"{self.path} is being written by another process; wait for it, or end it") from None
        except OSError as error:
            raise UnikeError(f"cannot write {self.path}: {error.strerror}; choose another folder") from None

    def append(self, unit: str, cases: Sequence[CaseResult]) -> None:
        """Put a finished unit on disk.

        Raises:
            UnikeError: The disk is full, or the like.
        """
        try:
            self._write({"unit": unit, "cases": [to_json(case) for case in cases]})
        except OSError as error:
            raise UnikeError(f"cannot write {self.path}: {error.strerror}; run again to go on from here") from None

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the file; all that was appended is on disk already."""
        self._file.close()
        with suppress(OSError):  # where an open file cannot be removed, releasing the lock does
            Path(self._lock.lock_file).unlink()
        self._lock.release()


def check_place(folder: Path) -> None:
    """Refuse a folder that a run could not be written to, without touching anything.

    Raises:
        UnikeError: It is a file, holds something else, or cannot be written.
    """
    check_writable(folder)
    try:
        if folder.is_dir() and any(folder.iterdir()) and not _parts(folder):
            raise UnikeError(f"{folder} holds something else; choose an empty or a new folder")
    except OSError as error:  # one that may be written to, but not listed
        raise UnikeError(f"cannot read {folder}: {error.strerror}; choose another folder") from None


def check_same_run(folder: Path, header: Mapping[str, Any]) -> None:
    """Refuse a folder where a run with this header could neither begin nor go on.

    Args:
        folder: Of the run.
        header: Or a part of one.

    Raises:
        UnikeError: As `check_place`; or the folder holds a run that was begun otherwise (what differs is named).
    """
    check_place(folder)
    found = read_header(folder)
    if found is None:
        return
    there, wanted = _flat(found), _flat(json.loads(json.dumps(header)))
    begun = {key.partition(".")[0] for key in wanted}
    keys = [key for key in {**wanted, **there} if key.partition(".")[0] in begun - MAY_DIFFER]
    differ = [key for key in keys if there.get(key) != wanted.get(key)]
    if differ:
        told = ", ".join(f"{key} is {_short(there.get(key))}, not {_short(wanted.get(key))}" for key in differ)
        raise UnikeError(f"{folder} holds another run: there {told}; choose another folder")


def find_runs(folder: Path) -> list[Path]:
    """Every folder that holds a run, from this one downwards, in order of their names.

    Raises:
        UnikeError: There is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UnikeError(f"{folder} is not a folder; give one that `unike bench --out` wrote, or one above it")
    found = sorted({path.parent for path in folder.rglob("results*.jsonl*") if path in _parts(path.parent)})
    if not found:
        raise UnikeError(f"no results in {folder}: it holds no results.jsonl, and neither does a folder in it")
    return found


def read_header(folder: Path) -> dict[str, Any] | None:
    """The header of a run; None where none was begun.

    Raises:
        UnikeError: A file is damaged.
    """
    for path in _parts(folder):
        for entry in _read(path):
            return entry
    return None


def read_run(folder: Path) -> Run:
    """Read all parts of a run, compressed ones (``.jsonl.gz``) too.

    Raises:
        UnikeError: There is no run, or its files are damaged or of several runs.
    """
    header: dict[str, Any] | None = None
    units: dict[str, list[CaseResult]] = {}
    for path in _parts(folder):
        for number, entry in enumerate(_read(path)):
            if number == 0:
                if header is not None:
                    check_same_run(folder, entry)
                header = header or entry
                continue
            try:
                units.setdefault(entry["unit"], [from_json(case) for case in entry["cases"]])
            except (LookupError, TypeError) as error:
                raise UnikeError(f"{path}, line {number + 1} is damaged: {error!r}") from None
    if header is None:
        raise UnikeError(f"no results in {folder}: results.jsonl is missing or empty")
    return Run(header, units)


def to_json(case: CaseResult) -> dict[str, Any]:
    """A result as a line has it; questions without notes have no such key."""
    entry = asdict(case)
    for asked in entry["asked"]:
        if not asked["notes"]:
            del asked["notes"]
    return entry


def from_json(entry: Mapping[str, Any]) -> CaseResult:
    """The other way round.

    Raises:
        TypeError: Unknown or missing keys.
        KeyError: No questions.
    """
    return CaseResult(**{**entry, "asked": tuple(Asked(**asked) for asked in entry["asked"])})


def _parts(folder: Path) -> list[Path]:
    return sorted([*folder.glob("results.jsonl*"), *folder.glob("results.*.jsonl*")])


def _whole_bytes(path: Path) -> int:
    """The length of a file without a last line that was cut short."""
    content = path.read_bytes()
    return content.rfind(b"\n") + 1


def _read(path: Path) -> Iterable[dict[str, Any]]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UnikeError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(content.split(b"\n")[:-1]):  # what follows the last line break was cut short
        try:
            entry = json.loads(line)
            if number == 0 and entry["format"] != FORMAT:
                raise UnikeError(f"{path} has format {entry['format']}, this version reads {FORMAT}; update unike")
            yield dict(entry)
        except (ValueError, LookupError, TypeError) as error:
            raise UnikeError(f"{path}, line {number + 1} is damaged: {error!r}") from None


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """One entry for each setting: ``{"config": {"lr": 1}}`` to ``{"config.lr": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in header.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------------- summary

COLUMNS = (
    "model",
    "editor",
    "dataset",
    "setting",
    "k",
    "protocol",
    "scorer",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "seed",
)
"""Keys of a summary's rows, in the order of a CSV file."""

VIEWS = {
    "strict/exact": ("exact",),
    "teacher_forced/em": ("em",),
    "teacher_forced/token": ("token",),
    "mmedit": ("token", "top1", "top10"),
}
"""What one column or table shows, after its protocol, and the scorers in it: one a metric. Summaries hold more."""


def summarise(run: Run, *, resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """Means with bootstrap 95 % intervals: a row for each setting, protocol, scorer and metric.

    What is resampled are the units that were edited independently: cases in one-step editing, sequences otherwise. A
    sequence asked at other times than its end has settings of its own, ``"sequential:own"``, ``"sequential:at-10"``.

    Args:
        run: From `read_run`.
        resamples: Draws of the bootstrap, with the run's seed.

    Returns:
        Rows with the keys of `COLUMNS`; ``value``, ``low`` and ``high`` are shares from 0 to 1, None where a score is
        not defined for the method; ``n`` counts questions.
    """
    header = run.header
    shared = {"model": header["model"], "editor": header["editor"], "dataset": header["dataset"]}
    # (when, key, metric) -> unit -> [sum, count]
    sums: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for unit, cases in run.units.items():
        for case in cases:
            for asked in case.asked:
                for key, value in asked.scores.items():
                    totals = sums.setdefault((case.when, key, asked.kind), {}).setdefault(unit, [0.0, 0.0])
                    if value is not None:
                        totals[0] += value
                        totals[1] += 1
    rows = []
    for when, key, metric in sorted(sums, key=_order):
        protocol, scorer = key.split("/")
        value, low, high, n = interval(list(sums[when, key, metric].values()), header["seed"], resamples)
        setting = header["setting"] if when == "end" else f"{header['setting']}:{when}"
        row = shared | {"setting": setting, "k": header["k"], "protocol": protocol, "scorer": scorer, "metric": metric}
        rows.append(row | {"value": value, "low": low, "high": high, "n": n, "seed": header["seed"]})
    return rows


def select(rows: Iterable[Mapping[str, Any]], view: str, setting: str) -> list[Mapping[str, Any]]:
    """The rows of one column of a table.

    Args:
        rows: From `summarise`.
        view: One of `VIEWS`.
        setting: As the rows have it, ``"sequential:own"`` for example.
    """
    wanted = (setting, view.partition("/")[0])
    return [row for row in rows if (row["setting"], row["protocol"]) == wanted and row["scorer"] in VIEWS[view]]


def column(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The rows of one column of a table, by their metric.

    Args:
        rows: From `summarise`, of one setting and at most one scorer for each metric.

    Raises:
        UnikeError: They are of several protocols, whose numbers do not compare.
        ValueError: A metric comes twice.
    """
    the_protocol([row["protocol"] for row in rows])
    found = {row["metric"]: row for row in rows}
    if len(found) != len(rows):
        raise ValueError("a metric comes twice: choose one scorer and one setting")
    return found


def interval(
    totals: Sequence[Sequence[float]], seed: int, resamples: int = RESAMPLES
) -> tuple[float | None, float | None, float | None, int]:
    """A mean over questions and its 95 % percentile interval, resampling whole units.

    Args:
        totals: For each unit, the sum of its scores and their number.
        seed: Of the draws.
        resamples: How many draws.

    Returns:
        Mean, 2.5 % and 97.5 % quantiles (None without any score), and the number of scores.
    """
    import numpy as np

    scores, counts = np.array(sorted(map(list, totals)), dtype=float).T  # in whichever order units were finished
    n = int(counts.sum())
    if not n:
        return None, None, None, 0
    draws = np.random.default_rng(seed).integers(0, len(scores), size=(resamples, len(scores)))
    drawn_counts = counts[draws].sum(axis=1)
    means = scores[draws].sum(axis=1)[drawn_counts > 0] / drawn_counts[drawn_counts > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(scores.sum() / n), float(low), float(high), n


def _order(key: tuple[str, str, str]) -> tuple[Any, ...]:
    when, score, metric = key
    protocol, scorer = score.split("/")
    # "at-10" before "at-100"; the end of a sequence first
    return when != "end", len(when), when, PROTOCOLS.index(protocol), scorer, METRICS.index(metric)
