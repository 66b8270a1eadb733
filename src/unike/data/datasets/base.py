"""From MMEdit's records to edit cases: the one loader behind every data set here.

======================  ====================================================================
raw key                 becomes
======================  ====================================================================
``src``, ``alt``        prompt and target of the edit (and ``image``)
``rephrase``            ``t_generality``: this prompt, the same image and target
``image_rephrase``      ``m_generality``: ``src`` about this image, the same target
``loc``, ``loc_ans``    ``t_locality``: a question without an image
``m_loc*``              ``m_locality``: image ``m_loc``, question ``m_loc_q``, answer ``m_loc_a``
``port_new``            ``portability`` (VLKEB, PocketEdit): ``[{"Q&A": {"Question", "Answer"}}]``, or null;
                        with ``port_type`` (VLKEB), ``"1-hop"`` to ``"4-hop"``: how far it is from the fact
``spec``                ``specificity`` (PocketEdit): ``[{"Question", "Answer"}]``
``pred``                ignored: the wrong answer of BLIP-2, never of another backbone
======================  ====================================================================

Questions are text; answers are text or numbers, or a list of these, any of which is right: the first is the target.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from typing_extensions import Self

from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import EditCase, Probe, Query

ANSWERS = ("alt", "loc_ans", "m_loc_a")
HOP = re.compile(r"([1-9])-hop$")
REQUIRED = ("src", "rephrase", "alt", "image", "image_rephrase", "loc", "loc_ans", "m_loc", "m_loc_q", "m_loc_a")


class Dataset(ABC):
    """A benchmark: named splits of edit cases.

    Attributes:
        skipped: How many records of the split read last are not among its cases, because they have no target or, if
            asked for, because they are bad.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    tasks: ClassVar[tuple[str, ...]] = ()
    """Its parts, if there are several: ``mmedit`` has ``vqa`` and ``caption``."""

    skipped: int = 0

    @classmethod
    @abstractmethod
    def open(cls, task: str | None, folder: Path | None) -> Self:
        """The data set, or a part of it.

        Args:
            task: One of `tasks`; None if there are none.
            folder: Where its files are; None for where they are by default.

        Raises:
            UnikeError: It has no files of its own to be put in a folder.
        """

    @property
    @abstractmethod
    def image_root(self) -> Path:
        """The folder its pictures are in."""

    def picture(self, name: str) -> Path:
        """The file of a picture by the name that results have for it, its path below `image_root`.

        Raises:
            UnikeError: The name leads out of that folder.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UnikeError(f"{name} is not in the folder of {self.name}'s pictures")
        return self.image_root / path

    @abstractmethod
    def cases(self, split: str, *, skip_bad: bool = False) -> list[EditCase]:
        """Every case of a split, in the order of the file.

        Args:
            split: One of `splits`.
            skip_bad: Leave bad records out, and count them in `skipped`.

        Raises:
            UnikeError: No such split, or a bad record (file and index are named).
        """

    def has(self, split: str) -> bool:
        """Whether the file of a split is there."""
        return True

    def check_split(self, split: str) -> None:
        """Refuse a split this data set has not."""
        if split not in self.splits:
            raise UnikeError(f"{self.name} has no split {split!r} (known: {', '.join(self.splits)})")


class RecordFiles(Dataset):
    """A benchmark as it is published: JSON files of records in MMEdit's keys, and folders of pictures, put in a folder.

    Attributes:
        folder: Where they are.
    """

    published: ClassVar[str]
    """Where to get it."""

    folder: Path

    @property
    def image_root(self) -> Path:
        """What the records' paths of pictures are relative to."""
        return self.folder

    @abstractmethod
    def file(self, split: str) -> Path:
        """The file of a split."""

    def has(self, split: str) -> bool:
        """Whether its file is there."""
        return self.file(split).is_file()

    @abstractmethod
    def case_id(self, split: str, index: int) -> str:
        """What to call the case of a record."""

    @abstractmethod
    def missing(self, records: Sequence[Any] | None) -> list[str]:
        """The folders that are needed and not there; records are None if their file is missing itself."""

    def cases(self, split: str, *, skip_bad: bool = False) -> list[EditCase]:
        """Every case of a split that has a target.

        Args:
            split: One of `splits`.
            skip_bad: Leave bad records out, and count them in `skipped` with those without a target.

        Raises:
            UnikeError: No such split, files are missing, or a record is bad (file and index are named).
        """
        self.check_split(split)
        path = self.file(split)
        records = read_records(path) if path.is_file() else None
        missing = [*([path.name] if records is None else []), *self.missing(records)]
        if missing or records is None:
            raise UnikeError(f"{', '.join(missing)} missing in {self.folder}; {self._nearby(missing)}{self.published}")
        cases = []
        for index, record in enumerate(records):
            try:
                case = self._case(record, case_id=self.case_id(split, index), where=f"{path}, record {index}")
            except UnikeError:
                if not skip_bad:
                    raise
                continue
            if case is not None:
                cases.append(case)
        self.skipped = len(records) - len(cases)
        return cases

    def _nearby(self, missing: Sequence[str]) -> str:
        """Where what is missing lies one folder away: archives are unpacked into folders of their own."""
        places = [self.folder.parent, *sorted(path for path in self.folder.glob("*") if path.is_dir())]
        found = [f"{name} is in {place}" for name in missing for place in places if (place / name).exists()]
        return f"{', '.join(found)}: name that folder, or move it; " if found else ""

    def _case(self, record: Any, *, case_id: str, where: str) -> EditCase | None:
        """The case of a record, None if it has no target: MMEdit has such records, and passes over them."""
        if not isinstance(record, dict):
            raise UnikeError(f"{where}: not a JSON object")
        if isinstance(alt := record.get("alt"), str) and not alt.strip():
            return None
        case = case_from_record(record, case_id=case_id, image=self.image_root.joinpath, where=where)
        for picture in {case.edit.image, *(probe.query.image for probe in case.probes)}:
            if picture is not None and not is_file(picture):
                raise UnikeError(f"{where}: image not found: {picture}")
        return case


def open_dataset(name: str, folder: Path | None = None) -> Dataset:
    """A data set, or a part of one, by the name it has on the command line.

    Args:
        name: As `dataset_names` has them, such as ``"mmedit-vqa"``.
        folder: See `Dataset.open`.

    Raises:
        UnikeError: An unknown name, or a folder where none can be given.
    """
    if name not in (known := dataset_names()):
        raise UnikeError(registry.did_you_mean("data set", name, known))
    family, _, task = name.partition("-")
    found: type[Dataset] = registry.datasets.get(family)
    return found.open(task or None, folder)


def dataset_names() -> list[str]:
    """Every data set that can be evaluated: ``family`` or, where it has several tasks, ``family-task``."""
    families: dict[str, type[Dataset]] = {name: registry.datasets.get(name) for name in registry.datasets.names()}
    return [f"{name}-{task}" if task else name for name, found in families.items() for task in found.tasks or ("",)]


def all_tasks(name: str) -> list[str]:
    """The names of all tasks of a data set that is named as a whole or by one of them; as it is if unknown."""
    family = name.partition("-")[0]
    return [known for known in dataset_names() if known.partition("-")[0] == family] or [name]


def case_from_record(
    record: Mapping[str, Any], *, case_id: str, image: Callable[[str], Path], where: str, domain: str = ""
) -> EditCase:
    """One record in MMEdit's keys as an `EditCase`.

    Args:
        record: See the table in this module's docstring.
        case_id: Unique in its data set.
        image: Turns a record's image path into a path on disk.
        where: File and index, for messages.
        domain: A tag to group results by.

    Raises:
        UnikeError: A key is missing, the target or a prompt is empty, or a text is not valid.
    """
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise UnikeError(f"{where}: {', '.join(missing)} missing")
    text = {key: _text(record[key], f"{where}: {key}") for key in REQUIRED if key not in ANSWERS}
    answers = {key: _answers(record[key], f"{where}: {key}") for key in ANSWERS}
    targets = tuple(answer.strip() for answer in answers["alt"])
    if not all(targets) or not text["src"].strip():
        raise UnikeError(f"{where}: the {'prompt (src)' if all(targets) else 'target (alt)'} is empty")

    _check_lines(targets, f"{where}: the target (alt)")

    def asked(prompt: str, picture: Path | None, right: tuple[str, ...]) -> Query:
        return Query(prompt, picture, right[0], right[1:])

    picture = image(text["image"])
    probes = [
        Probe("t_generality", asked(text["rephrase"], picture, targets)),
        Probe("m_generality", asked(text["src"], image(text["image_rephrase"]), targets)),
        Probe("t_locality", asked(text["loc"], None, answers["loc_ans"])),
        Probe("m_locality", asked(text["m_loc_q"], image(text["m_loc"]), answers["m_loc_a"])),
    ]
    for key, kind in (("port_new", "portability"), ("spec", "specificity")):
        for question, right, hop in _questions(record, key, where):
            probes.append(Probe(kind, asked(question, picture, right), hop))
            if kind == "portability" and not all(right):
                raise UnikeError(f"{where}: the answer to a question of port_new is empty")
            if kind == "portability":
                _check_lines(right, f"{where}: the answer to a question of port_new")
    for probe in probes:
        if not probe.query.prompt.strip():
            raise UnikeError(f"{where}: the question for {probe.kind} is empty")
    return EditCase(case_id, asked(text["src"], picture, targets), tuple(probes), domain)


def _questions(record: Mapping[str, Any], key: str, where: str) -> list[tuple[str, tuple[str, ...], int | None]]:
    """The questions of ``port_new`` or ``spec``, their answers and hops; null and a missing key are none."""
    entries = record.get(key)
    try:
        if not isinstance(entries, list | None):
            raise TypeError
        pairs = [entry["Q&A"] if key == "port_new" else entry for entry in entries or ()]
        found = [(pair["Question"], pair["Answer"]) for pair in pairs]
        hops = [HOP.match(str(entry.get("port_type"))) for entry in entries or ()]
    except (LookupError, TypeError, AttributeError):
        raise UnikeError(f"{where}: {key} is not a list of questions with answers") from None
    return [
        (
            _text(question, f"{where}: question {number} of {key}"),
            tuple(answer.strip() for answer in _answers(right, f"{where}: answer {number} of {key}")),
            hop and int(hop[1]),
        )
        for number, ((question, right), hop) in enumerate(zip(found, hops, strict=True))
    ]


def is_file(path: Path) -> bool:
    """Whether there is a file of that name; none can be of a name that is too long, or no name at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_records(path: Path) -> list[Any]:
    """The records of a file.

    Raises:
        UnikeError: It is not a JSON list.
    """
    try:
        records: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UnikeError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise UnikeError(f"{path}: nested too deep to be read") from None
    except UnicodeDecodeError as error:
        raise UnikeError(f"{path}, byte {error.start}: not UTF-8 ({error.reason})") from None
    except ValueError as error:  # a number of thousands of digits
        raise UnikeError(f"{path}: cannot be read ({error})") from None
    except OSError as error:
        raise UnikeError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(records, list):
        raise UnikeError(f"{path}: not a JSON list of records")
    return records


def _answers(value: Any, what: str) -> tuple[str, ...]:
    """An answer, or a list of them, each once.

    Raises:
        UnikeError: As `_text`, or the list is empty.
    """
    if isinstance(value, list) and not value:
        raise UnikeError(f"{what} is an empty list; give at least one answer")
    every = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_text(each, what) for each in every))


def _check_lines(answers: Sequence[str], what: str) -> None:
    """Refuse answers that are never right: of what a model says one line counts."""
    for answer in answers:
        if len(answer.splitlines()) > 1:
            raise UnikeError(f"{what} has several lines, and an answer is one: {json.dumps(answer)[:40]}")


def _text(value: Any, what: str) -> str:
    """A text, or a number such as 2 as one.

    Raises:
        UnikeError: It is neither, or has half a character in it, which JSON can hold and no model reads.
    """
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str):
        raise UnikeError(f"{what} is {json.dumps(value)[:40]}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnikeError(f"{what} is not valid text: {json.dumps(value)[:40]}") from None
    return value
