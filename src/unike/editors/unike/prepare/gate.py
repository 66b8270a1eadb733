"""What the gate is made from: pictures of a train split, what they show, and which of them show one thing."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import SEEN
from unike.core.images import load_image
from unike.data.leaks import LeakGuard
from unike.data.provenance import every_query
from unike.data.queries import EditCase, Query
from unike.data.sampling import evenly
from unike.editors.unike.calibration import Pairs, calibrate
from unike.editors.unike.gate import Gate
from unike.editors.unike.pictures import Pictures
from unike.editors.unike.prepare.views import Hand
from unike.editors.unike.prepare.work import Work

SAME, NEAR = "m_generality", ("near_locality", "m_locality")
"""Kinds of probes with another picture of the edited thing, and with one of another thing: the first that there is."""

SHOWN = 128
"""Most things of a kind that a made-up hand shows."""

Drawn = tuple[int, int]
"""A picture, by its row, and the made-up hand that shows it."""


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
    kind = kinds(images, chosen)
    drawn = shown_by_hands(thing, kind, work.config.gate_hands)
    of = torch.tensor([*range(len(images)), *(picture for picture, _ in drawn)])
    hand = torch.tensor([0] * len(images) + [by for _, by in drawn])
    seen = torch.cat([see(work, images, guard), see_drawn(work, images, drawn, guard)])
    pictures = Pictures(seen, thing[of], kind[of], hand)
    gate, shares = calibrate(pictures, same_rows, near_rows, error=work.config.gate_error, steps=work.config.gate_steps)
    told = {name: round(share, 4) for name, share in shares.items()}
    return gate, {
        "cases": len(chosen),
        "pictures": len(images),
        "things": int(thing.max()) + 1,
        "views": len(drawn),
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


def kinds(images: Sequence[Path], cases: Sequence[EditCase]) -> Tensor:
    """``[n]`` long: of what kind pictures are, as the first case says that shows them."""
    domain = {image: case.domain for case in reversed(cases) for image in images_shown(case)}
    names = sorted(set(domain.values()))
    return torch.tensor([names.index(domain[image]) for image in images])


def images_shown(case: EditCase) -> list[Path]:
    """A case's pictures."""
    return [query.image for query in every_query([case]) if query.image is not None]


def shown_by_hands(thing: Tensor, kind: Tensor, hands: int) -> list[Drawn]:
    """Which made-up hand shows which pictures: of each kind some things, a picture each."""
    found = []
    for hand in range(1, hands + 1):
        chosen = torch.Generator().manual_seed(hand)
        for one in kind.unique().tolist():
            rows = (kind == one).nonzero().flatten()
            rows = rows[torch.randperm(len(rows), generator=chosen)].tolist()
            of_thing = {int(thing[row]): row for row in rows}
            found += [(row, hand) for row in list(of_thing.values())[:SHOWN]]
    return found


def see(work: Work, images: Sequence[Path], guard: LeakGuard) -> Tensor:
    """What pictures show as they are, ``[n, S]``."""

    def read(some: Sequence[Path]) -> Tensor:
        return read_pictures(work.backbone, some)

    return in_parts(work, "seen", images, [guard.hashes[image].content for image in images], read)


def see_drawn(work: Work, images: Sequence[Path], drawn: Sequence[Drawn], guard: LeakGuard) -> Tensor:
    """What pictures show by made-up hands, ``[m, S]``."""

    def read(some: Sequence[Drawn]) -> Tensor:
        with TemporaryDirectory() as folder:
            views = [Path(folder) / f"{number}.png" for number in range(len(some))]
            for view, (picture, hand) in zip(views, some, strict=True):
                Hand.drawn(hand).show(load_image(images[picture])).save(view)
            return read_pictures(work.backbone, views)

    return in_parts(work, "views", drawn, [[guard.hashes[images[row]].content, hand] for row, hand in drawn], read)


def in_parts(
    work: Work, name: str, pictures: Sequence[Any], made_from: Sequence[Any], read: Callable[[Any], Tensor]
) -> Tensor:
    """What pictures show, ``[n, S]``, some at a time, each part once.

    Args:
        work: The run.
        name: Of the parts.
        pictures: In any form that ``read`` takes.
        made_from: What each depends on, as JSON has it.
        read: From some pictures to what they show.
    """
    width = SEEN * work.backbone.width
    parts, starts = [torch.zeros(0, width)], range(0, len(pictures), work.config.rows)
    for done, start in enumerate(starts, 1):
        some = slice(start, start + work.config.rows)
        make = partial(_named, read, pictures[some])
        parts.append(work.once(f"{name}-{done:05}", made_from[some], make)[0]["seen"])
        work.progress(f"reading {'pictures' if name == 'seen' else 'views'} for the gate", done, len(starts))
    return torch.cat(parts)


def _named(read: Callable[[Any], Tensor], some: Any) -> tuple[dict[str, Tensor], None]:
    return {"seen": read(some)}, None


def read_pictures(backbone: Backbone, images: Sequence[Path]) -> Tensor:
    """What pictures show, ``[n, S]``."""
    seen = backbone.run_to_split(backbone.encode([Query("What is this?", image) for image in images]), 0).pictures
    assert seen is not None
    return seen
