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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter
from typing_extensions import Self, TypedDict

from unike.bench.header import Header
from unike.bench.outcome import CaseResult
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import open_file, read_file
from unike.core.folders import check_writable, reason
from unike.core.schema import parse_json, read_as
from unike.core.settings import folded

FORMAT = 1


class Unit(TypedDict):
    """A line of results."""

    unit: str
    cases: Annotated[list[CaseResult], Field(min_length=1)]


UNIT = TypeAdapter(Unit)

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
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = stack.enter_context(open_file(self.path, "ab"))  # before its lock, which is nothing alone
                self._lock.acquire(timeout=0)
                stack.callback(self._unlock)
                whole = _whole_bytes(self.path)
                self._file.truncate(whole)
                if not whole:
                    self._write({"format": FORMAT, **header.to_json()})
            except Timeout:
                raise UnikeError(f"{self.path} is being written by another process; wait for it, or end it") from None
            except OSError as error:
                raise UnikeError(f"cannot write {self.path}: {reason(error)}; choose another folder") from None
            self._held = stack.pop_all()

    def append(self, unit: str, cases: Sequence[CaseResult]) -> None:
        """Put a finished unit on disk.

        Raises:
            UnikeError: The disk is full, or the like.
        """
        try:
            self._write({"unit": unit, "cases": [to_json(case) for case in cases]})
        except OSError as error:
            raise UnikeError(f"cannot write {self.path}: {reason(error)}; run again to go on from here") from None

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        while line:  # a disk that is nearly full takes a part
            line = line[os.write(self._file.fileno(), line) :]
        os.fsync(self._file.fileno())

    def _unlock(self) -> None:
        with suppress(OSError):  # where an open file cannot be removed, releasing the lock does
            Path(self._lock.lock_file).unlink()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the file; all that was appended is on disk already."""
        self._held.close()


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
        for line in _lines(path):
            return _header(path, line)
    return None


def read_run(folder: Path) -> RunResults:
    """Read all parts of a run, compressed ones (``.jsonl.gz``) too.

    Raises:
        UnikeError: There is no run, or its files are damaged or of several runs.
    """
    header: Header | None = None
    units: dict[str, list[CaseResult]] = {}
    for path in _parts(folder):
        for number, line in enumerate(_lines(path)):
            if number == 0:
                found = _header(path, line)
                if header is not None:
                    check_same_run(folder, found.to_json())
                header = header or found
                continue
            try:
                unit: Unit = read_as(UNIT, line)
            except ValueError as error:
                raise UnikeError(f"{path}, line {number + 1} is damaged: {error}") from None
            units.setdefault(unit["unit"], unit["cases"])
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
        if asked["known"] is None:
            del asked["known"]
    return entry


def _header(path: Path, line: bytes) -> Header:
    try:
        entry = dict(parse_json(line))
        if entry["format"] != FORMAT:
            raise UnikeError(f"{path} has format {entry['format']}, this version reads {FORMAT}; update unike")
    except (ValueError, LookupError, TypeError) as error:
        raise UnikeError(f"{path}, line 1 is damaged: {error!r}") from None
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
    content = read_file(path)
    return content.rfind(b"\n") + 1


def _lines(path: Path) -> list[bytes]:
    """All that are whole: what follows the last line break was cut short."""
    try:
        content = gzip.decompress(read_file(path)) if path.suffix == ".gz" else read_file(path)
    except (OSError, EOFError, zlib.error) as error:
        raise UnikeError(f"cannot read {path}: {reason(error)}") from None
    return content.split(b"\n")[:-1]


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
