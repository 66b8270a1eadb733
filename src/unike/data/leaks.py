"""Keeping what is evaluated on out of what is learned from.

Two questions leak if they are about the same picture, or about pictures that look the same, or if they are the same
question and say by themselves what they are about. "What is this?" is asked about everything and says nothing.
"""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from unike.core import home
from unike.core.errors import UnikeError
from unike.core.files import file_hash, read_file, replace_file
from unike.core.images import load_image
from unike.data.provenance import every_query
from unike.data.queries import EditCase, Query

SIDE = 16
"""Thumbnails are of so many pixels a side."""

NEAR = 12
"""Pictures whose hashes differ in no more bits look the same: about 4 of 255 in the mean over pixels and channels."""

GENERIC = 5
"""A question that is asked about so many pictures is about none of them in particular."""

LEAKS = ("evaluated picture", "looks like an evaluated picture", "evaluated question")


@dataclass(frozen=True)
class ImageHashes:
    """What tells a picture from others: see `content_hash` and `perceptual_hash`."""

    content: str
    perceptual: str


def content_hash(image: Path) -> str:
    """SHA-256 of the file, its first 16 digits.

    Raises:
        UnikeError: It cannot be read.
    """
    try:
        return file_hash(image)[:16]
    except OSError:
        load_image(image)  # says what is wrong with it
        raise


def perceptual_hash(image: Image.Image) -> str:
    """192 hexadecimal digits that differ in few bits where pictures look alike, colours included.

    Each of the 16 x 16 x 3 bits says whether a value of the thumbnail is above a threshold, and thresholds are spread
    over 0..255 (ordered dithering, with a channel's own shift). So the number of different bits measures the mean
    difference of colours; hashes that compare neighbouring pixels cannot tell the flag of France from Italy's.

    Args:
        image: In RGB.
    """
    values = image.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()
    bits = "".join("1" if value > limit else "0" for value, limit in zip(values, _thresholds(), strict=True))
    return f"{int(bits, 2):0{len(bits) // 4}x}"


@cache
def _thresholds() -> tuple[int, ...]:
    """Of every pixel and channel, ``[768]``: 0 to 254, spread over each channel by Bayer's matrix."""
    bayer = torch.zeros(1, 1, dtype=torch.long)
    while len(bayer) < SIDE:
        bayer = torch.cat([torch.cat([4 * bayer, 4 * bayer + 2], 1), torch.cat([4 * bayer + 3, 4 * bayer + 1], 1)])
    channels = torch.stack([bayer, bayer.roll(5, 0), bayer.roll(5, 1)], dim=-1)
    return tuple((channels.flatten() * 255 // SIDE**2).tolist())


@dataclass(frozen=True)
class Trace:
    """What is kept of a question that was learned from, enough to recognise it.

    Args:
        prompt: The question.
        image: Of its picture, or None.
    """

    prompt: str
    image: ImageHashes | None

    def to_json(self) -> dict[str, Any]:
        """As files keep it."""
        content, perceptual = (None, None) if self.image is None else astuple(self.image)
        return {"prompt": self.prompt, "image_hash": content, "perceptual_hash": perceptual}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """The reverse of `to_json`; a subclass finds the values of its further fields under their names.

        Raises:
            LookupError: Something is missing.
        """
        content, perceptual = kept["image_hash"], kept["perceptual_hash"]
        further = {each.name: kept[each.name] for each in fields(cls) if each.name not in ("prompt", "image")}
        return cls(kept["prompt"], None if content is None else ImageHashes(content, perceptual), **further)


class LeakGuard:
    """Tells which candidates have something in common with what an evaluation asks.

    Args:
        protected: Every query of the evaluation, edits and probes.
        candidates: Every query that is to be learned from; they show which questions are generic.
        progress: Called with the number of pictures that are read, and of all.
        traces: Of queries that were learned from already; they show it too.
        skip_bad: Pass over pictures that cannot be read.

    Attributes:
        hashes: Of every picture of either.

    Raises:
        UnikeError: A picture cannot be read.
    """

    def __init__(
        self,
        protected: Sequence[Query],
        candidates: Sequence[Query],
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        traces: Sequence[Trace] = (),
        skip_bad: bool = False,
    ) -> None:
        images = sorted({query.image for query in [*protected, *candidates] if query.image is not None})
        self.hashes = read_hashes(images, progress, skip_bad=skip_bad)
        seen = {self.hashes[query.image] for query in protected if query.image in self.hashes}
        self._contents = {each.content for each in seen}
        self._bits = _as_bits([each.perceptual for each in seen])
        self._questions = {worded(query.prompt) for query in protected}
        shown = [each for each in (*map(self.trace, candidates), *traces) if each.image is not None]
        self._questions -= generic_questions((each.prompt, each.image) for each in shown)

    def trace(self, query: Query) -> Trace:
        """What to recognise a query by, if its picture has been read."""
        return Trace(query.prompt, None if query.image is None else self.hashes.get(query.image))

    def leak(self, learned: Query | Trace) -> str | None:
        """What a candidate, or what is kept of it, has in common with the evaluation, one of `LEAKS`, or None."""
        trace = self.trace(learned) if isinstance(learned, Query) else learned
        if trace.image is not None:
            if trace.image.content in self._contents:
                return LEAKS[0]
            if ((self._bits != _as_bits([trace.image.perceptual])).sum(dim=1) <= NEAR).any():
                return LEAKS[1]
        return LEAKS[2] if worded(trace.prompt) in self._questions else None

    def clean(self, cases: Sequence[EditCase]) -> list[EditCase]:
        """The cases none of whose queries, edit or probe, leaks."""
        return [case for case in cases if not any(self.leak(query) for query in every_query([case]))]


def generic_questions(asked: Iterable[tuple[str, Hashable]]) -> set[str]:
    """The questions that are about nothing in particular, as `worded` gives them.

    Args:
        asked: Questions, each with what tells its picture from others.
    """
    counts = Counter(question for question, _ in {(worded(prompt), picture) for prompt, picture in asked})
    return {question for question, count in counts.items() if count >= GENERIC}


def read_hashes(
    images: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None, *, skip_bad: bool = False
) -> dict[Path, ImageHashes]:
    """The hashes of pictures; those that were ever worked out are kept in the cache folder, by the file's content.

    Args:
        images: Each once.
        progress: As in `LeakGuard`.
        skip_bad: As in `LeakGuard`.

    Raises:
        UnikeError: A picture cannot be read, or the cache folder cannot be written.
    """
    place = home.folder() / f"perceptual_hashes_{SIDE}.json"
    known = _read_known(place)
    count, hashes = len(known), {}
    for number, image in enumerate(images, start=1):
        try:
            content = content_hash(image)
            if content not in known:
                known[content] = perceptual_hash(load_image(image))
            hashes[image] = ImageHashes(content, known[content])
        except UnikeError:
            if not skip_bad:
                raise
        progress(number, len(images))
    if len(known) > count:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnikeError(f"cannot write {place.parent}: {error.strerror}; set UNIKE_HOME") from None
        replace_file(place, json.dumps(known).encode())
    return hashes


def _read_known(place: Path) -> dict[str, str]:
    """Content to perceptual hash; nothing if the file is not there or not whole, as it can be made again."""
    try:
        known = json.loads(read_file(place))
        return {key: value for key, value in known.items() if len(value) == 3 * SIDE**2 // 4 and int(value, 16) >= 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def worded(prompt: str) -> str:
    """A question without regard to case and spaces."""
    return " ".join(prompt.casefold().split())


def _as_bits(hashes: list[str]) -> Tensor:
    """``[n, 768]`` bool."""
    rows = [[digit == "1" for digit in f"{int(each, 16):0{4 * len(each)}b}"] for each in hashes]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(hashes), 3 * SIDE**2)
