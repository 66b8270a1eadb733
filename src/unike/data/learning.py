"""What a model or a method may learn from, of a data set, and what nothing may leak from."""

from pathlib import Path

from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.datasets.base import Dataset
from unike.data.queries import EditCase

EVALUATED = ("dev", "eval")
"""Splits that nothing may leak from."""

TAGS = {
    "name": "inaccurate recognition",
    "kind": "inaccurate recognition",
    "country": "inaccurate recognition",
    "capital": "incorrect reasoning",
    "continent": "incorrect reasoning",
    "currency": "incorrect reasoning",
}
"""Kind of a PocketEdit question to what a wrong answer is put down to (Figure 6): naming what is seen, or knowing more.

A caption does both, and no kind tells that the vision tower has missed something: those have no tag.
"""

HELD_OUT_PART = 0.1
"""Of the pictures of a train split, to validate on if a data set has no dev split."""


def read_cases(
    data: str, split: str, task: str | None, data_dir: Path | None
) -> tuple[list[EditCase], list[EditCase] | None, list[EditCase], dict[str, str]]:
    """The cases to learn from, those the gate is made from, those that will be evaluated on, and tags of the first.

    Raises:
        UnikeError: Unknown names, the split that is only for reporting, or files that are missing.
    """
    family: type[Dataset] = registry.datasets.get(data)
    if split == "eval":
        raise UnikeError("the eval split is only for reporting; prepare from train")
    if task is not None and task not in family.tasks:
        raise UnikeError(f"{data} has no task {task!r} (known: {', '.join(family.tasks) or 'none'})")
    dataset = family.open(task, data_dir)
    cases, scope = dataset.cases(split), dataset.scope_cases(split)
    others = [name for name in EVALUATED if name in family.splits and name != split]
    # Nothing may leak in from a task that is not learned from, either.
    against = []
    for each in family.tasks or (None,):
        dataset = family.open(each, data_dir)
        against += [case for other in others if each == task or dataset.has(other) for case in dataset.cases(other)]
    return cases, None if scope == cases else scope, against, pocket_tags() if data == "pocket" else {}


def pocket_tags() -> dict[str, str]:
    """Id of a case of PocketEdit to its tag, if it has one."""
    from unike.data.datasets import pocket

    rows = pocket.read("edits", ["case_id", "kind"])
    return {row["case_id"]: TAGS[row["kind"]] for row in rows if row["kind"] in TAGS}


def split_cases(
    data: str, task: str | None, data_dir: Path | None
) -> tuple[list[EditCase], list[EditCase], list[EditCase]]:
    """The cases to learn from, those to validate on, and those that nothing may leak from.

    Raises:
        UnikeError: Unknown names, or files that are missing.
    """
    cases, _, against, _ = read_cases(data, "train", task, data_dir)
    if "dev" in registry.datasets.get(data).splits:
        validation, _, _, _ = read_cases(data, "dev", task, data_dir)
        return cases, validation, against
    from unike.data.sampling import hold_out  # with torch

    held_out = hold_out([str(case.edit.image) for case in cases], HELD_OUT_PART).tolist()
    learned = [case for case, aside in zip(cases, held_out, strict=True) if not aside]
    return learned, [case for case, aside in zip(cases, held_out, strict=True) if aside], against
