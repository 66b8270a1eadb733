"""The benchmark: edit the cases of a data set, one by one or in sequences, and ask what became of the model.

1. The unedited model answers every edit's question; cases it gets right are left out, as MMEdit does, and counted.
2. It answers every probe of the others. Answers are kept on disk (`unike.answers`), so the next editor finds them.
3. Edits are made, attached and tested (`unike.probing`); each finished unit is appended to the results at once, and a
   run that was killed goes on with the units that are missing (`unike.results`).

A *unit* is what is edited together and independently of all else: a batch of independent edits in one-step editing, a
sequence otherwise. Units are fixed by the seed before the first edit, whatever has been done already, so an interrupted
run ends with the numbers of an uninterrupted one.
"""

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import unike._version
from unike.answers import Answers
from unike.backbones.base import Backbone
from unike.editors.base import Edit, Editor
from unike.errors import UnikeError
from unike.images import load_image
from unike.metrics import PROTOCOLS, exact_match
from unike.probing import ENGINES, Examiner, questions
from unike.results import ResultsFile, Run, check_place, read_run
from unike.types import CaseResult, EditCase

SETTINGS = ("one-step", "sequential", "cross-task")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        setting: One of `SETTINGS`.
        k: Length of a sequence; 1 in one-step editing.
        seed: Of the order of cases.
        limit: Edit at most so many cases; None for all.
        batch: Independent edits that are made in one pass.
        protocols: Of `unike.metrics.PROTOCOLS`.
        max_new_tokens: The longest answer; None for the power of two, 16 or more, that holds every target.
        engine: One of `unike.probing.ENGINES`; both give the same results.

    Raises:
        UnikeError: A setting that does not exist or makes no sense.
    """

    setting: str = "one-step"
    k: int = 1
    seed: int = 0
    limit: int | None = None
    batch: int = 16
    protocols: tuple[str, ...] = ("strict", "teacher_forced")
    max_new_tokens: int | None = None
    engine: str = "fast"

    def __post_init__(self) -> None:
        for name, value, known in [("setting", self.setting, SETTINGS), ("engine", self.engine, ENGINES)]:
            if value not in known:
                raise UnikeError(f"unknown {name} {value!r} (known: {', '.join(known)})")
        for protocol in self.protocols:
            if protocol not in PROTOCOLS:
                raise UnikeError(f"unknown protocol {protocol!r} (known: {', '.join(PROTOCOLS)})")
        for name, number in [
            ("k", self.k),
            ("batch", self.batch),
            ("limit", self.limit),
            ("max_new_tokens", self.max_new_tokens),
        ]:
            if number is not None and number < 1:
                raise UnikeError(f"{name} is {number}; it must be at least 1")


@dataclass(frozen=True)
class Source:
    """Where cases come from.

    Attributes:
        dataset: Name of the data set, for the header.
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


def evaluate(
    backbone: Backbone,
    editor: Editor[Any],
    source: Source,
    out: Path,
    plan: Plan | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Run a benchmark, or go on with one that was interrupted.

    Args:
        backbone: The model, with no edit on it.
        editor: The method.
        source: What is edited.
        out: Folder of the results.
        plan: What is measured; one-step editing of everything if None.
        skip_bad: Leave cases out that cannot be edited (a broken picture, a target that is too long), and count them.
        progress: Told how far it is.

    Returns:
        The run, as `read_run` reads it.

    Raises:
        UnikeError: Bad input, known before the first edit; or ``out`` holds another run.
    """
    plan = plan or Plan()
    report = progress or (lambda what, done, total: None)
    check_place(out)
    answers = Answers(backbone, plan.max_new_tokens or room(backbone, source.cases))
    chosen, counts = choose(backbone, editor, source, plan, answers, skip_bad=skip_bad, progress=report)
    file = ResultsFile(out, header(backbone, editor, source, plan, counts, answers.max_new_tokens))
    done = read_run(out).units
    examiner = Examiner(
        backbone,
        editor,
        answers,
        protocols=plan.protocols,
        engine=plan.engine,
        image_root=source.image_root,
    )
    batches = [chosen[start : start + plan.batch] for start in range(0, len(chosen), plan.batch)]
    left = [case for case in chosen if case.case_id not in done]
    answers.ask(
        [query for case in left for _, query in questions(case)],
        lambda number, total: report("asking the probes, before", number, total),
    )
    try:
        editor.prepare(backbone)
        finished = len(chosen) - len(left)
        for batch in batches:
            for result in one_step(backbone, editor, examiner, batch, done):
                file.append(result.case_id, [result])
                finished += 1
                report("editing", finished, len(chosen))
    finally:
        file.close()
    return read_run(out)


# ---------------------------------------------------------------------- which cases


def room(backbone: Backbone, cases: Sequence[EditCase]) -> int:
    """How many tokens an answer may have: the power of two, 16 or more, that holds every edit's target and its end.

    One number for the whole data set: the length of a target must not tell when its answer is over.
    """
    targets = [" " + (case.edit.target or "") for case in cases]
    longest = max((len(ids) for ids in backbone.tokenizer(targets, add_special_tokens=False)["input_ids"]), default=0)
    return max(16, 1 << longest.bit_length())


def choose(
    backbone: Backbone,
    editor: Editor[Any],
    source: Source,
    plan: Plan,
    answers: Answers,
    *,
    skip_bad: bool,
    progress: Progress,
) -> tuple[list[EditCase], dict[str, int]]:
    """The cases to edit, in the order of the seed, and how many were left out why.

    Returns:
        Cases that can be edited and that the model gets wrong, at most ``plan.limit``; and ``counts``: ``read`` cases
        looked at, ``skipped`` records and cases that are bad, ``right`` before the edit, ``edited``.
    """
    order = list(source.cases)
    random.Random(plan.seed).shuffle(order)
    limit = len(order) if plan.limit is None else plan.limit
    chosen: list[EditCase] = []
    counts = {"read": 0, "skipped": source.skipped, "right": 0, "edited": 0}
    step = 64 if plan.limit is None else max(16, plan.limit)
    for start in range(0, len(order), step):
        if len(chosen) >= limit:
            break
        part = order[start : start + step]
        progress("asking what is to be edited", start, len(order))
        good = [case for case in part if _is_good(backbone, editor, case, skip_bad=skip_bad)]
        answers.ask([case.edit for case in good])
        for case in part:
            if len(chosen) >= limit:
                break
            counts["read"] += 1
            if case not in good:
                counts["skipped"] += 1
            elif exact_match(answers[case.edit], case.edit.target or ""):
                counts["right"] += 1
            else:
                chosen.append(case)
    progress("asking what is to be edited", len(order), len(order))
    counts["edited"] = len(chosen)
    if not chosen:
        raise UnikeError(f"there is nothing to edit: of {counts['read']} cases the model gets {counts['right']} right")
    return chosen, counts


def _is_good(backbone: Backbone, editor: Editor[Any], case: EditCase, *, skip_bad: bool) -> bool:
    try:
        editor.check(backbone, case.edit)
        for path in {query.image for _, query in questions(case) if query.image is not None}:
            load_image(path)
    except UnikeError as error:
        if skip_bad:
            return False
        raise UnikeError(f"case {case.case_id}: {error} (--on-error skip leaves such cases out)") from None
    return True


# ---------------------------------------------------------------------- settings


def one_step(
    backbone: Backbone,
    editor: Editor[Any],
    examiner: Examiner,
    batch: Sequence[EditCase],
    done: Mapping[str, Any],
) -> Iterator[CaseResult]:
    """Independent edits of a batch, made in one pass, each asked its own questions.

    The whole batch is edited again even if only one of its cases is missing: edits made in a smaller batch differ by
    rounding.
    """
    missing = [row for row, case in enumerate(batch) if case.case_id not in done]
    if not missing:
        return
    edits, seconds = timed_edit(backbone, editor, batch)
    readings = [examiner.read(batch[row]) for row in missing]
    for reading, asked in zip(readings, examiner.examine(readings, edits.rows(missing)), strict=True):
        yield CaseResult(reading.case.case_id, reading.case.domain, asked, seconds)


def timed_edit(backbone: Backbone, editor: Editor[Any], cases: Sequence[EditCase]) -> tuple[Edit, float]:
    """Edits of some cases in one pass, and the seconds each took.

    Raises:
        UnikeError: The editor changed the model itself: every later case would be edited on top of this one.
    """
    before = checksum(backbone)
    start = time.perf_counter()
    edits = editor.edit(backbone, [case.edit for case in cases])
    seconds = (time.perf_counter() - start) / len(cases)
    if not torch.equal(checksum(backbone), before):
        raise UnikeError(f"the editor {editor.name!r} changed the model's weights; what follows would not be one-step")
    return edits, round(seconds, 4)


def checksum(backbone: Backbone) -> torch.Tensor:
    """A number for each weight that changes with it, ``[n]``."""
    exact = torch.float32 if backbone.device.type == "mps" else torch.float64  # mps has no fp64
    return torch.stack([weight.sum(dtype=exact) for weight in backbone.model.state_dict().values()])


# ---------------------------------------------------------------------- provenance


def header(
    backbone: Backbone, editor: Editor[Any], source: Source, plan: Plan, counts: Mapping[str, int], room: int
) -> dict[str, Any]:
    """Everything the numbers of a run depend on; no path of a machine is in it."""
    return {
        "unike": unike._version.__version__,
        "git": git_state(),
        "model": backbone.source,
        "fingerprint": backbone.fingerprint(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": backbone.device.type,
        "editor": editor.name,
        "config": editor.config.model_dump(mode="json"),
        "dataset": source.dataset,
        "split": source.split,
        "cases": cases_hash(source),
        **asdict(plan),
        "max_new_tokens": room,
        "counts": dict(counts),
        "threads": torch.get_num_threads(),
    }


def cases_hash(source: Source) -> str:
    """A short hash of the cases: their ids, texts, and pictures' names."""
    digest = hashlib.sha256()
    for case in source.cases:
        for kind, query in questions(case):
            image = query.image
            if image is not None and source.image_root is not None and image.is_relative_to(source.image_root):
                image = image.relative_to(source.image_root)
            name = None if image is None else image.as_posix()
            digest.update(json.dumps([case.case_id, kind, query.prompt, query.target, name]).encode())
    return digest.hexdigest()[:16]


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this code lies in, and whether anything in it was changed; None outside of one."""
    commands = [
        ["ls-files", "--error-unmatch", Path(__file__).name],
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "--untracked-files=no"],
    ]
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = [
            subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for command in commands
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found[1], "dirty": bool(found[2])}
