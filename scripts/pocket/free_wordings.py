"""Free wordings of PocketEdit's second version, written by hand for one split each.

``wordings2/{train,dev,eval}.json`` hold

    questions  kind to family of style ("terse", "misspelt", ...) to wordings; with {country}, {element}, {word} or {a}
               and {b} in kinds about text
    others     kind to wordings of something else that can be asked about a picture
    targets    kind to what people teach: style, target and, of "yesno", question and rephrase
    facts      facts without a picture: prompt, target, subject, rephrase, near (about others), specific (about it)

A wording that version 1 has, or another split, or that comes twice, is left out; that of ``eval`` stays, then ``dev``'s.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from string import Formatter
from typing import Any

from first_version import EDITED, read

SLOTS = {
    "text_capital": {"country"},
    "text_continent": {"country"},
    "text_symbol": {"element"},
    "text_sum": {"a", "b"},
    "text_opposite": {"word"},
}
ABOUT_THE_PICTURE = {
    *("mood", "background", "behind_it", "weather", "direction", "artist", "text_in_picture", "text_present"),
    *("position", "viewpoint", "image_quality", "people_present", "brand_logo", "count", "how_many"),
}
"""Other questions that any picture can be asked, a flag too."""
ABOUT_A_FLAG = {"flag_shape", "flag_shapes", "flag_stars", "flag_stripes"}
FOLLOWS = {
    *("translation", "first_letter", "letter_count", "plural_form", "in_spanish", "spelling_or_letters"),
    *("other_language_word", "story"),
}
"""What an edit of a name should change, or leaves open: no test of what it should leave alone."""


NEEDED = {"rephrase": 3, "near": 2, "specific": 2}
"""What a fact is asked: so many of each."""


def plain(text: str) -> str:
    """What makes two wordings the same: letters and digits, and what is left open."""
    return re.sub(r"[^\w{}]+", " ", text.casefold()).strip()


def _new(texts: list[str], kind: str, split: str, seen: dict[str, str], *, again: bool = False) -> list[str]:
    """Those that no other split has, nor, unless ``again``, this one; ``seen`` says where a wording came first."""
    found = []
    for text in texts:
        slots = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        if slots != SLOTS.get(kind, set()):
            raise ValueError(f"{text!r} leaves open {slots}, and {kind} {SLOTS.get(kind, set())}")
        first = plain(text) not in seen
        if seen.setdefault(plain(text), split) == split and (first or again):
            found.append(text)
    return found


def _is_new_target(entry: dict[str, Any], split: str, seen: dict[str, str]) -> bool:
    """Whether no other split teaches it; of yes and no, the question decides."""
    told = f"{{target}} {entry.get('question', entry['target'])}"
    return seen.setdefault(plain(told), split) == split


class FreeWordings:
    """Every wording by split, kind and family."""

    def __init__(self) -> None:
        folder = Path(__file__).parent / "wordings2"
        self.questions: dict[str, dict[str, dict[str, list[str]]]] = {}
        self.others: dict[str, dict[str, list[str]]] = {}
        self.facts: dict[str, list[dict[str, Any]]] = {}
        self.targets: dict[str, dict[str, list[dict[str, Any]]]] = {}
        seen = {plain(row["wording"]): "" for row in read("questions")}
        for split in reversed(EDITED):
            written = json.loads((folder / f"{split}.json").read_text("utf-8"))
            self.questions[split] = {
                kind: {family: _new(texts, kind, split, seen) for family, texts in families.items()}
                for kind, families in written["questions"].items()
            }
            self.others[split] = {kind: _new(texts, kind, split, seen) for kind, texts in written["others"].items()}
            self.targets[split] = {
                kind: [each for each in entries if _is_new_target(each, split, seen)]
                for kind, entries in written["targets"].items()
            }
            facts = [
                fact
                | {key: _new(fact[key], "fact", split, seen, again=True) for key in ("rephrase", "near", "specific")}
                for fact in written["facts"]
                if _new([fact["prompt"]], "fact", split, seen)
            ]
            self.facts[split] = [fact for fact in facts if all(len(fact[key]) >= n for key, n in NEEDED.items())]

    def rows(self) -> list[dict[str, str]]:
        """As the table has them; what is asked beside the kinds of version 1 is of the family "others"."""
        found = []
        for split in EDITED:
            for kind, families in self.questions[split].items():
                found += [
                    {"kind": kind, "split": split, "family": family, "wording": text}
                    for family, texts in families.items()
                    for text in texts
                ]
            found += [
                {"kind": kind, "split": split, "family": "others", "wording": text}
                for kind, texts in self.others[split].items()
                for text in texts
            ]
        return found

    def several(self, kind: str, split: str, count: int, rng: random.Random) -> list[str]:
        """Wordings of as many families."""
        families = {family: texts for family, texts in self.questions[split][kind].items() if texts}
        return [rng.choice(families[family]) for family in rng.sample(sorted(families), count)]

    def one(self, kind: str, split: str, rng: random.Random) -> str:
        """A wording of any family."""
        return self.several(kind, split, 1, rng)[0]

    def other(self, domain: str, split: str, rng: random.Random) -> str:
        """A question about something else in a picture: of a flag, nothing that follows from its country."""
        kinds = [
            kind
            for kind in self.others[split]
            if kind in ABOUT_THE_PICTURE
            or (kind in ABOUT_A_FLAG if domain == "flag" else not kind.startswith("flag_") and kind not in FOLLOWS)
        ]
        return rng.choice(self.others[split][rng.choice([kind for kind in kinds if self.others[split][kind]])])
