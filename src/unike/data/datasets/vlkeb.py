"""VLKEB (arXiv 2403.07350): edits of what entities are called, with questions up to four hops away.

==============================  ===================================================================
in the folder                   what it is
==============================  ===================================================================
``train.json``                  5,000 records (keys: `unike.data.records`)
``eval_multihop.json``          3,174 records, those that have them with ``port_new`` (portability);
                                ``eval.json`` has the same without, and is not read
``VLKEB_images``                pictures in folders by entity, or ``mmkb_images`` with these in it;
                                ``mmkb_images`` alone in older downloads
==============================  ===================================================================

Nothing is downloaded: the pictures have licences of their own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from unike.core import home
from unike.data.datasets.base import RecordFiles

FILES = {"train": "train.json", "eval": "eval_multihop.json"}
IMAGE_FOLDERS = ("VLKEB_images/mmkb_images", "VLKEB_images", "mmkb_images")


class VLKEB(RecordFiles):
    """VLKEB's files in a folder.

    Args:
        folder: Where they are; None for ``vlkeb`` in the cache folder.
    """

    name: ClassVar[str] = "vlkeb"
    description: ClassVar[str] = "edits of entities with multi-hop portability; to be put in a folder by hand"
    splits: ClassVar[tuple[str, ...]] = ("train", "eval")
    published: ClassVar[str] = (
        "VLKEB is published at kaggle.com/datasets/hymanh/vlkeb-data (see github.com/VLKEB/VLKEB for its layout)"
    )

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = home.folder() / "vlkeb" if folder is None else Path(folder)

    @classmethod
    def open(cls, task: str | None, folder: Path | None) -> Self:
        """VLKEB's files in a folder."""
        return cls(folder)

    @property
    def image_root(self) -> Path:
        """The folder of pictures, by any of its names."""
        found = (self.folder / name for name in IMAGE_FOLDERS if (self.folder / name).is_dir())
        return next(found, self.folder / "VLKEB_images")

    def file(self, split: str) -> Path:
        """``train.json`` or ``eval_multihop.json``."""
        return self.folder / FILES[split]

    def case_id(self, split: str, index: int) -> str:
        """Split and index in the file."""
        return f"vlkeb-{split}-{index:05d}"

    def missing(self, records: Sequence[Any] | None) -> list[str]:
        """The folder of pictures, if it is not there."""
        return [] if self.image_root.is_dir() else ["VLKEB_images/"]
