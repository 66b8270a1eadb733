"""PocketEdit, second version: the pictures of the first, asked harder.

Near things are asked the very same question, wordings are free and of styles that each split has to itself, targets are
also such as people make up, and a third task edits facts without a picture. ``scripts/pocket/second.py`` made it of
version 1 (`unike.data.datasets.pocket`), which stays as it was.
"""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from unike.core import home
from unike.data.datasets.pocket import Pocket, image, read
from unike.data.queries import EditCase, Probe, Query
from unike.data.records import case_from_record

LISTS = ("rephrase", "m_loc_more", "near", "port_new", "spec")


class Pocket2(Pocket):
    """PocketEdit 2. Its splits are those of version 1, and share no concept, image or wording either.

    Args:
        task: ``"vqa"`` (E-VQA), ``"caption"`` (E-IC), ``"text"`` (facts without a picture), or None for all.
    """

    name: ClassVar[str] = "pocket2"
    description: ClassVar[str] = "PocketEdit 2: near things, free wordings, made-up targets, text; ships with unike"
    tasks: ClassVar[tuple[str, ...]] = ("vqa", "caption", "text")

    @property
    def image_root(self) -> Path:
        """Where pictures are unpacked: they are version 1's."""
        return home.folder() / "pocket"

    def scope_cases(self, split: str) -> list[EditCase]:
        """Those of the split with a picture, and for ``train`` the pictures of ``pretrain``."""
        cases = [case for case in self.cases(split) if case.edit.image is not None]
        return cases + pretrain_pictures() if split == "train" else cases

    def cases(self, split: str, *, skip_bad: bool = False) -> list[EditCase]:
        """Every case of a split; its ``domain`` is photo, pictogram, flag or text."""
        self.check_split(split)
        return [
            case_from_record(
                record | {key: json.loads(record[key]) for key in LISTS},
                case_id=record["case_id"],
                image=image,
                where=f"edits2.parquet, record {index}",
                domain=record["domain"],
            )
            for index, record in enumerate(read("edits2"))
            if record["split"] == split and self.task in (None, record["task"])
        ]


def pretrain_pictures() -> list[EditCase]:
    """The pictures of the pretrain split two by two: of one thing. They are no edits: the model may know them."""
    pictures: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in read("images", ["image_id", "domain", "concept", "split"]):
        if row["split"] == "pretrain":
            pictures[row["domain"], row["concept"]].append(row["image_id"])
    return [
        EditCase(f"pretrain-{one}", about(one, concept), (Probe("m_generality", about(other, concept)),), domain)
        for (domain, concept), some in pictures.items()
        for one, other in pairwise(some)
    ]


def about(image_id: str, concept: str) -> Query:
    """What is asked about such a picture."""
    return Query("What is this?", image(image_id), concept)
