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

import random
import subprocess
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device

from unike.backbones.adapter import Backbone
from unike.backbones.answers import ALONE, Answers, Team
from unike.bench.header import Counts, Git, Header
from unike.bench.lines import ReadCase, told
from unike.bench.outcome import CaseResult
from unike.bench.replay import TOGETHER, Examiner
from unike.bench.results import ResultsFile, RunResults, check_same_run, read_run
from unike.bench.selection import (
    Task,
    Unit,
    arrange,
    cases_hash,
    check_leaks,
    check_method,
    check_tasks,
    choose,
    room,
)
from unike.bench.spec import RunSpec
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.core.version import __version__
from unike.data.provenance import every_query
from unike.data.queries import EditCase
from unike.editors.base import Editor
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel

KEPT_BYTES = 2**30
"""Split states of a sequence are kept up to this, to be asked again at its end."""


def evaluate(
    backbone: Backbone,
    editor: Editor[Any],
    tasks: Task | Sequence[Task],
    out: Path,
    spec: RunSpec | None = None,
    *,
    progress: Progress = silent,
    team: Team = ALONE,
) -> RunResults:
    """Run a benchmark, or go on with one that was interrupted.

    Args:
        backbone: The model, with no edit on it.
        editor: The method.
        tasks: What is edited; several for the cross-task setting, which takes the same number of edits from each.
        out: Folder of the results.
        spec: How it is measured; one-step editing of everything if None. The first three arguments stand for what it
            says of model, method and data.
        progress: Told how far it is, or its own part of it.
        team: Processes that all call this with the same arguments; units are divided among them, and their results are
            those of one process. ``out`` must be the same folder for all.

    Returns:
        The run, as `read_run` reads it.

    Raises:
        UnikeError: Bad input, known before the first edit; or ``out`` holds another run.
    """
    tasks = [tasks] if isinstance(tasks, Task) else list(tasks)
    spec = resolved(spec or RunSpec(), backbone, editor, tasks)
    alone = progress if team.rank == 0 else silent
    check_tasks(tasks, spec)
    check_method(editor, spec)
    check_leaks(backbone, editor, tasks, alone)
    header = describe(backbone, editor, tasks, spec)
    check_same_run(out, {key: value for key, value in header.to_json().items() if key != "counts"})
    editor.lowest_layer(backbone)  # what the method needs and has not is told before anything is asked
    assert spec.max_new_tokens is not None
    answers = Answers(backbone, spec.max_new_tokens)
    chosen, counts = choose(backbone, editor, tasks, spec, answers, progress=alone, team=team)
    units = arrange(chosen, spec)
    header = replace(header, counts=replace(counts, edited=sum(len(unit.cases) for unit in units)))
    with ResultsFile(out, header, part=None if team.size == 1 else team.rank) as file:
        done = read_run(out).units.keys()
        left = [unit for unit in units if not done >= set(unit.names)]
        open_cases = [case for unit in left for case in unit.cases]
        answers.ask(
            [query for case in open_cases for query in (*every_query([case]), *told(case).values())],
            lambda number, total: progress("asking all questions, before", number, total),
            team=team,
        )
        examiner = Examiner(
            backbone, editor, answers, protocols=spec.protocols, engine=spec.engine, image_root=tasks[0].image_root
        )
        editor.progress = progress
        editor.prepare(backbone)
        Bench(backbone, editor, examiner, spec).run_all(left[team.rank :: team.size], done, file, progress)
    team.wait()
    return read_run(out)


class Bench:
    """Edits units and asks what became of the model.

    Args:
        backbone: With no edit on it.
        editor: The method.
        examiner: Who asks.
        spec: What is measured.
    """

    def __init__(self, backbone: Backbone, editor: Editor[Any], examiner: Examiner, spec: RunSpec) -> None:
        self.backbone = backbone
        self.editor = editor
        self.examiner = examiner
        self.spec = spec
        self.weights = checksum(backbone)

    def run_all(self, units: Sequence[Unit], done: Container[str], file: ResultsFile, progress: Progress) -> None:
        """Put the results of units on disk, each as soon as it is finished; as `run`."""
        finished, total = 0, sum(len(unit.cases) for unit in units)
        for unit in units:
            progress("editing", finished, total)
            for name, results in self.run(unit, done):
                file.append(name, results)
            finished += len(unit.cases)
        progress("editing", finished, total)

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
        cases = [unit.cases[row] for row in missing]
        examined = self.examiner.examine([self.examiner.read(case) for case in cases], edits.rows(missing))
        return [
            (case.case_id, [CaseResult(case.case_id, case.domain, asked, seconds)])
            for case, asked in zip(cases, examined, strict=True)
        ]

    def sequence(self, unit: Unit) -> list[CaseResult]:
        """Edits one after another, each made on top of those before it; then all that was edited is asked."""
        edits: list[Edit] = []
        seconds: list[float] = []
        results: list[CaseResult] = []
        kept: dict[int, ReadCase] = {}

        def ask(positions: Sequence[int], when: str) -> None:
            for start in range(0, len(positions), TOGETHER):
                part = positions[start : start + TOGETHER]
                now = [kept[p] if p in kept else self.examiner.read(unit.cases[p]) for p in part]
                for position, read, asked in zip(part, now, self.examiner.examine(now, edits), strict=True):
                    case = read.case
                    results.append(
                        CaseResult(case.case_id, case.domain, asked, seconds[position], unit.sequence, position, when)
                    )
                    if sum(each.nbytes for each in kept.values()) < KEPT_BYTES:
                        kept[position] = read

        for position, case in enumerate(unit.cases):
            edit, took = self._edit([case], edits)
            edits.append(edit)
            seconds.append(took)
            last = len(edits) == len(unit.cases)
            if not self.spec.evaluate_at:
                ask([position], "own")
            if last or len(edits) in self.spec.evaluate_at:
                ask(self._sampled(len(edits), unit), "end" if last else f"at-{len(edits)}")
        return results

    def _sampled(self, count: int, unit: Unit) -> list[int]:
        """Positions of the cases that are asked after ``count`` edits."""
        if self.spec.sample is None or self.spec.sample >= count:
            return list(range(count))
        return sorted(random.Random(f"{self.spec.seed}-{unit.sequence}-{count}").sample(range(count), self.spec.sample))

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


def resolved(spec: RunSpec, backbone: Backbone, editor: Editor[Any], tasks: Sequence[Task]) -> RunSpec:
    """What is measured with nothing left open.

    Raises:
        UnikeError: It makes no sense.
    """
    spec.check()
    everything = [case for task in tasks for case in task.cases]
    return replace(
        spec,
        model=backbone.source,
        editor=editor.name,
        settings=editor.config.fewest(),
        dataset="+".join(task.dataset for task in tasks),
        split="+".join(dict.fromkeys(task.split for task in tasks)),
        max_new_tokens=spec.max_new_tokens or room(backbone, everything),
        device=backbone.device.type,
        dtype=str(backbone.dtype).removeprefix("torch."),
        quantize=backbone.quantize,
        template=backbone.chosen_template,
    )


def describe(backbone: Backbone, editor: Editor[Any], tasks: Sequence[Task], spec: RunSpec) -> Header:
    """Everything the numbers of a run depend on; nothing is counted yet."""
    return Header(
        spec=spec,
        config=editor.config.model_dump(mode="json"),
        fingerprint=backbone.fingerprint(),
        cases=cases_hash(tasks),
        counts=Counts(),
        learned=editor.learned(backbone),
        anchors=editor.anchors.fingerprint if editor.anchors and editor.uses_anchors else None,
        unike=__version__,
        git=git_state(),
        threads=torch.get_num_threads(),
    )


def git_state() -> Git | None:
    """The commit this package was last changed by, and whether it was changed since; None outside of a checkout."""
    commands = [
        ["ls-files", "--error-unmatch", "__init__.py"],
        ["log", "-1", "--format=%H", "--", "."],
        ["status", "--porcelain", "--untracked-files=no", "--", "."],
    ]
    package = Path(__file__).parents[1]  # the whole of it: methods and gate make the numbers too
    git = ["git", "-C", str(package)]
    try:
        found = [
            subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for command in commands
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found[1], "dirty": bool(found[2])}
