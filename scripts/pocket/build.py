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
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from concepts import PHOTOS_PER_CLASS, Concept, Picture, flag_concepts, photo_concepts, pictogram_concepts
from drawings import fetch
from edits import SEED, caption, edit_records
from wordings import QUESTIONS

# Concepts a split gets, per domain; what is left goes to the last one named.
QUOTAS = {
    "photo": {"eval": 17, "dev": 6, "train": 13, "pretrain": 1000},
    "flag": {"eval": 60, "dev": 12, "train": 45, "pretrain": 1000},
    "pictogram": {"eval": 130, "dev": 40, "train": 190, "pretrain": 1000},
}
HELD_PHOTOS = 6  # of a pretrain class
DRAWINGS_PER_CONCEPT = {"pretrain": 99, "train": 4, "dev": 4, "eval": 4}


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
