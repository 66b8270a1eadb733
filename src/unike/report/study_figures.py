"""Figures that a study left beside its runs, to be shown with them."""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unike.core.errors import UnikeError
from unike.core.files import read_file

STUDY_FILE = ".study.json"
"""How the name of the list of a study's figures ends: ``{"title": ..., "figures": {file: caption}}``."""


@dataclass(frozen=True)
class StudyFigures:
    """The figures of a study.

    Attributes:
        title: Of the study.
        figures: Caption and SVG of each.
    """

    title: str
    figures: Sequence[tuple[str, str]]

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Caption and ``data:`` address of each: as an image, whatever a file holds is shown and never run."""
        coded = ((caption, base64.b64encode(svg.encode()).decode()) for caption, svg in self.figures)
        return [(caption, f"data:image/svg+xml;base64,{code}") for caption, code in coded]


def find_studies(folders: Iterable[Path]) -> list[StudyFigures]:
    """What studies left in some folders or below them, in order of their names.

    Raises:
        UnikeError: A list of figures, or one of them, cannot be read.
    """
    places = {path.resolve(): path for folder in folders for path in sorted(folder.rglob(f"*{STUDY_FILE}"))}
    return [_read(path) for path in places.values()]


def _read(path: Path) -> StudyFigures:
    try:
        found = json.loads(read_file(path))
        # A name alone: a list must not lead to files elsewhere.
        svgs = {file: read_file(path.parent / Path(file).name).decode() for file in found["figures"]}
        return StudyFigures(str(found["title"]), [(str(found["figures"][file]), svg) for file, svg in svgs.items()])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnikeError(f"cannot read the figures of {path}: {error}; run the study again") from None
