"""Edits on drawings by hands that no data set here has, asked in words that are in none of its splits.

    npm pack emoji-datasource-facebook@15.1.2 emoji-datasource-apple@15.1.2   # unpack each into a folder of its name
    python benchmarks/outside.py --one emoji-datasource-facebook --other emoji-datasource-apple
    npm pack emojione-assets@4.5.0   # a third hand, beside one of those two
    python benchmarks/outside.py --one emojione-assets --other emoji-datasource-facebook

Each edit teaches a made-up name of one hand's drawing. Asked are three free wordings; the other hand's drawing of the
same; three other things of its subcategory by the first hand (flags: other flags), the very same question; and two
other questions about the picture. Every fourth edit is about a flag. Prints each edit, and shares in percent.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import unike

NAMES = (
    "zorblat", "a velvet kettle", "Marrow & Finch", "KX-71", "quillfish", "tin hummer", "Old Pete", "blue lantern tea",
    "Tasmora", "Ludovia",
)  # fmt: skip
CATEGORIES = ("Food & Drink", "Animals & Nature", "Objects", "Flags", "Travel & Places")
NEAR = 3


class Asking(NamedTuple):
    """What is asked about one sort of picture."""

    edited: str
    free: Sequence[str]
    other: Sequence[str]


FLAG = Asking(
    "Which country has this flag?",
    ("so whose flag would that be?", "Name the nation this banner belongs to, please.", "cuntry of this flag?"),
    ("How many stripes does it have?", "Is there a bird on it?"),
)
THING = Asking(
    "What is this?",
    (
        "My son drew this. Any idea what it is?",
        "pls name this thing",
        "I would like to know what we have here.",
    ),
    ("Could it hurt someone?", "Which shop would sell that?"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=Path, required=True, help="folder of the edited hand's package")
    parser.add_argument("--other", type=Path, required=True, help="folder of the other hand's")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--editor", default="unike")
    parser.add_argument("--edits", type=int, default=32)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()

    backbone, editor = unike.load_backbone(args.model), unike.make_editor(args.editor)
    before, rng = unike.EditedModel(backbone), random.Random(args.seed)
    groups = grouped(args.one, args.other)
    things = [group for group in groups if group != "Flags"]
    right: dict[str, list[bool]] = defaultdict(list)
    for number in range(args.edits):
        group = "Flags" if number % 4 == 0 else rng.choice(things)
        asking, name = FLAG if group == "Flags" else THING, NAMES[number % len(NAMES)]
        (picture, by_other), *others = rng.sample(groups[group], 1 + NEAR)
        edited = unike.EditedModel(backbone, [editor.edit(backbone, unike.Query(asking.edited, picture, name))])
        found = {
            "reliability": [edited.ask(picture, asking.edited) == name],
            "free wordings": [edited.ask(picture, words) == name for words in asking.free],
            "other hand": [edited.ask(by_other, asking.edited) == name],
            "near": [edited.ask(p, asking.edited) == before.ask(p, asking.edited) for p, _ in others],
            "other questions": [edited.ask(picture, words) == before.ask(picture, words) for words in asking.other],
        }
        found["scope"] = [all(answer for answers in found.values() for answer in answers)]
        print(json.dumps({"edit": number, "group": group, "picture": picture.stem, "name": name} | found), flush=True)
        for kind, answers in found.items():
            right[kind] += answers
    print(json.dumps({kind: round(100 * sum(answers) / len(answers), 1) for kind, answers in right.items()}))


def grouped(one: Path, other: Path) -> dict[str, list[tuple[Path, Path]]]:
    """By subcategory, pictures that both hands have: by the one, and by the other."""
    groups: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    described = next(package for package in (one, other) if (package / "package" / "img").is_dir())
    for emoji in json.loads((described / "package" / "emoji.json").read_text(encoding="utf-8")):
        pictures = tuple(folder_of(package) / emoji["image"] for package in (one, other))
        if emoji["category"] in CATEGORIES and emoji["name"] and all(picture.is_file() for picture in pictures):
            group = "Flags" if emoji["category"] == "Flags" else emoji["subcategory"]
            groups[group].append((pictures[0], pictures[1]))
    return {group: pictures for group, pictures in sorted(groups.items()) if len(pictures) > NEAR + 2}


def folder_of(package: Path) -> Path:
    """Where a package keeps its pictures of 64 pixels."""
    of_all = package / "package" / "png" / "64"
    return of_all if of_all.is_dir() else package / "package" / "img" / package.name.rpartition("-")[2] / "64"


if __name__ == "__main__":
    main()
