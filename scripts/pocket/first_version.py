"""What PocketEdit's second version takes from the first: pictures, facts, and questions that leave an edit alone."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from wordings import ELEMENTS, OPPOSITES

DATA = Path(__file__).parents[2] / "src/unike/data/datasets/pocket_data"
SPLITS = ("pretrain", "train", "dev", "eval")
EDITED = ("train", "dev", "eval")
SEED = 22

Row = dict[str, Any]


@cache
def read(table: str, *columns: str) -> list[Row]:
    return pq.read_table(DATA / f"{table}.parquet", columns=list(columns) or None).to_pylist()


def drawn(name: str) -> random.Random:
    """What decides about one edit; another edit that comes or goes changes nothing about it."""
    return random.Random(f"{SEED}/{name}")


@dataclass(frozen=True)
class Shown:
    """A picture with what is true of what it shows."""

    image_id: str
    domain: str
    concept: str
    hand: str
    facts: dict[str, str]


class FirstVersion:
    """One split of version 1."""

    def __init__(self, split: str) -> None:
        self.split = split
        facts = {(row["domain"], row["concept"]): json.loads(row["facts"]) for row in read("concepts")}
        self.pictures = [
            Shown(
                row["image_id"],
                row["domain"],
                row["concept"],
                row["hand"],
                facts[row["domain"], row["concept"]],
            )
            for row in read("images", "image_id", "domain", "concept", "hand", "split")
            if row["split"] == split
        ]
        self.by_id = {picture.image_id: picture for picture in self.pictures}
        self.edits = [row for row in read("edits") if row["split"] == split]
        self.wordings: dict[str, list[str]] = defaultdict(list)
        for row in read("questions"):
            if row["split"] == split:
                self.wordings[row["kind"]].append(row["wording"])
        self.kind_of = {text: kind for kind, texts in self.wordings.items() for text in texts}
        self.countries = [
            json.loads(row["facts"]) | {"concept": row["concept"]}
            for row in read("concepts")
            if row["split"] == split and row["domain"] == "flag"
        ]
        self.elements = ELEMENTS[SPLITS.index(split) :: 4]
        self.opposites = OPPOSITES[SPLITS.index(split) :: 4]

    def slots(self, question: str) -> tuple[str, dict[str, str]]:
        """Kind of a question without a picture, and what stands in its wording: ``{"country": "Kenya"}``."""
        for kind, wordings in self.wordings.items():
            for wording in wordings if kind.startswith("text_") else ():
                pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(wording))
                if found := re.fullmatch(pattern, question):
                    return kind, found.groupdict()
        raise ValueError(f"no wording of {self.split} makes {question!r}")

    def near(self, edited: Shown, kind: str, target: str, rng: random.Random) -> list[Shown]:
        """Two other things of the domain, of the same kind and by the same hand where there are, of another answer."""
        fitting = [
            (
                picture.facts.get("kind") != edited.facts.get("kind"),
                picture.hand != edited.hand,
                rng.random(),
                picture,
            )
            for picture in self.pictures
            if picture.domain == edited.domain
            and picture.concept != edited.concept
            and picture.facts.get(kind, target) != target
        ]
        found: dict[str, Shown] = {}
        for *_, picture in sorted(fitting, key=lambda entry: entry[:3]):
            found.setdefault(picture.concept, picture)
        return list(found.values())[:2]

    def elsewhere(self, edited: Shown, kind: str, target: str, rng: random.Random) -> Shown:
        """Something of another domain or kind, to which the target is no answer."""
        return rng.choice(
            [
                picture
                for picture in self.pictures
                if (picture.domain, picture.facts.get("kind")) != (edited.domain, edited.facts.get("kind"))
                and picture.facts.get("kind", "flag") != edited.facts.get("kind", "flag")
                and picture.concept != edited.concept
                and picture.facts.get(kind) != target
            ]
        )
