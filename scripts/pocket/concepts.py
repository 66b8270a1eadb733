"""Things of the world with what is true of them and their pictures: photographs, pictograms and flags."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from drawings import SIZE, IconSet, colour_shares, on_white, read_member
from wordings import PHOTO_CLASSES, PICTOGRAM_KINDS, PICTOGRAM_RENAME, PICTOGRAM_SKIP

PHOTOS_PER_CLASS = {"pretrain": 34, "train": 16, "dev": 12, "eval": 14}
# Hands that belong to one family draw alike: they are never on two sides of the fit / held line.
PICTOGRAM_HANDS = {
    "noto": "noto",
    "noto-v1": "noto",
    "twemoji": "twemoji",
    "openmoji": "openmoji",
    "fluent-emoji-flat": "fluent",
    "emojione": "emojione",
    "emojione-v1": "emojione",
    "fxemoji": "fxemoji",
}
FLAG_HANDS = {
    "flag": "accurate",
    "flagpack": "flagpack",
    "twemoji": "twemoji",
    "openmoji": "openmoji",
    "emojione": "round",
    "circle-flags": "round",
}
# Flags that no drawing tells apart: the second of each pair is left out.
TWIN_FLAGS = {"Romania", "Monaco", "Luxembourg"}
CONTINENT = {"Africa": "Africa", "Asia": "Asia", "Europe": "Europe", "Oceania": "Oceania"}


@dataclass
class Concept:
    """One thing of the world: what is true of it, and its pictures."""

    concept: str
    domain: str
    facts: dict[str, str]
    split: str = ""
    images: list[Picture] = field(default_factory=list)


@dataclass
class Picture:
    image_id: str
    hand: str
    family: str
    pixels: Image.Image
    role: str = "edit"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def photo_concepts(root: Path, rng: random.Random) -> Iterator[Concept]:
    by_name: dict[str, list[Path]] = defaultdict(list)
    for folder, (name, _) in PHOTO_CLASSES.items():
        by_name[name] += sorted((root / folder).glob("*.jpg"))
    kinds = {name: kind for name, kind in PHOTO_CLASSES.values()}
    for name, paths in sorted(by_name.items()):
        rng.shuffle(paths)
        concept = Concept(slug(name), "photo", {"name": name, "kind": kinds[name], "medium": "photo"})
        for path in paths[: max(PHOTOS_PER_CLASS.values())]:
            photo = Image.open(path).convert("RGB")
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            photo = photo.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image_id = f"photo/{concept.concept}/{path.parent.name.lower()}-{path.stem[-4:]}"
            concept.images.append(Picture(image_id, "caltech101", path.parent.name + path.stem, photo))
        yield concept


def pictogram_concepts(archives: dict[str, Path]) -> Iterator[Concept]:
    sets = {hand: IconSet(archives[f"@iconify-json/{hand}"]) for hand in PICTOGRAM_HANDS}
    annotated = json.loads(read_member(archives["openmoji"], "data/openmoji.json"))
    for entry in annotated:
        annotation = entry["annotation"].lower()
        kind = PICTOGRAM_KINDS.get(entry["subgroups"])
        if kind is None or annotation in PICTOGRAM_SKIP or entry["skintone"]:
            continue
        name = PICTOGRAM_RENAME.get(annotation, annotation)
        concept = Concept(slug(name), "pictogram", {"name": name, "kind": kind, "medium": "drawing"})
        colours = Counter[str]()
        for hand, family in PICTOGRAM_HANDS.items():
            drawing = sets[hand].render(slug(annotation)) or sets[hand].render(slug(annotation).replace("-", ""))
            if drawing is None:
                continue
            concept.images.append(Picture(f"pictogram/{concept.concept}/{hand}", hand, family, on_white(drawing)))
            main, share = next(iter(colour_shares(drawing).items()), ("", 0.0))
            if share >= 0.45:
                colours[main] += 1
        if colours and colours.most_common(1)[0][1] >= 0.6 * len(concept.images):
            concept.facts["colour"] = colours.most_common(1)[0][0]  # the hands agree on it
        if len({picture.family for picture in concept.images}) >= 4:
            yield concept


def flag_concepts(archives: dict[str, Path]) -> Iterator[Concept]:
    sets = {hand: IconSet(archives[f"@iconify-json/{hand}"]) for hand in FLAG_HANDS}
    for country in json.loads(read_member(archives["world-countries"], "countries.json")):
        name = country["name"]["common"]
        if not country["independent"] or not country["capital"] or name in TWIN_FLAGS:
            continue
        continent = CONTINENT.get(country["region"])
        if country["region"] == "Americas":
            continent = "South America" if country["subregion"] == "South America" else "North America"
        if continent is None:
            continue
        facts = {"country": name, "capital": country["capital"][0], "continent": continent, "medium": "drawing"}
        if len(country["currencies"]) == 1:  # of several, the source does not say which is the main one
            facts["currency"] = next(iter(country["currencies"].values()))["name"].lower()
        if len(country["languages"]) == 1:
            facts["language"] = next(iter(country["languages"].values()))
        concept = Concept(f"flag-{slug(name)}", "flag", facts)
        code = country["cca2"].lower()
        spellings = {
            "flag": (f"{code}-4x3",),
            "flagpack": (code,),
            "circle-flags": (code,),
            "twemoji": (f"flag-{slug(name)}", f"flag-for-flag-{slug(name)}"),
            "openmoji": (f"flag-{slug(name)}",),
            "emojione": (f"flag-for-{slug(name)}",),
        }
        for hand, family in FLAG_HANDS.items():
            drawing = next((d for d in map(sets[hand].render, spellings[hand]) if d is not None), None)
            if drawing is None:
                continue
            concept.images.append(Picture(f"flag/{slug(name)}/{hand}", hand, family, on_white(drawing)))
            if hand == "flag":
                shares = [colour for colour, share in colour_shares(drawing).items() if share >= 0.07][:4]
                facts["flag_colours"] = " and ".join(filter(None, [", ".join(shares[:-1]), shares[-1]]))
        if len({picture.family for picture in concept.images}) >= 4:
            yield concept
