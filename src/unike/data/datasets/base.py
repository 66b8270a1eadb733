"""What a data set is, and what those have in common that are published as files of records (`unike.data.records`)."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from typing_extensions import Self

from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import EditCase
from unike.data.records import case_from_record
from unike.data.similar import with_near


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

    def scope_cases(self, split: str) -> list[EditCase]:
        """The cases of a split whose pictures show best what an edit is to reach and what not; here, all of them."""
        return self.cases(split)

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
        return with_near(cases)

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
