"""PocketEdit: photographs, pictograms and flags, small and openly licensed, in MMEdit's own format.

It ships with the package as Parquet (``scripts/pocket/build.py`` made it; NOTICE names sources and licences). Its
edits have MMEdit's keys and go through the same loader. Pictures are unpacked once into the cache folder.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
from typing_extensions import Self

from unike.core import home, registry
from unike.core.errors import UnikeError
from unike.core.files import replace_file
from unike.data.datasets.base import Dataset
from unike.data.queries import EditCase, Query
from unike.data.records import case_from_record


class Pocket(Dataset):
    """PocketEdit. Editing splits ``train``, ``dev``, ``eval`` share no concept, image or wording.

    Args:
        task: ``"vqa"`` (E-VQA), ``"caption"`` (E-IC), or None for both.
    """

    name: ClassVar[str] = "pocket"
    description: ClassVar[str] = "photos, pictograms and flags; ships with unike"
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "eval")
    tasks: ClassVar[tuple[str, ...]] = ("vqa", "caption")

    def __init__(self, task: str | None = None) -> None:
        if task not in (None, *self.tasks):
            raise UnikeError(f"{self.name} has no task {task!r} (known: {', '.join(self.tasks)})")
        self.task = task

    @classmethod
    def open(cls, task: str | None, folder: Path | None) -> Self:
        """PocketEdit, which ships with the package."""
        if folder is not None:
            raise UnikeError("PocketEdit ships with unike and lies in no folder of yours; name none")
        return cls(task)

    @property
    def image_root(self) -> Path:
        """Where pictures are unpacked."""
        return home.folder() / "pocket"

    def picture(self, name: str) -> Path:
        """The file of a picture, unpacked if need be."""
        return image(super().picture(name).relative_to(self.image_root).with_suffix("").as_posix())

    def cases(self, split: str, *, skip_bad: bool = False) -> list[EditCase]:
        """Every case of a split; its ``domain`` is photo, pictogram or flag."""
        self.check_split(split)
        cases = []
        for index, record in enumerate(read("edits")):
            if record["split"] == split and self.task in (None, record["task"]):
                record |= {key: json.loads(record[key]) for key in ("port_new", "spec")}
                where = f"edits.parquet, record {index}"
                cases.append(
                    case_from_record(
                        record, case_id=record["case_id"], image=image, where=where, domain=record["domain"]
                    )
                )
        return cases

    def scope_cases(self, split: str) -> list[EditCase]:
        """Those of version 2, which has near things."""
        return registry.datasets.get("pocket2")(self.task).scope_cases(split)


def read(table: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of ``images``, ``concepts``, ``questions`` or ``edits``; of version 2, ``questions2`` or ``edits2``."""
    with resources.as_file(resources.files("unike.data.datasets").joinpath("pocket_data", f"{table}.parquet")) as path:
        return pq.read_table(path, columns=columns).to_pylist()


@cache
def _pictures() -> dict[str, bytes]:
    return {row["image_id"]: row["webp"] for row in read("images", ["image_id", "webp"])}


def image(image_id: str) -> Path:
    """The file of a picture, unpacked on first use: ``flag/kenya/twemoji`` -> ``.../pocket/flag/kenya/twemoji.webp``.

    Raises:
        UnikeError: No such picture, or the cache folder cannot be written.
    """
    path = home.folder() / "pocket" / f"{image_id}.webp"
    if path.exists():
        return path
    if image_id not in _pictures():
        raise UnikeError(f"PocketEdit has no picture {image_id!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, _pictures()[image_id])
    except (OSError, UnikeError) as error:
        raise UnikeError(f"cannot unpack PocketEdit to {path.parent}: {error}; set UNIKE_HOME") from None
    return path


def unrelated(count: int = 96) -> list[Query]:
    """Questions of the train split that edits should leave alone, with and without an image in equal parts."""
    rows = [row for row in read("edits") if row["split"] == "train"]
    step = max(1, 2 * len(rows) // count)
    picked = rows[::step][: count // 2]
    return [Query(row["m_loc_q"], image(row["m_loc"])) for row in picked] + [Query(row["loc"]) for row in picked]
