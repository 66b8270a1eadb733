"""MMEdit (arXiv 2310.08475), the benchmark of the paper: E-VQA and E-IC, read from the files as they are published.

======================================  ==========================================================
in the folder                           what it is
======================================  ==========================================================
``vqa_train.json``, ``vqa_eval.json``   E-VQA, a JSON list of records (keys: `unike.data.records`)
``caption_{train,eval}_edit.json``      E-IC, the same
``vqa/``, ``caption/``                  or these files in folders of their tasks, as EasyEdit has them
``val2014``, ``train2014``              COCO's pictures
``val2014_image_rephrase``              generated pictures
======================================  ==========================================================

Nothing is downloaded: the pictures have licences of their own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from unike.core import home
from unike.core.errors import UnikeError
from unike.data.datasets.base import RecordFiles

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


class MMEdit(RecordFiles):
    """MMEdit's files in a folder.

    Args:
        folder: Where they are; None for ``mmedit`` in the cache folder.
        task: ``"vqa"`` (E-VQA) or ``"caption"`` (E-IC).
    """

    name: ClassVar[str] = "mmedit"
    description: ClassVar[str] = "E-VQA and E-IC on COCO pictures; to be put in a folder by hand"
    splits: ClassVar[tuple[str, ...]] = ("train", "eval")
    tasks: ClassVar[tuple[str, ...]] = ("vqa", "caption")
    published: ClassVar[str] = PUBLISHED

    def __init__(self, folder: str | Path | None = None, task: str = "vqa") -> None:
        if task not in self.tasks:
            raise UnikeError(f"mmedit has no task {task!r} (known: {', '.join(self.tasks)})")
        self.folder = home.folder() / "mmedit" if folder is None else Path(folder)
        self.task = task

    @classmethod
    def open(cls, task: str | None, folder: Path | None) -> Self:
        """MMEdit's files in a folder."""
        return cls(folder, task or "vqa")

    def file(self, split: str) -> Path:
        """``vqa_eval.json`` and the like, or ``vqa/vqa_eval.json``."""
        name = FILES[self.task, split]
        within = self.folder / self.task / name
        return within if within.is_file() and not (self.folder / name).is_file() else self.folder / name

    def case_id(self, split: str, index: int) -> str:
        """Task, split and index in the file."""
        return f"{self.task}-{split}-{index:05d}"

    def missing(self, records: Sequence[Any] | None) -> list[str]:
        """Every folder of pictures that is not there; of those, only what the records use."""
        folders = set(IMAGE_FOLDERS)
        if records is not None:
            used = (record.get(key) for record in records if isinstance(record, dict) for key in IMAGE_KEYS)
            folders = {name.split("/", 1)[0] for name in used if isinstance(name, str) and "/" in name}
        return [f"{name}/" for name in sorted(folders) if not (self.folder / name).is_dir()]
