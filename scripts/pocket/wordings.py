"""Hand-written text of PocketEdit: question wordings, class names, kinds, and the text-only facts.

It lies in ``wordings.json``. Annotations of OpenMoji are matched in lower case (`annotation.lower()`); a pictogram's
plain name is `PICTOGRAM_RENAME.get(annotation.lower(), annotation.lower())`.
"""

from __future__ import annotations

import json
from pathlib import Path

_TEXT = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

QUESTIONS: dict[str, dict[str, list[str]]] = _TEXT["questions"]
"""Question kind to split to natural wordings; the first of each list is the main one, and no wording is in two lists."""

PHOTO_CLASSES: dict[str, tuple[str, str]] = {
    folder: (name, kind) for folder, (name, kind) in _TEXT["photo_classes"].items()
}
"""Caltech-101 folder to plain display name and kind."""

PICTOGRAM_KINDS: dict[str, str] = _TEXT["pictogram_kinds"]
"""OpenMoji subgroup to kind, from the same closed set as the photo classes; subgroups not named are left out."""

PICTOGRAM_SKIP: set[str] = {annotation for group in _TEXT["pictogram_skip"].values() for annotation in group}
"""Annotations left out: near duplicates, hard to recognise, typographic, or not of their subgroup's kind."""

PICTOGRAM_RENAME: dict[str, str] = _TEXT["pictogram_rename"]
"""Annotation to plain short name, at most three words."""

ELEMENTS: list[tuple[str, str]] = [(name, symbol) for name, symbol in _TEXT["elements"]]
"""Chemical elements with their symbols."""

OPPOSITES: list[tuple[str, str]] = [(word, opposite) for word, opposite in _TEXT["opposites"]]
"""Words with their opposites."""
