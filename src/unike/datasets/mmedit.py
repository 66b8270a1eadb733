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

    Attributes:
        skipped: How many records of the split read last had an empty target and are not among its cases.
    """

    name: ClassVar[str] = "mmedit"
    description: ClassVar[str] = "E-VQA and E-IC on COCO pictures; to be put in a folder by hand"
    splits: ClassVar[tuple[str, ...]] = ("train", "eval")

    def __init__(self, folder: str | Path | None = None, task: str = "vqa") -> None:
        if task not in ("vqa", "caption"):
            raise UnikeError(f"mmedit has no task {task!r} (known: vqa, caption)")
        self.folder = home.folder() / "mmedit" if folder is None else Path(folder)
        self.task = task
        self.skipped = 0

    def cases(self, split: str) -> list[EditCase]:
        """Every case of a split that has a target; its id holds its index in the file.

        Raises:
            UnikeError: No such split, files are missing, or a record is bad (file and index are named).
        """
        self.check_split(split)
        path = self.folder / FILES[self.task, split]
        records = _read(path) if path.is_file() else None
        self._check_complete(path, records)
        self.skipped = 0
        cases = []
        for index, record in enumerate(records or ()):
            if not record.get("alt", "?").strip():
                self.skipped += 1
                continue
            where = f"{path}, record {index}"
            case = case_from_record(record, case_id=f"{self.task}-{split}-{index:05d}", image=self._image, where=where)
            for picture in {case.edit.image, *(probe.query.image for probe in case.probes)}:
                if picture is not None and not picture.is_file():
                    raise UnikeError(f"{where}: image not found: {picture}")
            cases.append(case)
        return cases

    def _image(self, name: str) -> Path:
        return self.folder / name

    def _check_complete(self, path: Path, records: list[dict[str, str]] | None) -> None:
        """Name the file and every folder of pictures that is missing; of those, only what the records use."""
        folders = set(IMAGE_FOLDERS)
        if records is not None:
            used = (record[key] for record in records for key in IMAGE_KEYS if key in record)
            folders = {name.split("/", 1)[0] for name in used if "/" in name}
        missing = [path.name] if records is None else []
        missing += [f"{name}/" for name in sorted(folders) if not (self.folder / name).is_dir()]
        if missing:
            raise UnikeError(f"{', '.join(missing)} missing in {self.folder}; {PUBLISHED}")


def _read(path: Path) -> list[dict[str, str]]:
    """The records of a file, every value we use as text.

    Raises:
        UnikeError: It is not a JSON list of objects whose values are text.
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
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise UnikeError(f"{path}, record {index}: not a JSON object")
        for key in (key for key in REQUIRED if key in record):
            if isinstance(record[key], int | float):
                record[key] = str(record[key])  # an answer such as 2
            if not isinstance(record[key], str):
                raise UnikeError(f"{path}, record {index}: {key} is {json.dumps(record[key])[:40]}, not text")
    return records
