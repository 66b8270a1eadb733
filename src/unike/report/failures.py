"""Questions that went wrong, a few of each kind, with their pictures small enough to be inside a page."""

import base64
import io
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from unike.bench.outcome import Asked
from unike.bench.protocols.base import views
from unike.bench.results import RunResults
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.images import load_image
from unike.data.datasets.base import Dataset, RecordFiles, open_dataset
from unike.data.queries import probe_kinds

SEED = 0
"""Of the draw of failures, the same for every run."""

SIDE = 160
"""Pixels of the longer side of a picture."""

QUALITY = 80
"""Of its JPEG."""


@dataclass(frozen=True)
class Failure:
    """A question that an edit did not bring to the wanted answer.

    Attributes:
        case_id: Of its case.
        asked: The question and both answers.
    """

    case_id: str
    asked: Asked


@dataclass(frozen=True)
class Failures:
    """Those of one kind of question.

    Attributes:
        kind: Name of one of `unike.data.queries.probe_kinds`.
        failed: How many there are.
        of: Among how many questions.
        drawn: A few of them.
    """

    kind: str
    failed: int
    of: int
    drawn: tuple[Failure, ...]

    @property
    def wanted(self) -> str:
        """What the answer should have been."""
        return "the answer before" if probe_kinds()[self.kind].expects == "unchanged" else "the target"


def failures(run: RunResults, view: str, count: int) -> list[Failures]:
    """Questions that did not get full marks at the end, drawn with `SEED` for each kind in the order of cases.

    Args:
        run: Whose questions.
        view: Of `unike.bench.protocols.base.views`: the protocol and scorers that say what went wrong.
        count: How many to draw of a kind, at most.
    """
    protocol = view.partition("/")[0]
    keys = [f"{protocol}/{scorer}" for scorer in views()[view]]
    scored: dict[str, list[tuple[Failure, bool]]] = defaultdict(list)
    for case in sorted(run.cases, key=lambda case: (case.sequence or 0, case.case_id)):
        for asked in case.asked if case.when == "end" else ():
            scores = [score for key in keys if (score := asked.scores.get(key)) is not None]
            if scores:
                scored[asked.kind].append((Failure(case.case_id, asked), min(scores) < 1))
    found = []
    for kind in probe_kinds():
        failed = [failure for failure, wrong in scored[kind] if wrong]
        drawn = random.Random(f"{SEED}-{kind}").sample(failed, min(count, len(failed)))
        if drawn:
            found.append(Failures(kind, len(failed), len(scored[kind]), tuple(drawn)))
    return found


class Pictures:
    """Pictures of data sets as JPEG thumbnails in ``data:`` addresses.

    Args:
        data: Folder of the files of a data set that does not ship with unike; None for the cache folder.
    """

    def __init__(self, data: Path | None = None) -> None:
        self.data = data
        self._found: dict[tuple[str, str], str | None] = {}

    def address(self, dataset: str, name: str) -> str | None:
        """A picture by the name it has in results; None if it is not there or cannot be read."""
        if (dataset, name) not in self._found:
            try:
                self._found[dataset, name] = thumbnail(self._open(dataset).picture(name))
            except UnikeError:
                self._found[dataset, name] = None
        return self._found[dataset, name]

    def _open(self, dataset: str) -> Dataset:
        first = dataset.partition("+")[0]  # the tasks of cross-task editing have their pictures in one folder
        in_a_folder = issubclass(registry.datasets.get(first.partition("-")[0]), RecordFiles)
        return open_dataset(first, self.data if in_a_folder else None)


def thumbnail(path: Path) -> str:
    """A picture of at most `SIDE` pixels as a ``data:`` address.

    Raises:
        UnikeError: It cannot be read.
    """
    image = load_image(path)
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
