"""From a table of the paper to the steps that make it, each with the command that it stands for.

What lies where below ``--out``:

==============================  ================================================================
``prepared/vqa``                knowledge, of ``unike prepare``
``trained/mend-vqa``            a network, of ``unike train``
``table1/unike-vqa``            a run of ``unike bench``; ``table2/unike-vqa-10``, ``table3/unike``
``table4/vqa``                  a study, of ``unike study ablation``
``table1.md``, ``.html``, ...   a table beside the paper's, and the report
``reproduction.jsonl``          which steps are done, and what they took
==============================  ================================================================
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unike.backbones import MINI
from unike.bench.spec import RunSpec
from unike.core.errors import UnikeError
from unike.core.options import as_words, declared, write_setting
from unike.reproduce.methods import METHODS, Method
from unike.reproduce.request import PROTOCOLS, Reproduction

TASKS = ("vqa", "caption")
"""E-VQA and E-IC."""

TITLES = {"vqa": "E-VQA", "caption": "E-IC"}

SEQUENCES = (10, 20)
"""Edits in a sequence of Table 2."""

CROSS_TASK = 10
"""Edits in a sequence of Table 3, half of each task."""

LOADING = ("device", "dtype", "quantize", "template", "trust_remote_code")
"""Fields of a spec that every command takes."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        name: Its place below ``--out``, by which it is known.
        what: For people.
        folder: What it writes; a file, of a report.
        words: The command.
        kind: What is measured alike, from the general to the particular: ``"bench unike one-step"``.
        needs: Names of the steps whose results it reads.
    """

    name: str
    what: str
    folder: Path
    words: tuple[str, ...]
    kind: str
    needs: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """As it is typed."""
        return shlex.join(self.words)


@dataclass(frozen=True, kw_only=True)
class Prepare(Step):
    """``unike prepare`` for a task."""

    task: str


@dataclass(frozen=True, kw_only=True)
class Train(Step):
    """``unike train`` for a method and a task; ``settings`` are those of ``--set`` and ``--steps``."""

    editor: str
    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bench(Step):
    """``unike bench`` of a row in a column of a table."""

    method: str
    spec: RunSpec


@dataclass(frozen=True, kw_only=True)
class Study(Step):
    """``unike study ablation`` for a task."""

    task: str
    spec: RunSpec


@dataclass(frozen=True, kw_only=True)
class Report(Step):
    """``unike report``, and the paper's figures beside it; ``places`` are folders of runs."""

    table: int
    places: tuple[Path, ...]


def plan(wanted: Reproduction) -> list[Step]:
    """The steps of all tables, each once, in the order in which they are gone through.

    A table's come together, so that it can be read before the next is begun; what is prepared and trained for it comes
    before its runs.

    Raises:
        UnikeError: Something that makes no sense, fewer cases than a sequence has edits for example.
    """
    steps: dict[str, Step] = {}
    for table in wanted.tables:
        try:
            for step in Planner(wanted).table(table):
                steps.setdefault(step.name, step)
        except UnikeError as error:
            raise UnikeError(f"Table {table}: {error}") from None
    return list(steps.values())


class Planner:
    """Makes steps.

    Args:
        wanted: What is reproduced.
    """

    def __init__(self, wanted: Reproduction) -> None:
        self.wanted = wanted
        self.out = wanted.out
        self.suffix = f"-seed{wanted.spec.seed}" if wanted.spec.seed else ""
        # The bundled model comes with its knowledge of PocketEdit.
        self.bundled = wanted.spec.model == MINI and wanted.family != "mmedit"
        self.prepares = not self.bundled or wanted.spec.template is not None or wanted.triplets is not None

    def table(self, number: int) -> Iterator[Step]:
        """The steps of a table; those that it shares with another are the same."""
        parts = {1: self.one_step, 2: self.sequences, 3: self.across_tasks, 4: self.ablation}
        sources = (1, 2) if number == 5 else (number,)
        works = [step for source in sources for step in parts[source]()]
        yield from (step for step in works if isinstance(step, Prepare | Train))
        yield from (step for step in works if not isinstance(step, Prepare | Train))
        places = tuple(self.out / f"table{source}" for source in sources)
        file = self.out / f"table{number}.md"
        words = ("unike", "report", *map(str, places), "--format", "md", "--out", str(file))
        what = f"Table {number} beside the paper's"
        yield Report(name=file.name, what=what, folder=file, words=words, kind="report", table=number, places=places)

    def one_step(self) -> Iterator[Step]:
        """Table 1."""
        for task in TASKS:
            for name in self.wanted.methods:
                yield from self.bench(1, name, task, f"{name}-{task}", f"{TITLES[task]}, one-step")

    def sequences(self) -> Iterator[Step]:
        """Table 2."""
        for task in TASKS:
            for k in SEQUENCES:
                for name in self.in_sequences():
                    what = f"{TITLES[task]}, sequences of {k}"
                    yield from self.bench(2, name, task, f"{name}-{task}-{k}", what, setting="sequential", k=k)

    def across_tasks(self) -> Iterator[Step]:
        """Table 3; `unike prepare` and `unike train` learn from one task at a time, and that is E-VQA."""
        for name in self.in_sequences():
            what = f"{' and '.join(TITLES.values())}, sequences of {CROSS_TASK}"
            yield from self.bench(3, name, TASKS[0], name, what, setting="cross-task", k=CROSS_TASK)

    def ablation(self) -> Iterator[Step]:
        """Table 4."""
        for task in TASKS:
            settings: dict[str, Any] = {}
            needs: list[str] = []
            if self.prepares:
                prepared = self.prepare(task)
                yield prepared
                settings["knowledge"] = str(prepared.folder)
                needs.append(prepared.name)
            spec = self.spec(dataset=f"{self.wanted.family}-{task}", settings=settings)
            name = f"table4/{task}{self.suffix}"
            words = (
                "unike",
                "study",
                "ablation",
                *told(spec, always=("model", "dataset")),
                *self.data(),
                *self.shared(),
            )
            yield Study(
                name=name,
                what=f"ablation on {TITLES[task]}",
                folder=self.out / name,
                words=(*words, "--out", str(self.out / name)),
                kind="study ablation",
                needs=tuple(needs),
                task=task,
                spec=spec,
            )

    def in_sequences(self) -> list[str]:
        """The methods that the paper has in sequences."""
        return [name for name in self.wanted.methods if METHODS[name].sequential]

    # ------------------------------------------------------------------ steps

    def bench(self, table: int, name: str, task: str, place: str, what: str, **setting: Any) -> Iterator[Step]:
        """A run, after what it needs."""
        method = METHODS[name]
        settings, needs = dict(method.settings), []
        if self.wanted.stands_for == "minigpt4":
            settings |= method.of_minigpt4
        for need, made in (("knowledge", self.prepared_for(method, task)), ("trained", self.trained_for(method, task))):
            if made is not None:
                yield made
                settings[need] = str(made.folder)
                needs.append(made.name)
        if method.pool:
            settings["pool"] = f"{self.wanted.family}-{task}"
            settings |= {} if self.wanted.data is None else {"pool_folder": str(self.wanted.data)}
        changes: dict[str, Any] = {"editor": method.editor, "settings": settings, **setting}
        if method.batch is not None and self.wanted.spec.model != MINI:
            changes["batch"] = method.batch
        spec = self.spec(dataset=f"{self.wanted.family}-{task}", **changes)
        folder = self.out / f"table{table}" / f"{place}{self.suffix}"
        words = ("unike", "bench", *told(spec, always=("model", "editor", "dataset")), *self.data(), *self.shared())
        yield Bench(
            name=f"table{table}/{folder.name}",
            what=f"{name} on {what}",
            folder=folder,
            words=(*words, "--out", str(folder)),
            kind=f"bench {name} {spec.setting} {spec.k}",
            needs=tuple(needs),
            method=name,
            spec=spec,
        )

    def prepared_for(self, method: Method, task: str) -> Step | None:
        """The knowledge that a method needs, unless it comes with the model."""
        return self.prepare(task) if method.knowledge and self.prepares else None

    def trained_for(self, method: Method, task: str) -> Step | None:
        """The network that a method needs."""
        return self.train(method, task) if method.network else None

    def prepare(self, task: str) -> Prepare:
        """Knowledge of a task."""
        folder = self.out / "prepared" / task
        words = ["unike", "prepare", *self.learning(task)]
        if self.wanted.triplets is not None:
            words += ["--limit", str(self.wanted.triplets)]
        what = f"knowledge of {TITLES[task]}"
        return Prepare(
            name=f"prepared/{task}",
            what=what,
            folder=folder,
            words=(*words, "--out", str(folder)),
            kind="prepare",
            task=task,
        )

    def train(self, method: Method, task: str) -> Train:
        """The network of a method for a task."""
        folder = self.out / "trained" / f"{method.editor}-{task}"
        settings = dict(method.training_of_minigpt4) if self.wanted.stands_for == "minigpt4" else {}
        words = ["unike", "train", "--editor", method.editor, *self.learning(task)]
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={write_setting(value)}")]
        if self.wanted.steps is not None:
            words += ["--steps", str(self.wanted.steps)]
            settings["steps"] = self.wanted.steps
        return Train(
            name=f"trained/{folder.name}",
            what=f"network of {method.editor} for {TITLES[task]}",
            folder=folder,
            words=(*words, "--out", str(folder)),
            kind=f"train {method.editor}",
            editor=method.editor,
            task=task,
            settings=settings,
        )

    # ------------------------------------------------------------------ words

    def spec(self, **changes: Any) -> RunSpec:
        """What was asked for, with these fields.

        Raises:
            UnikeError: It makes no sense.
        """
        spec = replace(self.wanted.spec, protocols=PROTOCOLS, **changes)
        spec.check()
        return spec

    def learning(self, task: str) -> list[str]:
        """Model and data, as `unike prepare` and `unike train` are told."""
        wanted = self.wanted
        loading = told(wanted.spec, only=LOADING)
        folder = [] if wanted.data is None else ["--data-dir", str(wanted.data)]
        return ["--model", wanted.spec.model, "--data", wanted.family, *folder, "--task", task, *loading]

    def data(self) -> list[str]:
        """Where the data is, as `unike bench` and `unike study` are told."""
        return [] if self.wanted.data is None else ["--data", str(self.wanted.data)]

    def shared(self) -> list[str]:
        """How many processes share a run."""
        return ["--workers", str(self.wanted.workers)] if self.wanted.workers > 1 else []


def told(spec: RunSpec, *, always: Sequence[str] = (), only: Sequence[str] | None = None) -> list[str]:
    """The words that make a spec, without those for what is so by default.

    Args:
        spec: What is measured.
        always: Fields that are told all the same.
        only: No other fields than these.
    """
    fields = declared(RunSpec)
    left_out = {
        name
        for name, each in fields.items()
        if (getattr(spec, name) == each.default and name not in always) or (only is not None and name not in only)
    }
    return as_words(spec, without=left_out)
