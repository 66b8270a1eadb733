"""What studies share: variants of a method, each run by the ordinary benchmark, and what is shown of them.

A study of variants runs every one into a folder of its own, ``OUT/unike-gate=false`` for example, named by what sets it
apart. A run that was cut off goes on, one that is finished is used as it is, by another study in the same folder too.
What the runs say is written beside them: ``OUT/alpha.md``, ``.csv`` and ``.html``, and each figure as SVG and PNG.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from unike import api
from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.bench.results import VIEWS, Run, check_place, check_same_run, column, read_header, read_run, select
from unike.bench.runner import Plan, Source, cases_hash, check_method, evaluate
from unike.bench.workers import Job, run_local
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import replace_file
from unike.core.progress import Progress, silent
from unike.editors.base import Editor
from unike.report import (
    CONDITIONS,
    STUDY_FILE,
    Chosen,
    Measurement,
    StudyFigures,
    Table,
    check_shared,
    named,
    report_tables,
    rows_to_csv,
    to_csv,
    to_html,
    to_markdown,
    views_of,
)
from unike.report.figures import Drawing, Scores
from unike.report.measurements import cases_done

UNIKE, INTRINSIC_IKE = "unike", "intrinsic_ike"


@dataclass(frozen=True)
class Request:
    """What is studied.

    Attributes:
        model: As in `load_backbone`.
        dataset: Name of the data set.
        split: Of it.
        data: Folder of its files, or None.
        limit: Edit at most so many cases; None for all.
        seed: Of the order of cases, and of what is drawn.
        settings: Of `unike`, the same in all variants.
        protocols: Of `unike.bench.metrics.PROTOCOLS`; figures show the first.
        batch: Independent edits that are made in one pass.
        max_new_tokens: The longest answer, or None.
        skip_bad: Leave bad cases out, and count them.
        workers: Processes that share each run.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.
        quantize: As in `load_backbone`.
        numbers: What is gone through: sizes, values or numbers of edits; if empty, those of the study.
        count: How many cases are shown, states are drawn, or questions are asked; None for as many as the study has.
        rule: By which cases are chosen.
    """

    model: str = "mini"
    dataset: str = "pocket-vqa"
    split: str = "eval"
    data: Path | None = None
    limit: int | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    protocols: tuple[str, ...] = ("strict", "teacher_forced")
    batch: int = 16
    max_new_tokens: int | None = None
    skip_bad: bool = False
    workers: int = 1
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    numbers: tuple[float, ...] = ()
    count: int | None = None
    rule: str = "drawn"


@dataclass(frozen=True)
class Variant:
    """A method with settings, under the name that a study has for it.

    Attributes:
        name: Of its row; several variants of one name are put together.
        settings: What sets it apart.
        editor: The method.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    editor: str = UNIKE

    @property
    def folder(self) -> str:
        """Of its run: the same for the same variant in every study."""
        return "-".join([self.editor, *_told(self.settings)])

    def with_base(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All its settings, with those that all variants of `unike` share.

        Raises:
            UnikeError: The study varies one of these.
        """
        if self.editor == INTRINSIC_IKE:
            return {"intrinsic": dict(settings), **self.settings}
        if self.editor != UNIKE:
            return dict(self.settings)
        for key in settings.keys() & self.settings.keys():
            raise UnikeError(f"--set {key} cannot be held fixed: the study varies it; leave it out")
        return {**settings, **self.settings}


def _told(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _told(value)
        else:
            yield key if value is True else f"{key}={value if isinstance(value, str) else json.dumps(value)}"


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes:
        measurements: Runs by the names of the study.
        tables: Of them, and others.
        drawings: The figures.
        numbers: Rows of the CSV file; if empty, those of the measurements.
        cases: To be shown on the page.
    """

    measurements: Sequence[Measurement] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
    numbers: Sequence[Mapping[str, Any]] = ()
    cases: Sequence[Chosen] = ()


class Study(ABC):
    """A question about a method, and how it is answered."""

    name: ClassVar[str]
    title: ClassVar[str]
    asks: ClassVar[str]
    """What it asks, in a sentence."""

    @abstractmethod
    def check(self, lab: "Lab") -> None:
        """Refuse what can be known to be wrong before a model is loaded.

        Raises:
            UnikeError: With what it is.
        """

    @abstractmethod
    def conduct(self, lab: "Lab") -> Outcome:
        """Measure what is not there yet, and say what was found."""


class Lab:
    """Where a study is conducted: the request, the folder, and a model that is loaded when it is needed.

    Args:
        request: What is studied.
        out: Folder of the runs and of what is shown.
        progress: Told how far it is.
    """

    def __init__(self, request: Request, out: Path, progress: Progress = silent) -> None:
        self.request = request
        self.out = out
        self.progress = progress

    @cached_property
    def sources(self) -> list[Source]:
        """The cases; read once."""
        return self.job(Variant(UNIKE), Plan()).sources

    @cached_property
    def backbone(self) -> Backbone:
        """The model."""
        self.progress("loading the model", 0, 1)
        backbone = load_backbone(
            self.request.model,
            device=self.request.device,
            dtype=self.request.dtype,
            quantize=self.request.quantize,
        )
        self.progress("loading the model", 1, 1)
        return backbone

    def plan(self, **changes: Any) -> Plan:
        """How runs of this request are measured."""
        request = self.request
        wanted = {key: getattr(request, key) for key in ("seed", "limit", "batch", "protocols", "max_new_tokens")}
        return Plan(**wanted | changes)

    def place(self, variant: Variant, plan: Plan) -> Path:
        """The folder of a variant's run; sequences are apart from one-step editing."""
        return self.out / (
            variant.folder if plan.setting == "one-step" else f"{variant.folder}-{plan.setting}-{plan.k}"
        )

    def editor(self, variant: Variant) -> Editor[Any]:
        """The method of a variant."""
        return api.make_editor(variant.editor, **variant.with_base(self.request.settings))

    def job(self, variant: Variant, plan: Plan) -> Job:
        """A variant's run as other processes can start it."""
        request = self.request
        return Job(
            model=request.model,
            editor=variant.editor,
            settings=variant.with_base(request.settings),
            dataset=request.dataset,
            split=request.split,
            data=request.data,
            out=self.place(variant, plan),
            plan=plan,
            skip_bad=request.skip_bad,
            device=request.device,
            dtype=request.dtype,
            quantize=request.quantize,
        )

    def check(self, variant: Variant, plan: Plan) -> None:
        """Refuse a variant that could not be run.

        Raises:
            UnikeError: Its settings, data or folder; nothing was touched.
        """
        method = registry.editors.get(variant.editor)
        method.config_class.parse(variant.with_base(self.request.settings))
        check_method(method, plan)
        _ = self.sources
        check_place(self.place(variant, plan))
        self.finished(variant, plan)

    def run(self, variant: Variant, plan: Plan) -> Run:
        """The run of a variant, made, finished, or read.

        Raises:
            UnikeError: As `evaluate`.
        """
        if (done := self.finished(variant, plan)) is not None:
            return done

        def progress(what: str, done: int, total: int) -> None:
            self.progress(f"{variant.name}: editing" if what == "editing" else what, done, total)

        job = self.job(variant, plan)
        if self.request.workers > 1:
            return run_local(job, self.request.workers, progress)
        skip_bad = self.request.skip_bad
        return evaluate(
            self.backbone, self.editor(variant), self.sources, job.out, plan, skip_bad=skip_bad, progress=progress
        )

    def finished(self, variant: Variant, plan: Plan) -> Run | None:
        """A variant's run, if it is there to the last case: whatever version made it, and without loading a model.

        Raises:
            UnikeError: Another run is there.
        """
        job = self.job(variant, plan)
        if read_header(job.out) is None:
            return None
        config = registry.editors.get(job.editor).config_class.parse(job.settings)
        told = {key: value for key, value in asdict(plan).items() if key not in ("max_new_tokens", "engine", "batch")}
        told |= {"max_new_tokens": plan.max_new_tokens} if plan.max_new_tokens else {}
        told |= {"dtype": job.dtype} if job.dtype != "auto" else {}
        about = {"model": job.model, "editor": job.editor, "config": config.model_dump(mode="json")}
        about["quantize"] = job.quantize
        data = {"dataset": job.dataset, "split": job.split, "cases": cases_hash(self.sources)}
        check_same_run(job.out, {**about, **data, **told})
        run = read_run(job.out)
        return run if cases_done(run) >= run.header["counts"]["edited"] else None


# ---------------------------------------------------------------------- studies of variants


class VariantStudy(Study):
    """A study that compares variants of a method in the ordinary benchmark."""

    @abstractmethod
    def variants(self, request: Request) -> list[Variant]:
        """What is compared, in the order of the table."""

    def followers(self, runs: Mapping[str, Run]) -> list[Variant]:
        """Variants that follow from the runs of the others, by name; none, unless a study has some."""
        return []

    def plan(self, lab: Lab) -> Plan:
        """How they are measured: one by one."""
        return lab.plan()

    @abstractmethod
    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Outcome:
        """The figures, and tables beside those of the report."""

    def check(self, lab: Lab) -> None:
        """Every variant."""
        plan = self.plan(lab)
        for variant in self.variants(lab.request):
            lab.check(variant, plan)

    def conduct(self, lab: Lab) -> Outcome:
        """Run the variants, then those that follow from them."""
        plan, variants = self.plan(lab), self.variants(lab.request)
        runs: dict[str, dict[Path, Run]] = {}

        def run_all(wanted: Sequence[Variant]) -> None:
            for variant in wanted:
                runs.setdefault(variant.name, {})[lab.place(variant, plan)] = lab.run(variant, plan)

        run_all(variants)
        run_all(self.followers({name: next(iter(found.values())) for name, found in runs.items()}))
        check_conditions([run for found in runs.values() for run in found.values()])
        measurements = named(runs)
        shown = self.show(lab, measurements)
        tables = [*shown.tables, *report_tables(measurements, views_of(measurements))]
        return Outcome(measurements, tables, shown.drawings, shown.numbers, shown.cases)


def check_conditions(runs: Sequence[Run]) -> None:
    """Refuse runs that were made under different conditions: begun with another dtype, say, or before `unike prepare`.

    Raises:
        UnikeError: With what differs.
    """
    headers = [run.header for run in runs]
    check_shared(CONDITIONS, headers)
    learned = [header for header in headers if header.get("learned")]
    for editor in {header["editor"] for header in learned}:
        check_shared(["learned"], [header for header in learned if header["editor"] == editor])


def whole(numbers: Sequence[float], what: str, *, least: int) -> tuple[int, ...]:
    """Numbers that have to be whole.

    Raises:
        UnikeError: One is not, or is too small.
    """
    for number in numbers:
        if number != int(number) or number < least:
            raise UnikeError(f"--at {number:g} is not {what}; give whole numbers from {least} on")
    return tuple(map(int, numbers))


def scores_of(measurement: Measurement, view: str, setting: str | None = None) -> Scores:
    """A measurement's rows of one view by their metric: at the end, unless a setting says when."""
    return column(select(measurement.rows, view, setting or measurement.header["setting"]))


def first_view(lab: Lab) -> str:
    """What figures show: the first protocol."""
    return next(view for view in VIEWS if view.partition("/")[0] == lab.request.protocols[0])


def told(lab: Lab, measurement: Measurement, what: str) -> str:
    """The caption of a figure: what it shows, and under which conditions."""
    header, fixed = measurement.header, ", ".join(_told(lab.request.settings))
    return (
        f"{what}{f', with {fixed}' if fixed else ''}. {header['setting']} editing, "
        f"{header['dataset']} {header['split']}, {header['model']} "
        f"({header['fingerprint']}, {header['dtype']}), {measurement.done} edits, seed {header['seed']}; "
        f"{first_view(lab)}, percent with bootstrap 95 % intervals"
    )


# ---------------------------------------------------------------------- all of it


def study_named(name: str) -> Study:
    """A study by the name of its file, or as the command line has it, with dashes.

    Raises:
        UnikeError: No such study.
    """
    study: Study = registry.studies.get(name.replace("-", "_"))()
    return study


def conduct(study: Study, lab: Lab) -> tuple[Outcome, list[Path]]:
    """Conduct a study, or go on with it, and write what it found.

    Returns:
        What was found, and the files that say it.

    Raises:
        UnikeError: Bad input, known before a model is loaded; or what a run cannot do.
    """
    study.check(lab)
    outcome = study.conduct(lab)
    return outcome, write(study, lab, outcome)


def write(study: Study, lab: Lab, outcome: Outcome) -> list[Path]:
    """Tables as Markdown and CSV, figures as SVG and PNG, a page with all of it, and a list of figures for reports."""
    measurements, tables, name = outcome.measurements, outcome.tables, study.name
    files: dict[str, bytes] = {}
    for number, drawing in enumerate(outcome.drawings):
        lab.progress("drawing figures", number, len(outcome.drawings))
        files |= drawing.files()
    lab.progress("drawing figures", len(outcome.drawings), len(outcome.drawings))
    captions = {f"{drawing.name}.svg": drawing.caption for drawing in outcome.drawings}
    figures = StudyFigures(study.title, [(caption, files[file].decode()) for file, caption in captions.items()])
    texts = {
        f"{name}.md": to_markdown(measurements, tables, title=study.title, preface=study.asks, figures=captions),
        f"{name}.csv": rows_to_csv(outcome.numbers) if outcome.numbers else to_csv(measurements),
        f"{name}.html": to_html(
            measurements, tables, None, studies=[figures], chosen=outcome.cases, data=lab.request.data, details=False
        ),
        f"{name}{STUDY_FILE}": json.dumps({"title": study.title, "figures": captions}, indent=2) + "\n",
    }
    files |= {file: text.encode(errors="replace") for file, text in texts.items()}  # JSON can name half a character
    try:
        lab.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnikeError(f"cannot write {lab.out}: {error.strerror}; choose another folder") from None
    for file, content in files.items():
        replace_file(lab.out / file, content)
    return [lab.out / file for file in sorted(files)]
