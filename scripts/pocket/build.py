"""Build PocketEdit: a small, openly licensed benchmark in MMEdit's own format.

    python scripts/pocket/build.py --photos caltech101/ --out src/unike/data/datasets/pocket_data

Drawings and country facts come from npm packages of pinned versions (``SOURCES``, fetched with ``npm pack``); photographs
from a folder of Caltech-101 classes (CaltechDATA record 20086). The result is four Parquet files and is deterministic:
the same sources and seed give the same records.

    images.parquet     image_id, domain, concept, hand, split, role, webp
    concepts.parquet   concept, domain, split, facts (JSON: name, kind, colour, country, capital, ...)
    questions.parquet  kind, split, wording
    edits.parquet      MMEdit's keys (src, rephrase, pred, alt, image, ...) + port_new, spec; task, split, case_id, kind

Splits are by concept. ``role`` says what an image is for: ``fit`` (a projector may be trained on it), ``held`` (a known
concept in a picture never trained on: measures the base model and serves as locality probe), ``edit`` (a concept that
no base model was trained on).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import subprocess
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image

from wordings import ELEMENTS, OPPOSITES, PHOTO_CLASSES, PICTOGRAM_KINDS, PICTOGRAM_RENAME, PICTOGRAM_SKIP, QUESTIONS

SEED = 20
SIZE = 224
SPLITS = ("pretrain", "train", "dev", "eval")
# Concepts a split gets, per domain; what is left goes to the last one named.
QUOTAS = {
    "photo": {"eval": 17, "dev": 6, "train": 13, "pretrain": 1000},
    "flag": {"eval": 60, "dev": 12, "train": 45, "pretrain": 1000},
    "pictogram": {"eval": 130, "dev": 40, "train": 190, "pretrain": 1000},
}
PHOTOS_PER_CLASS = {"pretrain": 34, "train": 16, "dev": 12, "eval": 14}
HELD_PHOTOS = 6  # of a pretrain class
DRAWINGS_PER_CONCEPT = {"pretrain": 99, "train": 4, "dev": 4, "eval": 4}

# npm package -> version; every one is openly licensed, see NOTICE.
SOURCES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/emojione-v1": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/circle-flags": "1.2.11",
    "@iconify-json/flagpack": "1.2.8",
    "@iconify-json/flag": "1.2.12",
    "openmoji": "17.0.0",
    "world-countries": "5.1.0",
}
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
NAMED_COLOURS = {
    "red": [(220, 30, 40), (180, 20, 30), (240, 70, 70)],
    "orange": [(250, 140, 30), (245, 160, 60)],
    "yellow": [(255, 215, 50), (250, 230, 120), (230, 190, 40)],
    "green": [(40, 150, 60), (120, 180, 60), (20, 100, 50), (150, 210, 110)],
    "blue": [(40, 90, 200), (60, 150, 230), (20, 40, 110), (130, 200, 245)],
    "purple": [(130, 60, 170), (170, 120, 210)],
    "pink": [(245, 140, 180), (250, 190, 210), (230, 80, 150)],
    "brown": [(130, 80, 50), (90, 55, 35), (170, 115, 80)],
    "black": [(15, 15, 15), (50, 50, 50)],
    "grey": [(130, 130, 135), (170, 175, 180), (95, 100, 105)],
    "white": [(255, 255, 255), (235, 238, 240)],
}


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


# --- sources ---------------------------------------------------------------------------------------------------------


def fetch(cache: Path) -> dict[str, Path]:
    """Download every npm package of ``SOURCES`` once; return package name -> archive."""
    cache.mkdir(parents=True, exist_ok=True)
    archives = {}
    for name, version in SOURCES.items():
        archive = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not archive.exists():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=cache, check=True, capture_output=True)
        archives[name] = archive
    return archives


def read_member(archive: Path, member: str) -> bytes:
    with tarfile.open(archive) as tar:
        extracted = tar.extractfile(f"package/{member}")
        assert extracted is not None
        return extracted.read()


class IconSet:
    """An Iconify JSON package: icon name -> SVG."""

    def __init__(self, archive: Path) -> None:
        data = json.loads(read_member(archive, "icons.json"))
        self.icons, self.aliases = data["icons"], data.get("aliases", {})
        self.width, self.height = data.get("width", 16), data.get("height", 16)

    def render(self, name: str) -> Image.Image | None:
        """The icon as an RGBA square of ``SIZE`` pixels, or None if the set lacks it."""
        name = self.aliases.get(name, {}).get("parent", name)
        icon = self.icons.get(name)
        if icon is None:
            return None
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
            f'width="{width}" height="{height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=SIZE if width >= height else None, height=None if width >= height else SIZE
        )
        drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        square = Image.new("RGBA", (SIZE, SIZE))
        square.paste(drawing, ((SIZE - drawing.width) // 2, (SIZE - drawing.height) // 2))
        return square


def on_white(drawing: Image.Image) -> Image.Image:
    white = Image.new("RGBA", drawing.size, "white")
    return Image.alpha_composite(white, drawing).convert("RGB")


def colour_shares(drawing: Image.Image) -> dict[str, float]:
    """Share of the opaque pixels that is nearest to each named colour, largest first."""
    rgba = np.asarray(drawing.resize((56, 56))).reshape(-1, 4).astype(np.float32)
    opaque = rgba[rgba[:, 3] > 200, :3]
    if not len(opaque):
        return {}
    names = [name for name, shades in NAMED_COLOURS.items() for _ in shades]
    shades = np.array([shade for shades in NAMED_COLOURS.values() for shade in shades], dtype=np.float32)
    nearest = ((opaque[:, None] - shades[None]) ** 2).sum(-1).argmin(1)
    counts = Counter(names[i] for i in nearest)
    return {name: count / len(opaque) for name, count in counts.most_common()}


# --- concepts --------------------------------------------------------------------------------------------------------


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


# --- splits and roles ------------------------------------------------------------------------------------------------


def assign_splits(concepts: list[Concept], rng: random.Random) -> None:
    """Split by concept: a photo class and a pictogram of one name are one concept and share their split."""
    fixed: dict[str, str] = {}
    for domain, quotas in QUOTAS.items():
        members = [c for c in concepts if c.domain == domain]
        rng.shuffle(members)
        free = [c for c in members if c.concept not in fixed]
        room = Counter(quotas) - Counter(fixed[c.concept] for c in members if c.concept in fixed)
        for concept in free:
            split = next(s for s in quotas if room[s] > 0)
            room[split] -= 1
            fixed[concept.concept] = split
        for concept in members:
            concept.split = fixed[concept.concept]


def assign_roles(concept: Concept, rng: random.Random) -> None:
    """Known concepts: some photos, or all drawings of one family, are held out. Others: a limited choice of pictures."""
    if concept.domain == "photo":
        concept.images = concept.images[: PHOTOS_PER_CLASS[concept.split]]
        held = {picture.family for picture in concept.images[:HELD_PHOTOS]}
    else:
        families = sorted({picture.family for picture in concept.images})
        held = {rng.choice(families)}
    if concept.split == "pretrain":
        for picture in concept.images:
            picture.role = "held" if picture.family in held else "fit"
        return
    if concept.domain != "photo":  # one drawing a family: an image rephrase is by another hand
        first = {}
        for picture in rng.sample(concept.images, len(concept.images)):
            first.setdefault(picture.family, picture)
        concept.images = list(first.values())[: DRAWINGS_PER_CONCEPT[concept.split]]


def thumbnails(pictures: list[Picture]) -> np.ndarray:
    """[P, 768] float32: a perceptual hash that keeps colour, so that France is not Italy."""
    return np.stack([np.asarray(p.pixels.resize((16, 16)), dtype=np.float32).reshape(-1) for p in pictures])


def drop_near_duplicates(concepts: list[Concept], threshold: float = 6.0) -> int:
    """Remove pictures that look like one across the fit/held line or of another split (mean abs difference per channel)."""
    owners = [(concept, picture) for concept in concepts for picture in concept.images]
    thumbs = thumbnails([picture for _, picture in owners])
    side = [concept.split + picture.role for concept, picture in owners]
    dropped: set[int] = set()
    for i in range(len(owners)):
        close = np.flatnonzero(np.abs(thumbs[i + 1 :] - thumbs[i]).mean(1) < threshold) + i + 1
        dropped |= {int(j) for j in close if side[j] != side[i] and i not in dropped}
    gone = {owners[i][1].image_id for i in dropped}
    for concept in concepts:
        concept.images = [p for p in concept.images if p.image_id not in gone]
    return len(dropped)


# --- edits -----------------------------------------------------------------------------------------------------------

EDITED_KINDS = {
    "photo": ("name",),
    "pictogram": ("name", "kind"),
    "flag": ("country", "capital", "continent", "currency"),
}
PORTABLE = {"name": ("kind",), "country": ("capital", "continent")}
SPECIFIC = {
    "name": ("medium", "colour"),
    "kind": ("name", "medium"),
    "country": ("flag_colours", "medium"),
    "capital": ("continent", "flag_colours"),
    "continent": ("capital", "flag_colours"),
    "currency": ("continent", "flag_colours"),
}
EDITS_PER_IMAGE_KIND = {"train": 3, "dev": 2, "eval": 2}
EDIT_PHOTOS = {"train": 14, "dev": 8, "eval": 12}


def caption(facts: dict[str, str], domain: str) -> str:
    if domain == "flag":
        return f"the flag of {facts['country']}, a country in {facts['continent']}, in {facts['flag_colours']}"
    article = "an" if facts["name"][0] in "aeiou" else "a"
    kind_article = "an" if facts["kind"][0] in "aeiou" else "a"
    coloured = f", mostly {facts['colour']}" if "colour" in facts else ""
    return f"a {facts['medium']} of {article} {facts['name']}, {kind_article} {facts['kind']}{coloured}"


class Probes:
    """Draws wordings, text-only facts and locality images that belong to one split."""

    def __init__(self, split: str, concepts: list[Concept], rng: random.Random) -> None:
        self.split, self.rng = split, rng
        known = [c for c in concepts if c.split == "pretrain" and any(p.role == "held" for p in c.images)]
        share = {"train": (0.0, 0.4), "dev": (0.4, 0.5), "eval": (0.5, 1.0)}[split]
        names = sorted({c.concept for c in known})  # by name: a photo class and a pictogram may be one concept
        random.Random(SEED).shuffle(names)  # the same order for every split: the shares are disjoint
        names = names[int(share[0] * len(names)) : int(share[1] * len(names))]
        self.known = [c for c in known if c.concept in names]
        self.countries = [c for c in concepts if c.domain == "flag" and c.split == split]
        self.elements = ELEMENTS[SPLITS.index(split) :: 4]
        self.opposites = OPPOSITES[SPLITS.index(split) :: 4]
        self.sum_offset = SPLITS.index(split)

    def two_wordings(self, kind: str) -> tuple[str, str]:
        first, second = self.rng.sample(QUESTIONS[kind][self.split], 2)
        return first, second

    def wording(self, kind: str) -> str:
        return self.rng.choice(QUESTIONS[kind][self.split])

    def text_only(self, avoid: Concept) -> tuple[str, str]:
        kind = self.rng.choice(["text_capital", "text_continent", "text_symbol", "text_sum", "text_opposite"])
        text = self.wording(kind)
        if kind in ("text_capital", "text_continent"):
            country = self.rng.choice([c for c in self.countries if c is not avoid]).facts
            return text.format(country=country["country"]), country[kind.removeprefix("text_")]
        if kind == "text_symbol":
            element, symbol = self.rng.choice(self.elements)
            return text.format(element=element), symbol
        if kind == "text_opposite":
            word, opposite = self.rng.choice(self.opposites)
            return text.format(word=word), opposite
        a, b = (4 * self.rng.randint(0, 5) + self.sum_offset for _ in range(2))  # a mod 4 tells the splits apart
        return text.format(a=a, b=b), str(a + b)

    def other_image(self, avoid: Concept) -> tuple[str, str, str]:
        kinds = {avoid.facts.get("kind"), avoid.facts.get("name")}
        fitting = [
            c
            for c in self.known
            if c.facts.get("kind", "flag") not in kinds and (c.domain != "flag" or avoid.domain != "flag")
        ]
        concept = self.rng.choice(fitting)
        picture = self.rng.choice([p for p in concept.images if p.role == "held"])
        kind = self.rng.choice([k for k in ("name", "kind", "medium", "country", "continent") if k in concept.facts])
        return picture.image_id, self.wording(kind), concept.facts[kind]


def other_picture(concept: Concept, picture: Picture, rng: random.Random) -> Picture | None:
    return rng.choice([p for p in concept.images if p is not picture]) if len(concept.images) > 1 else None


def edit_records(concepts: list[Concept], split: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    probes = Probes(split, concepts, rng)
    numbers = Counter[str]()

    def record(task: str, kind: str, concept: Concept, picture: Picture, target: str) -> dict[str, Any] | None:
        again = other_picture(concept, picture, rng)
        if again is None:
            return None
        src, rephrase = probes.two_wordings("caption" if task == "caption" else kind)
        loc, loc_ans = probes.text_only(concept)
        m_loc, m_loc_q, m_loc_a = probes.other_image(concept)
        portable = (
            PORTABLE.get(kind, ()) if task == "vqa" else tuple(k for k in ("name", "country") if k in concept.facts)
        )
        specific = SPECIFIC.get(kind, ("medium",))
        numbers[task] += 1
        return {
            "case_id": f"{task}-{split}-{numbers[task]:04d}",
            "task": task,
            "split": split,
            "domain": concept.domain,
            "kind": kind,
            "concept": concept.concept,
            "src": src,
            "rephrase": rephrase,
            "pred": "",
            "alt": target,
            "image": picture.image_id,
            "image_rephrase": again.image_id,
            "loc": loc,
            "loc_ans": loc_ans,
            "m_loc": m_loc,
            "m_loc_q": m_loc_q,
            "m_loc_a": m_loc_a,
            "port_new": json.dumps(
                [
                    {"port_type": "1-hop", "Q&A": {"Question": probes.wording(k), "Answer": concept.facts[k]}}
                    for k in portable
                    if k in concept.facts
                ]
            ),
            "spec": json.dumps(
                [{"Question": probes.wording(k), "Answer": concept.facts[k]} for k in specific if k in concept.facts]
            ),
        }

    for concept in (c for c in concepts if c.split == split):
        for kind in EDITED_KINDS[concept.domain]:
            count = EDIT_PHOTOS[split] if concept.domain == "photo" else EDITS_PER_IMAGE_KIND[split]
            if kind in ("kind", "continent", "currency") and split != "train":
                count -= 1
            for picture in concept.images[:count]:
                if kind in concept.facts and (r := record("vqa", kind, concept, picture, concept.facts[kind])):
                    yield r
        for picture in concept.images[: 4 if concept.domain == "photo" else 1]:
            if r := record("caption", "caption", concept, picture, caption(concept.facts, concept.domain)):
                yield r


# --- output ----------------------------------------------------------------------------------------------------------


def webp(picture: Picture, domain: str) -> bytes:
    buffer = io.BytesIO()
    picture.pixels.save(buffer, "WEBP", quality=62 if domain == "photo" else 72, method=6)
    return buffer.getvalue()


def write(out: Path, name: str, rows: Iterable[dict[str, Any]]) -> int:
    table = pa.Table.from_pylist(list(rows))
    partial = out / f".{name}.partial"
    pq.write_table(table, partial, compression="zstd")
    partial.replace(out / f"{name}.parquet")
    return table.num_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder with one folder of JPEGs a Caltech-101 class"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/npm"), help="where npm archives are kept")
    parser.add_argument("--out", type=Path, default=Path("src/unike/data/datasets/pocket_data"))
    args = parser.parse_args()
    rng = random.Random(SEED)
    archives = fetch(args.cache)
    concepts = [*photo_concepts(args.photos, rng), *flag_concepts(archives), *pictogram_concepts(archives)]
    assign_splits(concepts, rng)
    for concept in concepts:
        assign_roles(concept, rng)
    print("near-duplicate pictures dropped:", drop_near_duplicates(concepts))
    concepts = [c for c in concepts if len(c.images) >= 2]

    args.out.mkdir(parents=True, exist_ok=True)
    edits = [r for split in ("train", "dev", "eval") for r in edit_records(concepts, split, rng)]
    used = {r[key] for r in edits for key in ("image", "image_rephrase", "m_loc")}
    images = [
        {
            "image_id": p.image_id,
            "domain": c.domain,
            "concept": c.concept,
            "hand": p.hand,
            "split": c.split,
            "role": p.role,
            "webp": webp(p, c.domain),
        }
        for c in concepts
        for p in c.images
        if c.split == "pretrain" or p.image_id in used
    ]
    for concept in concepts:
        concept.facts["caption"] = caption(concept.facts, concept.domain)
    facts = [
        {"concept": c.concept, "domain": c.domain, "split": c.split, "facts": json.dumps(c.facts, ensure_ascii=False)}
        for c in concepts
    ]
    texts = [
        {"kind": k, "split": s, "wording": w}
        for k, by_split in QUESTIONS.items()
        for s, ws in by_split.items()
        for w in ws
    ]
    for name, rows in (("images", images), ("concepts", facts), ("questions", texts), ("edits", edits)):
        write(args.out, name, rows)
    print("concepts", Counter((c.domain, c.split) for c in concepts))
    print("images", Counter((r["domain"], r["split"], r["role"]) for r in images))
    print(
        "edits",
        Counter((r["task"], r["split"], r["domain"]) for r in edits),
        Counter((r["task"], r["split"]) for r in edits),
    )
    print("size", {p.name: p.stat().st_size for p in args.out.glob("*.parquet")})


if __name__ == "__main__":
    main()
