"""The benchmark: edit the cases of a data set, one by one or in sequences, and ask what became of the model.

1. The unedited model answers every edit's question; cases it gets right are left out, as MMEdit does, and counted.
2. It answers every probe of the others. Answers are kept on disk (`unike.backbones.answers`): the next editor finds
   them.
3. Edits are made, attached and tested (`unike.bench.replay`); each finished unit is appended to the results at once,
   and a run that was killed goes on with the units that are missing (`unike.bench.results`).

A *unit* is what is edited together and independently of all else: a batch of independent edits in one-step editing, a
sequence otherwise. Units are fixed by the seed before the first edit, whatever has been done already, so an interrupted
run ends with the numbers of an uninterrupted one.
"""

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device

from unike.backbones.adapter import Backbone
from unike.backbones.answers import ALONE, Answers, Team
from unike.bench.metrics import PROTOCOLS
from unike.bench.outcome import CaseResult
from unike.bench.replay import ENGINES, TOGETHER, Examiner, Reading, image_name, questions
from unike.bench.results import ResultsFile, Run, check_same_run, read_run
from unike.core.errors import UnikeError
from unike.core.images import load_image
from unike.core.progress import Progress, silent
from unike.core.registry import did_you_mean
from unike.core.version import __version__
from unike.data.leaks import LeakGuard
from unike.data.matching import exact_match
from unike.data.queries import EditCase
from unike.editors.base import Editor
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel

SETTINGS = ("one-step", "sequential", "cross-task")

STEP = 64
"""Cases that are looked at together, to find those that the model gets wrong."""

KEPT_BYTES = 2**30
"""Split states of a sequence are kept up to this, to be asked again at its end."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        setting: One of `SETTINGS`.
        k: Edits in a sequence; 1 in one-step editing.
        seed: Of the order of cases, and of what is drawn.
        limit: Edit at most so many cases; None for all.
        batch: Independent edits that are made in one pass.
        evaluate_at: Ask everything edited so far after so many edits of a sequence, and after the last; if empty, each
            edit's own questions right after it, and all after the last.
        sample: Ask only so many of the cases edited so far; None for all.
        protocols: Of `unike.bench.metrics.PROTOCOLS`.
        max_new_tokens: The longest answer; None for the power of two, 16 or more, that holds every target.
        engine: One of `unike.bench.replay.ENGINES`; both give the same results.

    Raises:
        UnikeError: A setting that does not exist or makes no sense.
    """

    setting: str = "one-step"
    k: int = 1
    seed: int = 0
    limit: int | None = None
    batch: int = 16
    evaluate_at: tuple[int, ...] = ()
    sample: int | None = None
    protocols: tuple[str, ...] = ("strict", "teacher_forced")
    max_new_tokens: int | None = None
    engine: str = "fast"

    def __post_init__(self) -> None:
        check_names("setting", [self.setting], SETTINGS)
        check_names("engine", [self.engine], ENGINES)
        check_names("protocol", self.protocols, PROTOCOLS)
        numbers = {name: getattr(self, name) for name in ("k", "limit", "batch", "sample", "max_new_tokens")}
        for name, number in [*numbers.items(), *(("evaluate-at", number) for number in self.evaluate_at)]:
            if number is not None and number < 1:
                raise UnikeError(f"{name.replace('_', '-')} is {number}; it must be at least 1")
        if self.seed < 0:
            raise UnikeError(f"seed is {self.seed}; it must be at least 0")
        if self.setting == "one-step" and (self.k, self.evaluate_at, self.sample) != (1, (), None):
            raise UnikeError("k, evaluate-at and sample are for sequences; choose the setting sequential")
        if self.setting != "one-step" and self.limit is not None and self.limit < self.k:
            raise UnikeError(f"limit is {self.limit}, which is less than one sequence of {self.k} edits")
        if any(number > self.k for number in self.evaluate_at):
            raise UnikeError(f"evaluate-at {max(self.evaluate_at)} is after the end of a sequence of {self.k} edits")


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that is not among those that are known, or none at all."""
    for name in names or [""]:
        if name not in known:
            raise UnikeError(did_you_mean(kind, name, list(known)))


@dataclass(frozen=True)
class Source:
    """Where cases come from.

    Attributes:
        dataset: Name of the data set.
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


def evaluate(
    backbone: Backbone,
    editor: Editor[Any],
    sources: Source | Sequence[Source],
    out: Path,
    plan: Plan | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
    team: Team = ALONE,
) -> Run:
    """Run a benchmark, or go on with one that was interrupted.

    Args:
        backbone: The model, with no edit on it.
        editor: The method.
        sources: What is edited; several for the cross-task setting, which takes the same number of edits from each.
        out: Folder of the results.
        plan: What is measured; one-step editing of everything if None.
        skip_bad: Leave cases out that cannot be edited (a broken picture, a target that is too long), and count them.
        progress: Told how far it is, or its own part of it.
        team: Processes that all call this with the same arguments; units are divided among them, and their results are
            those of one process. ``out`` must be the same folder for all.

    Returns:
        The run, as `read_run` reads it.

    Raises:
        UnikeError: Bad input, known before the first edit; or ``out`` holds another run.
    """
    plan = plan or Plan()
    sources = [sources] if isinstance(sources, Source) else list(sources)
    check_sources(sources, plan)
    check_method(editor, plan)
    check_leaks(backbone, editor, sources, progress if team.rank == 0 else silent)
    everything = [case for source in sources for case in source.cases]
    answers = Answers(backbone, plan.max_new_tokens or room(backbone, everything))
    described = describe(backbone, editor, sources, plan, answers.max_new_tokens, skip_bad=skip_bad)
    check_same_run(out, described)
    editor.split(backbone)  # what the method needs and has not is told before anything is asked
    chosen, counts = choose(
        backbone,
        editor,
        sources,
        plan,
        answers,
        skip_bad=skip_bad,
        progress=progress if team.rank == 0 else silent,
        team=team,
    )
    units = arrange(chosen, plan)
    counts["edited"] = sum(len(unit.cases) for unit in units)

    with ResultsFile(out, described | {"counts": counts}, part=None if team.size == 1 else team.rank) as file:
        done = read_run(out).units.keys()
        left = [unit for unit in units if not done >= set(unit.names)]
        answers.ask(
            [query for unit in left for case in unit.cases for _, query in questions(case)],
            lambda number, total: progress("asking all questions, before", number, total),
            team=team,
        )
        examiner = Examiner(
            backbone, editor, answers, protocols=plan.protocols, engine=plan.engine, image_root=sources[0].image_root
        )
        bench = Bench(backbone, editor, examiner, plan)
        editor.prepare(backbone)
        mine, finished = left[team.rank :: team.size], 0
        total = sum(len(unit.cases) for unit in mine)
        for unit in mine:
            progress("editing", finished, total)
            for name, results in bench.run(unit, done):
                file.append(name, results)
            finished += len(unit.cases)
        progress("editing", finished, total)
    team.wait()
    return read_run(out)


# ---------------------------------------------------------------------- which cases


def room(backbone: Backbone, cases: Sequence[EditCase]) -> int:
    """How many tokens an answer may have: enough for every edit of a data set."""
    return backbone.room([case.edit.target or "" for case in cases])


def check_sources(sources: Sequence[Source], plan: Plan) -> None:
    """Refuse data that the setting cannot use.

    Raises:
        UnikeError: With what it takes.
    """
    if (plan.setting == "cross-task") != (len(sources) > 1):
        raise UnikeError("cross-task editing takes the cases of two tasks, every other setting those of one")
    if plan.k % len(sources):
        raise UnikeError(f"k is {plan.k}, which {len(sources)} tasks cannot share evenly; choose an even one")


def check_method(editor: Editor[Any] | type[Editor[Any]], plan: Plan) -> None:
    """Refuse a setting that is not defined for a method.

    Raises:
        UnikeError: With one that is.
    """
    if plan.setting != "one-step" and not editor.sequential:
        raise UnikeError(
            f"{editor.name!r} holds one edit at a time, so {plan.setting} editing is not defined for it (n/a); "
            "choose the setting one-step"
        )


def check_leaks(
    backbone: Backbone, editor: Editor[Any], sources: Sequence[Source], progress: Progress = silent
) -> None:
    """Refuse a method that learned from what it would be evaluated on: a picture, one like it, or a telling question.

    Raises:
        UnikeError: With how much is shared, and the first of it.
    """
    if not (learned := editor.sources(backbone)):
        return
    asked = [query for source in sources for case in source.cases for _, query in questions(case)]
    # A picture that cannot be read is no leak; `choose` names the case that it belongs to.
    guard = LeakGuard(asked, asked, partial(progress, "reading pictures"), traces=learned, skip_bad=True)
    leaks = [(trace.prompt, leak) for trace in learned if (leak := guard.leak(trace)) is not None]
    if leaks:
        prompt, leak = leaks[0]
        raise UnikeError(
            f"{editor.name!r} learned from what is to be evaluated: {len(leaks)} of its {len(learned)} sources are in "
            f"{' and '.join(source.dataset for source in sources)}, the first is {prompt!r} ({leak}); let "
            "it learn from other data"
        )


def choose(
    backbone: Backbone,
    editor: Editor[Any],
    sources: Sequence[Source],
    plan: Plan,
    answers: Answers,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
    team: Team = ALONE,
) -> tuple[list[list[EditCase]], dict[str, int]]:
    """The cases to edit, in the order of the seed, and how many were left out why.

    Returns:
        For each source, cases that can be edited and that the model gets wrong, at most ``plan.limit`` in all; and
        ``counts``: ``read`` cases were looked at, ``skipped`` are bad (records without a case included), the model gets
        ``right`` by itself.
    """
    counts = {"read": 0, "skipped": sum(source.skipped for source in sources), "right": 0}
    total = sum(len(source.cases) for source in sources)
    chosen: list[list[EditCase]] = []
    for source in sources:
        limit = len(source.cases) if plan.limit is None else plan.limit // len(sources)
        order = list(source.cases)
        random.Random(plan.seed).shuffle(order)
        found: list[EditCase] = []
        while order and len(found) < limit:
            progress("asking what is to be edited", counts["read"], total)
            count = min(STEP, limit - len(found))
            part, order = order[:count], order[count:]
            good = [case for case in part if _is_good(backbone, editor, case, skip_bad=skip_bad)]
            answers.ask([case.edit for case in good], team=team)
            wrong = [case for case in good if not exact_match(answers[case.edit], case.edit.target or "")]
            counts["read"] += len(part)
            counts["skipped"] += len(part) - len(good)
            counts["right"] += len(good) - len(wrong)
            found += wrong
        chosen.append(found)
    progress("asking what is to be edited", total, total)
    return chosen, counts


def arrange(chosen: Sequence[Sequence[EditCase]], plan: Plan) -> list[Unit]:
    """Cut cases into what is edited together: batches, or sequences that tile the cases; a rest is left out.

    Args:
        chosen: For each task, its cases in the order of the seed.
        plan: What is measured.

    Raises:
        UnikeError: There are too few cases.
    """
    if plan.setting == "one-step":
        (cases,) = chosen
        units = [Unit(tuple(cases[start : start + plan.batch])) for start in range(0, len(cases), plan.batch)]
    else:
        share = plan.k // len(chosen)
        units = []
        for number in range(min(len(cases) for cases in chosen) // share):
            mixed = [case for cases in chosen for case in cases[number * share : (number + 1) * share]]
            random.Random(f"{plan.seed}-{number}").shuffle(mixed)
            units.append(Unit(tuple(mixed), number))
    if not units:
        found = " and ".join(str(len(cases)) for cases in chosen)
        raise UnikeError(f"too few cases to edit: {found} that the model gets wrong, {plan.k} are needed")
    return units


def _is_good(backbone: Backbone, editor: Editor[Any], case: EditCase, *, skip_bad: bool) -> bool:
    try:
        editor.check(backbone, case.edit)
        asked = [query for _, query in questions(case)]
        for query in asked:
            backbone.check(query)
        for path in {query.image for query in asked if query.image is not None}:
            load_image(path)
    except UnikeError as error:
        if skip_bad:
            return False
        raise UnikeError(f"case {case.case_id}: {error} (--on-error skip leaves such cases out)") from None
    return True


# ---------------------------------------------------------------------- settings


class Bench:
    """Edits units and asks what became of the model.

    Args:
        backbone: With no edit on it.
        editor: The method.
        examiner: Who asks.
        plan: What is measured.
    """

    def __init__(self, backbone: Backbone, editor: Editor[Any], examiner: Examiner, plan: Plan) -> None:
        self.backbone = backbone
        self.editor = editor
        self.examiner = examiner
        self.plan = plan
        self.weights = checksum(backbone)

    def run(self, unit: Unit, done: Container[str]) -> list[tuple[str, list[CaseResult]]]:
        """The results of a unit by name, without those that are there already.

        Raises:
            UnikeError: The editor changed the model itself: all that follows would be edited on top of this.
        """
        found = self.one_step(unit, done) if unit.sequence is None else [(unit.names[0], self.sequence(unit))]
        if not torch.equal(checksum(self.backbone), self.weights):
            raise UnikeError(f"{self.editor.name!r} changed the model's weights; what follows would not be one-step")
        return found

    def one_step(self, unit: Unit, done: Container[str]) -> list[tuple[str, list[CaseResult]]]:
        """Independent edits in one pass, each asked its own questions.

        The whole batch is edited again if one case is missing: made in a smaller batch, edits differ by rounding.
        """
        edits, seconds = self._edit(unit.cases)
        missing = [row for row, case in enumerate(unit.cases) if case.case_id not in done]
        readings = [self.examiner.read(unit.cases[row]) for row in missing]
        found = self.examiner.examine(readings, edits.rows(missing))
        return [
            (reading.case.case_id, [CaseResult(reading.case.case_id, reading.case.domain, asked, seconds)])
            for reading, asked in zip(readings, found, strict=True)
        ]

    def sequence(self, unit: Unit) -> list[CaseResult]:
        """Edits one after another, each made on top of those before it; then all that was edited is asked."""
        edits: list[Edit] = []
        seconds: list[float] = []
        results: list[CaseResult] = []
        readings: dict[int, Reading] = {}

        def ask(positions: Sequence[int], when: str) -> None:
            for start in range(0, len(positions), TOGETHER):
                part = positions[start : start + TOGETHER]
                now = [readings[p] if p in readings else self.examiner.read(unit.cases[p]) for p in part]
                for position, reading, asked in zip(part, now, self.examiner.examine(now, edits), strict=True):
                    case = reading.case
                    results.append(
                        CaseResult(case.case_id, case.domain, asked, seconds[position], unit.sequence, position, when)
                    )
                    if sum(kept.nbytes for kept in readings.values()) < KEPT_BYTES:
                        readings[position] = reading

        for position, case in enumerate(unit.cases):
            edit, took = self._edit([case], edits)
            edits.append(edit)
            seconds.append(took)
            last = len(edits) == len(unit.cases)
            if not self.plan.evaluate_at:
                ask([position], "own")
            if last or len(edits) in self.plan.evaluate_at:
                ask(self._sampled(len(edits), unit), "end" if last else f"at-{len(edits)}")
        return results

    def _sampled(self, count: int, unit: Unit) -> list[int]:
        """Positions of the cases that are asked after ``count`` edits."""
        if self.plan.sample is None or self.plan.sample >= count:
            return list(range(count))
        return sorted(random.Random(f"{self.plan.seed}-{unit.sequence}-{count}").sample(range(count), self.plan.sample))

    def _edit(self, cases: Sequence[EditCase], older: Sequence[Edit] = ()) -> tuple[Edit, float]:
        """Edits of some cases in one pass, on top of older ones, and the seconds each took."""
        model = EditedModel(self.backbone, older if self.examiner.hooked else ())
        start = time.perf_counter()
        edits = self.editor.edit(model, [case.edit for case in cases])
        return edits, round((time.perf_counter() - start) / len(cases), 4)


def checksum(backbone: Backbone) -> torch.Tensor:
    """A number for each weight that changes with it, ``[n]`` on the CPU."""
    exact = torch.float32 if backbone.device.type == "mps" else torch.float64  # mps has no fp64
    sums = []
    for module in backbone.model.modules():
        with align_module_device(module):  # brings back weights that are kept elsewhere between passes
            sums += [weight.sum(dtype=exact).cpu() for weight in module.parameters(recurse=False)]
    return torch.stack(sums)


# ---------------------------------------------------------------------- provenance


def describe(
    backbone: Backbone,
    editor: Editor[Any],
    sources: Sequence[Source],
    plan: Plan,
    max_new_tokens: int,
    *,
    skip_bad: bool,
) -> dict[str, Any]:
    """Everything the numbers of a run depend on, as its header keeps it."""
    return {
        "unike": __version__,
        "git": git_state(),
        "model": backbone.source,
        "fingerprint": backbone.fingerprint(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "quantize": backbone.quantize,
        "device": backbone.device.type,
        "editor": editor.name,
        "config": editor.config.model_dump(mode="json"),
        "learned": editor.learned(backbone),
        "anchors": editor.anchors.fingerprint if editor.anchors and editor.uses_anchors else None,
        "dataset": "+".join(source.dataset for source in sources),
        "split": "+".join(dict.fromkeys(source.split for source in sources)),
        "cases": cases_hash(sources),
        **asdict(plan),
        "max_new_tokens": max_new_tokens,
        "skip_bad": skip_bad,
        "threads": torch.get_num_threads(),
    }


def cases_hash(sources: Sequence[Source]) -> str:
    """A short hash of the cases: their ids, texts, and pictures' names."""
    digest = hashlib.sha256()
    for source in sources:
        for case in source.cases:
            for kind, query in questions(case):
                image = image_name(query.image, source.image_root)
                digest.update(json.dumps([case.case_id, kind, query.prompt, query.target, image]).encode())
    return digest.hexdigest()[:16]


def git_state() -> dict[str, Any] | None:
    """The commit this package was last changed by, and whether it was changed since; None outside of a checkout."""
    commands = [
        ["ls-files", "--error-unmatch", Path(__file__).name],
        ["log", "-1", "--format=%H", "--", "."],
        ["status", "--porcelain", "--untracked-files=no", "--", "."],
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
