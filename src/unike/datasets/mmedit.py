"""MMEdit (arXiv 2310.08475), the benchmark of the paper: E-VQA and E-IC, read from the files as they are published.

======================================  ==========================================================
in the folder                           what it is
======================================  ==========================================================
``vqa_train.json``, ``vqa_eval.json``   E-VQA, a JSON list of records (keys: `unike.datasets.base`)
``caption_{train,eval}_edit.json``      E-IC, the same
``val2014``, ``train2014``              COCO's pictures
``val2014_image_rephrase``              generated pictures
======================================  ==========================================================

Nothing is downloaded: the pictures have licences of their own.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from unike import home
from unike.datasets.base import REQUIRED, Dataset, case_from_record
from unike.errors import UnikeError
from unike.types import EditCase

FILES = {
    ("vqa", "train"): "vqa_train.json",
    ("vqa", "eval"): "vqa_eval.json",
    ("caption", "train"): "caption_train_edit.json",
    ("caption", "eval"): "caption_eval_edit.json",
}
IMAGE_FOLDERS = ("train2014", "val2014", "val2014_image_rephrase")
IMAGE_KEYS = ("image", "image_rephrase", "m_loc")
PUBLISHED = (
    "MMEdit is published with the EasyEdit project (github.com/zjunlp/EasyEdit, multimodal editing data); "
    "val2014 and train2014 are COCO's (cocodataset.org)"
)


class MMEdit(Dataset):
    """MMEdit's files in a folder.

    Args:
        folder: Where they are; None for ``mmedit`` in the cache folder.
        task: ``"vqa"`` (E-VQA) or ``"caption"`` (E-IC).
    """

    name: ClassVar[str] = "mmedit"
    description: ClassVar[str] = "E-VQA and E-IC on COCO pictures; to be put in a folder by hand"
    splits: ClassVar[tuple[str, ...]] = ("train", "eval")
    tasks: ClassVar[tuple[str, ...]] = ("vqa", "caption")

    def __init__(self, folder: str | Path | None = None, task: str = "vqa") -> None:
        if task not in self.tasks:
            raise UnikeError(f"mmedit has no task {task!r} (known: {', '.join(self.tasks)})")
        self.folder = home.folder() / "mmedit" if folder is None else Path(folder)
        self.task = task

    @classmethod
    def open(cls, task: str | None, folder: Path | None) -> Self:
        """MMEdit's files in a folder."""
        return cls(folder, task or "vqa")

    @property
    def image_root(self) -> Path:
        """The folder itself."""
        return self.folder

    def cases(self, split: str, *, skip_bad: bool = False) -> list[EditCase]:
        """Every case of a split that has a target; its id holds its index in the file.

        Raises:
            UnikeError: No such split, files are missing, or a record is bad (file and index are named).
        """
        self.check_split(split)
        path = self.folder / FILES[self.task, split]
        records = _read(path) if path.is_file() else None
        self._check_complete(path, records)
        cases = []
        for index, record in enumerate(records or ()):
            try:
                case = self._case(record, case_id=f"{self.task}-{split}-{index:05d}", where=f"{path}, record {index}")
            except UnikeError:
                if not skip_bad:
                    raise
                continue
            if case is not None:
                cases.append(case)
        self.skipped = len(records or ()) - len(cases)
        return cases

    def _case(self, record: Any, *, case_id: str, where: str) -> EditCase | None:
        """The case of a record, None if it has no target: MMEdit has such records, and passes over them."""
        check_record(record, where)
        if not record.get("alt", "?").strip():
            return None
        case = case_from_record(record, case_id=case_id, image=self.folder.joinpath, where=where)
        for picture in {case.edit.image, *(probe.query.image for probe in case.probes)}:
            if picture is not None and not picture.is_file():
                raise UnikeError(f"{where}: image not found: {picture}")
        return case

    def _check_complete(self, path: Path, records: list[Any] | None) -> None:
        """Name the file and every folder of pictures that is missing; of those, only what the records use."""
        folders = set(IMAGE_FOLDERS)
        if records is not None:
            used = (record.get(key) for record in records if isinstance(record, dict) for key in IMAGE_KEYS)
            folders = {name.split("/", 1)[0] for name in used if isinstance(name, str) and "/" in name}
        missing = [path.name] if records is None else []
        missing += [f"{name}/" for name in sorted(folders) if not (self.folder / name).is_dir()]
        if missing:
            raise UnikeError(f"{', '.join(missing)} missing in {self.folder}; {PUBLISHED}")


def _read(path: Path) -> list[Any]:
    """The records of a file.

    Raises:
        UnikeError: It is not a JSON list.
    """
    try:
        records: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UnikeError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise UnikeError(f"{path}, byte {error.start}: not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise UnikeError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(records, list):
        raise UnikeError(f"{path}: not a JSON list of records")
    return records


def check_record(record: Any, where: str) -> None:
    """Make every value we use text, an answer such as 2 too.

    Raises:
        UnikeError: It is not a JSON object whose values are text or numbers.
    """
    if not isinstance(record, dict):
        raise UnikeError(f"{where}: not a JSON object")
    for key in (key for key in REQUIRED if key in record):
        if isinstance(record[key], int | float):
            record[key] = str(record[key])
        if not isinstance(record[key], str):
            raise UnikeError(f"{where}: {key} is {json.dumps(record[key])[:40]}, not text")
