"""Edits about pictures of PocketEdit's second version: those of the first asked harder, and what people teach."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from first_version import FirstVersion, Row, Shown, drawn
from free_wordings import FreeWordings

PICTURES_A_TARGET = 2
KEPT = (
    *("task", "split", "domain", "kind", "concept", "src", "alt", "image", "image_rephrase", "loc_ans"),
    *("m_loc", "m_loc_q", "m_loc_a"),
)


def picture_edits(first: FirstVersion, free: FreeWordings) -> Iterator[Row]:
    """Every edit of version 1, under its name, with the same question, pictures and target."""
    for edit in first.edits:
        rng = drawn(edit["case_id"])
        yield {
            "case_id": edit["case_id"],
            **_asked(edit, first, free, rng),
            "rephrase": free.several(edit["kind"], first.split, 2, rng),
            "port_new": [hop | {"Q&A": _freely(hop["Q&A"], first, free, rng)} for hop in json.loads(edit["port_new"])],
        }


def taught_edits(first: FirstVersion, free: FreeWordings) -> Iterator[Row]:
    """What people teach, each about two things; nothing is known to follow from it."""
    for kind, entries in free.targets[first.split].items():
        of_concept = {edit["concept"]: edit for edit in first.edits if edit["kind"] == kind}
        edits = drawn(f"taught-{first.split}-{kind}").sample(list(of_concept.values()), len(of_concept))
        for number, target in enumerate(each for each in entries for _ in range(PICTURES_A_TARGET)):
            name = f"taught-{kind}-{first.split}-{number + 1:04d}"
            rng, edit, own = drawn(name), edits[number % len(edits)], "question" in target
            edit = edit | {
                "alt": target["target"],
                "src": target["question"] if own else rng.choice([w for w in first.wordings[kind] if w != edit["src"]]),
                "image": edit["image_rephrase"],  # the other way round: not a picture that version 1 asks so
                "image_rephrase": edit["image"],
            }
            yield {
                "case_id": name,
                **_asked(edit, first, free, rng, own_question=own),
                "kind": "yesno" if own else kind,
                "target_style": target["style"],
                "rephrase": _listed(target["rephrase"]) if own else free.several(kind, first.split, 2, rng),
                "port_new": [],
            }


def _asked(
    edit: Row, first: FirstVersion, free: FreeWordings, rng: random.Random, *, own_question: bool = False
) -> Row:
    """What an edit about a picture is asked, but for what it should teach."""
    shown, kind, split = first.by_id[edit["image"]], edit["kind"], first.split
    loc_kind, slots = first.slots(edit["loc"])
    elsewhere = first.elsewhere(shown, kind, edit["alt"], rng)

    def same(picture: Shown) -> Row:
        answer = "" if own_question else picture.facts.get(kind, "")
        return {"image": picture.image_id, "Question": edit["src"], "Answer": answer}

    return {
        **{key: edit[key] for key in KEPT},
        "loc": free.one(loc_kind, split, rng).format(**slots),
        "m_loc_more": [same(elsewhere)],
        "near": [same(picture) for picture in first.near(shown, kind, edit["alt"], rng)],
        "spec": [
            *(_freely(each, first, free, rng) for each in json.loads(edit["spec"])),
            *({"Question": free.other(shown.domain, split, rng), "Answer": ""} for _ in _others(edit)),
        ],
    }


def _others(edit: Row) -> range:
    """One question about something else; two of a caption, which says all that version 1 knows of a picture."""
    return range(2 if edit["task"] == "caption" else 1)


def _freely(asked: Row, first: FirstVersion, free: FreeWordings, rng: random.Random) -> dict[str, Any]:
    """A question of version 1 in a free wording."""
    return asked | {"Question": free.one(first.kind_of[asked["Question"]], first.split, rng)}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
