"""Which cases are edited, in which order and together with which; and what may not be evaluated at all."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unike.backbones.adapter import Backbone
from unike.backbones.answers import ALONE, Answers, Team
from unike.bench.header import Counts
from unike.bench.lines import image_name, questions
from unike.bench.spec import RunSpec
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.data.datasets.base import all_tasks, open_dataset
from unike.data.leaks import LeakGuard
from unike.data.queries import EditCase, probe_kinds
from unike.editors.base import Editor

STEP = 64
"""Cases that are looked at together, to find those that the model gets wrong."""


@dataclass(frozen=True)
class Task:
    """The cases of a data set, or of one task of it.

    Attributes:
        dataset: Name of the data set, with the task's.
        split: Of it.
        cases: All its cases.
        skipped: Records that were left out when it was read.
        image_root: Pictures are named by their path below it.
    """

    dataset: str
    split: str
    cases: Sequence[EditCase]
    skipped: int = 0
    image_root: Path | None = None


@dataclass(frozen=True)
class Unit:
    """Cases that are edited together.

    Attributes:
        cases: In the order in which they are edited.
        sequence: Its number, or None for a batch of independent edits.
    """

    cases: tuple[EditCase, ...]
    sequence: int | None = None

    @property
    def names(self) -> list[str]:
        """Under which its results are kept: one name for a sequence, one for each independent edit."""
        return [case.case_id for case in self.cases] if self.sequence is None else [f"sequence-{self.sequence:05d}"]


def read_tasks(spec: RunSpec, data: Path | None = None) -> list[Task]:
    """The cases of the data set, of all its tasks for cross-task editing.

    Args:
        spec: What is measured.
        data: Folder of the data set's files; None for where they are by default.

    Raises:
        UnikeError: There is no such data set, its files are missing or bad, or the setting needs others.
    """
    found = []
    for name in all_tasks(spec.dataset) if spec.setting == "cross-task" else [spec.dataset]:
        dataset = open_dataset(name, data)
        cases = dataset.cases(spec.split, skip_bad=spec.skip_bad)
        found.append(Task(name, spec.split, cases, dataset.skipped, dataset.image_root))
    check_tasks(found, spec)
    return found


def room(backbone: Backbone, cases: Sequence[EditCase]) -> int:
    """How many tokens an answer may have: enough for every edit of a data set."""
    return backbone.room([case.edit.target or "" for case in cases])


def check_tasks(tasks: Sequence[Task], spec: RunSpec) -> None:
    """Refuse data that the setting cannot use.

    Raises:
        UnikeError: With what it takes.
    """
    if (spec.setting == "cross-task") != (len(tasks) > 1):
        raise UnikeError("cross-task editing takes the cases of two tasks, every other setting those of one")
    if spec.k % len(tasks):
        raise UnikeError(f"k is {spec.k}, which {len(tasks)} tasks cannot share evenly; choose an even one")


def check_method(editor: Editor[Any] | type[Editor[Any]], spec: RunSpec) -> None:
    """Refuse a setting that is not defined for a method.

    Raises:
        UnikeError: With one that is.
    """
    if spec.setting != "one-step" and not editor.sequential:
        raise UnikeError(
            f"{editor.name!r} holds one edit at a time, so {spec.setting} editing is not defined for it (n/a); "
            "choose the setting one-step"
        )


def check_leaks(backbone: Backbone, editor: Editor[Any], tasks: Sequence[Task], progress: Progress = silent) -> None:
    """Refuse a method that learned from what it would be evaluated on: a picture, one like it, or a telling question.

    Raises:
        UnikeError: With how much is shared, and the first of it.
    """
    if not (learned := editor.learned_from(backbone)):
        return
    asked = [query for task in tasks for case in task.cases for _, query in questions(case)]
    # A picture that cannot be read is no leak; `choose` names the case that it belongs to.
    guard = LeakGuard(asked, asked, partial(progress, "reading pictures"), traces=learned, skip_bad=True)
    leaks = [(trace.prompt, leak) for trace in learned if (leak := guard.leak(trace)) is not None]
    if leaks:
        prompt, leak = leaks[0]
        raise UnikeError(
            f"{editor.name!r} learned from what is to be evaluated: {len(leaks)} of its {len(learned)} sources are in "
            f"{' and '.join(task.dataset for task in tasks)}, the first is {prompt!r} ({leak}); let "
            "it learn from other data"
        )


def choose(
    backbone: Backbone,
    editor: Editor[Any],
    tasks: Sequence[Task],
    spec: RunSpec,
    answers: Answers,
    *,
    progress: Progress = silent,
    team: Team = ALONE,
) -> tuple[list[list[EditCase]], Counts]:
    """The cases to edit, in the order of the seed, and how many were left out why.

    Returns:
        For each task, cases that can be edited and that the model gets wrong, at most ``spec.limit`` in all; and what
        became of the others.
    """
    read, skipped, right = 0, sum(task.skipped for task in tasks), 0
    total = sum(len(task.cases) for task in tasks)
    chosen: list[list[EditCase]] = []
    for task in tasks:
        limit = len(task.cases) if spec.limit is None else spec.limit // len(tasks)
        order = list(task.cases)
        random.Random(spec.seed).shuffle(order)
        found: list[EditCase] = []
        while order and len(found) < limit:
            progress("asking what is to be edited", read, total)
            count = min(STEP, limit - len(found))
            part, order = order[:count], order[count:]
            good = [case for case in part if _is_good(backbone, editor, case, skip_bad=spec.skip_bad)]
            answers.ask([case.edit for case in good], team=team)
            wrong = [case for case in good if not case.edit.accepts(answers[case.edit])]
            read += len(part)
            skipped += len(part) - len(good)
            right += len(good) - len(wrong)
            found += wrong
        chosen.append(found)
    progress("asking what is to be edited", total, total)
    return chosen, Counts(read, skipped, right)


def arrange(chosen: Sequence[Sequence[EditCase]], spec: RunSpec) -> list[Unit]:
    """Cut cases into what is edited together: batches, or sequences that tile the cases; a rest is left out.

    Args:
        chosen: For each task, its cases in the order of the seed.
        spec: What is measured.

    Raises:
        UnikeError: There are too few cases.
    """
    if spec.setting == "one-step":
        (cases,) = chosen
        units = [Unit(tuple(cases[start : start + spec.batch])) for start in range(0, len(cases), spec.batch)]
    else:
        share = spec.k // len(chosen)
        units = []
        for number in range(min(len(cases) for cases in chosen) // share):
            mixed = [case for cases in chosen for case in cases[number * share : (number + 1) * share]]
            random.Random(f"{spec.seed}-{number}").shuffle(mixed)
            units.append(Unit(tuple(mixed), number))
    if not units:
        found = " and ".join(str(len(cases)) for cases in chosen)
        raise UnikeError(f"too few cases to edit: {found} that the model gets wrong, {spec.k} are needed")
    return units


def _is_good(backbone: Backbone, editor: Editor[Any], case: EditCase, *, skip_bad: bool) -> bool:
    try:
        editor.check(backbone, case.edit)
        asked = [query for _, query in questions(case)]
        for kind, query in questions(case):
            backbone.check(query)
            if probe_kinds()[kind].expects == "target" and query.target:
                backbone.check_answer(query.target)
        for path in {query.image for query in asked if query.image is not None}:
            backbone.check_image(path)
    except UnikeError as error:
        if skip_bad:
            return False
        raise UnikeError(f"case {case.case_id}: {error} (--on-error skip leaves such cases out)") from None
    return True


def cases_hash(tasks: Sequence[Task]) -> str:
    """A short hash of the cases: their ids, texts, and pictures' names."""
    digest = hashlib.sha256()
    for task in tasks:
        for case in task.cases:
            for kind, query in questions(case):
                image = image_name(query.image, task.image_root)
                told = [case.case_id, kind, query.prompt, query.target, image, *query.also]
                digest.update(json.dumps(told).encode())
    return digest.hexdigest()[:16]
