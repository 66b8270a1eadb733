"""What the gate is made from: pictures of a train split, what they show, and which of them show one thing."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core.images import load_image
from unike.data.leaks import LeakGuard
from unike.data.queries import EditCase, Query
from unike.data.sampling import evenly
from unike.editors.unike.calibration import Pairs, Pictures, calibrate
from unike.editors.unike.gate import Gate
from unike.editors.unike.prepare.views import waved
from unike.editors.unike.prepare.work import Work

SAME, NEAR = "m_generality", ("near_locality", "m_locality")
"""Kinds of probes with another picture of the edited thing, and with one of another thing: the first that there is."""

VIEWS = 400
"""Most pictures that are also seen as another hand might show them."""


def find_gate(work: Work, cases: Sequence[EditCase], guard: LeakGuard) -> tuple[Gate | None, dict[str, Any]]:
    """The gate, and how well it tells pictures; None where cases have no two pictures of a thing, or nothing else.

    Args:
        work: The run.
        cases: Of a train split.
        guard: Says which of them share nothing with what is evaluated.
    """
    clean = guard.clean(cases)
    chosen = [clean[i] for i in evenly(len(clean), work.config.gate_cases)]
    linked = pairs_of(chosen, SAME)
    judged = [case for case in chosen if any(images_of(case, kind) for kind in NEAR)]
    same, near = pairs_of(judged, SAME), pairs_of(judged, *NEAR)
    if not same or not near:
        return None, {}
    images = sorted({image for pair in [*linked, *near] for image in pair})
    row = {image: number for number, image in enumerate(images)}
    linked_rows, same_rows, near_rows = ([(row[a], row[b]) for a, b in pairs] for pairs in (linked, same, near))
    thing = things(len(images), linked_rows)
    if not thing.any():  # one thing alone
        return None, {}
    viewed = evenly(len(images), VIEWS)
    seen, views = see(work, "seen", images, guard), see(work, "views", [images[i] for i in viewed], guard)
    pictures = Pictures(seen, thing, same_rows, near_rows, views, thing[viewed])
    gate, shares = calibrate(pictures, work.config.gate_error)
    told = {name: round(share, 4) for name, share in shares.items()}
    return gate, {
        "cases": len(chosen),
        "pictures": len(images),
        "things": int(pictures.thing.max()) + 1,
        "let_in": told,
    }


def pairs_of(cases: Sequence[EditCase], *kinds: str) -> list[tuple[Path, Path]]:
    """The pictures of edits, each with one of a probe of the first of these kinds that a case has."""
    found = []
    for case in cases:
        others = next(filter(None, (images_of(case, kind) for kind in kinds)), [])
        found += [(case.edit.image, other) for other in others if case.edit.image is not None]
    return found


def images_of(case: EditCase, kind: str) -> list[Path]:
    """The pictures of a case's probes of a kind that are not the edit's own."""
    found = [probe.query.image for probe in case.probes if probe.kind == kind]
    return [image for image in found if image is not None and image != case.edit.image]


def things(n: int, same: Pairs) -> Tensor:
    """``[n]`` long: pictures that pairs link, directly or by others, show one thing."""
    leader = list(range(n))

    def first(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for one, other in same:
        leader[first(other)] = first(one)
    return torch.tensor([first(i) for i in range(n)]).unique(return_inverse=True)[1]


def see(work: Work, how: Literal["seen", "views"], images: Sequence[Path], guard: LeakGuard) -> Tensor:
    """What pictures show, ``[n, 2 D]``: as they are, or as another hand might have made them (`waved`)."""
    parts = []
    starts = range(0, len(images), work.config.rows)
    for done, start in enumerate(starts, 1):
        some = images[start : start + work.config.rows]
        contents = [guard.hashes[image].content for image in some]
        read = partial(read_pictures, work.backbone, some)
        if how == "views":
            read = partial(read_views, work.backbone, some, [int(content[:8], 16) for content in contents])
        tensors, _ = work.once(f"{how}-{done:05}", contents, read)
        parts.append(tensors["seen"])
        work.progress(f"reading {'pictures for the gate' if how == 'seen' else how}", done, len(starts))
    return torch.cat(parts)


def read_pictures(backbone: Backbone, images: Sequence[Path]) -> tuple[dict[str, Tensor], None]:
    """What pictures show, as `Work.once` wants it."""
    seen = backbone.run_to_split(backbone.encode([Query("What is this?", image) for image in images]), 0).pictures
    assert seen is not None
    return {"seen": seen}, None


def read_views(backbone: Backbone, images: Sequence[Path], seeds: Sequence[int]) -> tuple[dict[str, Tensor], None]:
    """The same of pictures on cloths that wave, each by its seed."""
    with TemporaryDirectory() as folder:
        views = [Path(folder) / f"{number}.png" for number in range(len(images))]
        for view, image, seed in zip(views, images, seeds, strict=True):
            waved(load_image(image), seed).save(view)
        return read_pictures(backbone, views)
