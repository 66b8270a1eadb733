"""How each kind of step is done, by the functions that its command calls; and what there is of it already."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unike import api
from unike.backbones.adapter import Backbone
from unike.bench.results import read_header, read_run
from unike.bench.runner import evaluate
from unike.bench.selection import Task, read_tasks
from unike.bench.spec import RunSpec
from unike.bench.workers import load_model, run_local
from unike.core import registry
from unike.core.progress import Progress, silent
from unike.data.learning import read_cases, split_cases
from unike.editors.trained import loop
from unike.editors.trained.artifact import SAVED as NETWORK
from unike.editors.trained.artifact import read_log
from unike.editors.trained.config import TrainConfig, split_settings, trainable
from unike.editors.unike.knowledge import SAVED as KNOWLEDGE
from unike.editors.unike.prepare import pipeline
from unike.editors.unike.prepare.config import PrepareConfig
from unike.reproduce.plan import Bench, Prepare, Report, Step, Study, Train
from unike.reproduce.request import Reproduction
from unike.reproduce.table import write
from unike.studies.base import VariantStudy, study_named
from unike.studies.lab import Lab
from unike.studies.request import Request
from unike.studies.writing import conduct

STUDY = "ablation"


class Workshop:
    """Does steps; the model is loaded when it is first needed, and the data read once.

    Args:
        wanted: What is reproduced.
        progress: Told how far the step is.

    Attributes:
        load_seconds: What loading the model took; 0 before.
    """

    def __init__(self, wanted: Reproduction, progress: Progress = silent) -> None:
        self.wanted = wanted
        self.progress = progress
        self.load_seconds = 0.0
        self._tasks: dict[str, list[Task]] = {}
        self._learning: dict[tuple[str, bool], Any] = {}

    @cached_property
    def backbone(self) -> Backbone:
        """The model."""
        start = time.perf_counter()
        backbone = load_model(self.wanted.spec, self.progress)
        self.load_seconds = time.perf_counter() - start
        return backbone

    # ------------------------------------------------------------------ doing

    def do(self, step: Step) -> None:
        """Do a step, or what is left of it.

        Raises:
            UnikeError: As the command it stands for.
        """
        ways: dict[type[Step], Callable[[Any], None]] = {
            Prepare: self.prepare,
            Train: self.train,
            Bench: self.bench,
            Study: self.study,
            Report: self.report,
        }
        ways[type(step)](step)

    def prepare(self, step: Prepare) -> None:
        """As ``unike prepare``."""
        cases, scope, against, tags = self.learning(step.task)
        config = PrepareConfig.parse({"limit": self.wanted.triplets})
        more: dict[str, Any] = {"against": against, "scope": scope, "tags": tags}
        pipeline.prepare(self.backbone, cases, step.folder, config, **more, progress=self.progress)

    def train(self, step: Train) -> None:
        """As ``unike train``."""
        method = trainable(registry.editors.get(step.editor)())
        network, config = split_settings(method, step.settings)
        cases, validation, against = self.splits(step.task)
        more: dict[str, Any] = {"network_settings": network, "config": config, "against": against}
        loop.train(self.backbone, method, cases, validation, step.folder, **more, progress=self.progress)

    def bench(self, step: Bench) -> None:
        """As ``unike bench``."""
        spec, data, workers = step.spec, self.wanted.data, self.wanted.workers
        if workers > 1:
            run_local(spec, step.folder, data, workers, self.progress)
            return
        editor = api.make_editor(spec.editor, **spec.settings)
        evaluate(self.backbone, editor, self.tasks(spec), step.folder, spec, progress=self.progress)

    def study(self, step: Study) -> None:
        """As ``unike study``."""
        lab = self.lab(step)
        if self.wanted.workers == 1:
            lab.backbone = self.backbone
        conduct(study_named(STUDY), lab)

    def report(self, step: Report) -> None:
        """As ``unike report``, with the paper's figures."""
        write(step, self.wanted, progress=self.progress)

    def lab(self, step: Study) -> Lab:
        """Where a study is conducted."""
        request = Request(spec=step.spec, data=self.wanted.data, workers=self.wanted.workers)
        lab = Lab(request, step.folder, self.progress)
        lab.tasks = self.tasks(step.spec)
        return lab

    # ------------------------------------------------------------------ data

    def tasks(self, spec: RunSpec) -> list[Task]:
        """What a run edits."""
        cross = spec.setting == "cross-task"
        key = f"{spec.dataset} {cross}"
        if key not in self._tasks:
            self._tasks[key] = read_tasks(spec if cross else replace(spec, setting="one-step", k=1), self.wanted.data)
        return self._tasks[key]

    def learning(self, task: str) -> Any:
        """What knowledge of a task is made from, as `read_cases` has it."""
        return self._read(task, False, lambda: read_cases(self.wanted.family, "train", task, self.wanted.data))

    def splits(self, task: str) -> Any:
        """What a network is trained on for a task, as `split_cases` has it."""
        return self._read(task, True, lambda: split_cases(self.wanted.family, task, self.wanted.data))

    def _read(self, task: str, split: bool, read: Callable[[], Any]) -> Any:
        if (task, split) not in self._learning:
            self._learning[task, split] = read()
        return self._learning[task, split]

    def check(self, step: Step) -> None:
        """Refuse what can be known to be wrong before a model is loaded.

        Raises:
            UnikeError: The data, a folder or a setting.
        """
        if isinstance(step, Prepare):
            pipeline.check_place(step.folder)
            self.learning(step.task)
        elif isinstance(step, Train):
            loop.check_place(step.folder)
            split_settings(trainable(registry.editors.get(step.editor)()), step.settings)
            self.splits(step.task)
        elif isinstance(step, Bench):
            registry.editors.get(step.spec.editor).config_class.parse(dict(step.spec.settings))
            self.tasks(step.spec)
        elif isinstance(step, Study):
            study_named(STUDY).check(self.lab(step))

    # ------------------------------------------------------------------ what there is

    def amount(self, step: Step) -> tuple[int, int]:
        """How much of a step there is, at most, and how much of that is done: edits, training steps or cases.

        Raises:
            UnikeError: The data cannot be read, or what is there is damaged.
        """
        if isinstance(step, Prepare):
            count = len(self.learning(step.task)[0])
            count = min(count, self.wanted.triplets or count)
            return count, count * self.is_there(step)
        if isinstance(step, Train):
            count = self.wanted.steps if self.wanted.steps is not None else TrainConfig().steps
            return count, self.trained_steps(step) if self.is_there(step) else 0
        if isinstance(step, Bench):
            if read_header(step.folder) is not None:
                run = read_run(step.folder)
                return run.header.counts.edited, run.cases_done
            return self.edits(step.spec), 0
        if isinstance(step, Study):
            study = study_named(STUDY)
            assert isinstance(study, VariantStudy)
            lab = self.lab(step)
            variants = study.variants(lab.request)
            places = [lab.place(variant, lab.spec(variant)) for variant in variants]
            done = [read_run(place).cases_done for place in places if read_header(place) is not None]
            return len(variants) * self.edits(step.spec), sum(done)
        return 1, 0

    def edits(self, spec: RunSpec) -> int:
        """How many edits a run makes at most; which cases the model gets right by itself is not known before."""
        tasks = self.tasks(spec)
        count = len(tasks) * min(len(task.cases) for task in tasks)  # as many of each
        count = count if spec.limit is None else min(count, spec.limit)
        return count - count % spec.k  # a rest that makes no sequence is left out

    def trained_steps(self, step: Train) -> int:
        """Steps to the last validation of a network that is there."""
        return int(read_log(step.folder)[-1]["step"])

    def fixed_seconds(self, step: Step, seconds: float) -> float:
        """Of what a step took, what it would have taken for any amount: in training, all but the training steps."""
        if not isinstance(step, Train):
            return 0.0
        log = read_log(step.folder)
        return max(0.0, seconds - (log[-1]["seconds"] - log[0]["seconds"]))

    def is_there(self, step: Step) -> bool:
        """Whether a step has left all that it leaves.

        Raises:
            UnikeError: What is there is damaged.
        """
        if isinstance(step, Prepare):
            return KNOWLEDGE.lies_in(step.folder)
        if isinstance(step, Train):
            return NETWORK.lies_in(step.folder)
        if isinstance(step, Bench):
            return read_header(step.folder) is not None and read_run(step.folder).finished
        if isinstance(step, Study):
            return (step.folder / f"{STUDY}.md").is_file()
        return False  # a report is made anew each time


def bytes_below(place: Path) -> int:
    """Of all files in a folder, or of a file."""
    if place.is_file():
        return place.stat().st_size
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
