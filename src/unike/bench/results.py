"""Results of a benchmark run on disk: append-only JSON lines that survive a kill at any moment.

=====================  ================================================================================
line                   what it holds
=====================  ================================================================================
the first              the header: everything the numbers depend on (`unike.bench.header.Header`)
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

from unike.bench.header import Header
from unike.bench.outcome import Asked, CaseResult
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import check_writable
from unike.core.settings import folded

FORMAT = 1

MAY_DIFFER = frozenset({"threads", "settings"})
"""Keys of a header that may change when a run goes on: of the settings, ``config`` has the whole."""


@dataclass(frozen=True)
class RunResults:
    """What a run has measured so far, as it lies on disk.

    Args:
        header: Of the run.
        units: Name of a unit to its cases, in the order in which units were finished.
    """

    header: Header
    units: dict[str, list[CaseResult]]

    @property
    def cases(self) -> list[CaseResult]:
        """The results of every unit."""
        return [case for unit in self.units.values() for case in unit]

    @property
    def cases_done(self) -> int:
        """How many cases have been edited: a unit is a case, or a sequence of k."""
        return len(self.units) * (self.header.spec.k if self.header.spec.in_sequences else 1)

    @property
    def finished(self) -> bool:
        """Whether that is all of them."""
        return self.cases_done >= self.header.counts.edited


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

    def __init__(self, folder: Path, header: Header, *, part: int | None = None) -> None:
        self.path = folder / ("results.jsonl" if part is None else f"results.{part}.jsonl")
        self._lock = FileLock(folder / f".{self.path.name}.lock")
        check_same_run(folder, header.to_json())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()  # before its lock: a folder with a lock alone would be something else
            self._lock.acquire(timeout=0)
            self._file = self.path.open("ab")
            whole = _whole_bytes(self.path)
            self._file.truncate(whole)
            if not whole:
                self._write({"format": FORMAT, **header.to_json()})
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


def check_same_run(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a folder where a run with this header could neither begin nor go on.

    Args:
        folder: Of the run.
        wanted: A header as JSON has it, or some of its keys.

    Raises:
        UnikeError: As `check_place`; or the folder holds a run that was begun otherwise (what differs is named).
    """
    check_place(folder)
    begun = read_header(folder)
    if begun is None:
        return
    keys = wanted.keys() - MAY_DIFFER
    there, here = (
        folded({key: header[key] for key in header if key in keys})
        for header in (as_of_today(begun.to_json(), wanted), json.loads(json.dumps(wanted)))
    )
    differ = [key for key in {**here, **there} if there.get(key) != here.get(key)]
    if differ:
        told = ", ".join(f"{key} is {_short(there.get(key))}, not {_short(here.get(key))}" for key in differ)
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


def read_header(folder: Path) -> Header | None:
    """The header of a run; None where none was begun.

    Raises:
        UnikeError: A file is damaged.
    """
    for path in _parts(folder):
        for entry in _read(path):
            return _header(path, entry)
    return None


def read_run(folder: Path) -> RunResults:
    """Read all parts of a run, compressed ones (``.jsonl.gz``) too.

    Raises:
        UnikeError: There is no run, or its files are damaged or of several runs.
    """
    header: Header | None = None
    units: dict[str, list[CaseResult]] = {}
    for path in _parts(folder):
        for number, entry in enumerate(_read(path)):
            if number == 0:
                found = _header(path, entry)
                if header is not None:
                    check_same_run(folder, found.to_json())
                header = header or found
                continue
            try:
                units.setdefault(entry["unit"], [from_json(case) for case in entry["cases"]])
            except (LookupError, TypeError) as error:
                raise UnikeError(f"{path}, line {number + 1} is damaged: {error!r}") from None
    if header is None:
        raise UnikeError(f"no results in {folder}: results.jsonl is missing or empty")
    return RunResults(header, units)


def to_json(case: CaseResult) -> dict[str, Any]:
    """A result as a line has it; what a question has none of has no key."""
    entry = asdict(case)
    for asked in entry["asked"]:
        for name in ("notes", "also", "hop"):
            if not asked[name]:
                del asked[name]
    return entry


def from_json(entry: Mapping[str, Any]) -> CaseResult:
    """The other way round.

    Raises:
        TypeError: Unknown or missing keys.
        KeyError: No questions.
    """
    asked = tuple(Asked(**{**each, "also": tuple(each.get("also", ()))}) for each in entry["asked"])
    return CaseResult(**{**entry, "asked": asked})


def _header(path: Path, entry: Mapping[str, Any]) -> Header:
    try:
        return Header.from_json(entry)
    except KeyError as error:
        raise UnikeError(f"{path}: the header lacks {error.args[0]}; it was not written by unike bench") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UnikeError(f"{path}, line 1 is damaged: {error!r}") from None


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


def as_of_today(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """A header whose settings have today's names, if it is another's and its method knows the old ones."""
    if "config" not in wanted or begun["config"] == wanted["config"]:
        return begun
    try:
        today = registry.editors.get(begun["editor"]).config_class.parse(begun["config"])
    except UnikeError:
        return begun
    return {**begun, "config": today.model_dump(mode="json")}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
