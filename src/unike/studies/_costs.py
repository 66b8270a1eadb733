"""What an edit costs: tokens that are read and seconds that pass for an answer, seconds and bytes of the edit."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, text_input
from unike.bench.lines import questions
from unike.bench.spec import RunSpec
from unike.core.files import read_file, replace_file
from unike.data.queries import EditCase, Query
from unike.editors.base import Editor
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.report import Measurement, Table
from unike.report.cells import Cell
from unike.studies.lab import Lab, Variant

CASES = 4
"""Whose questions are timed, one at a time."""

FILE = "cost.json"


@dataclass(frozen=True)
class Cost:
    """Of asking and of editing, on one machine.

    Attributes:
        prompt_tokens: Mean positions that the decoder reads before an answer, the picture's included.
        ask_seconds: Median of asking one question, to the end of the answer.
        questions: How many were timed.
        edit_bytes: Of an edit's tensors, mean.
    """

    prompt_tokens: float
    ask_seconds: float
    questions: int
    edit_bytes: float


def cost_of(lab: Lab, variant: Variant, spec: RunSpec) -> Cost:
    """The cost of a variant, measured once and kept beside its run."""
    path = lab.out / variant.folder / FILE
    if path.is_file():
        try:
            return Cost(**json.loads(read_file(path)))
        except (ValueError, TypeError):
            pass  # cut short, or of another version: it is measured anew
    cases = [case for task in lab.tasks for case in task.cases][:CASES]
    assert spec.max_new_tokens is not None  # a run that is there leaves nothing open
    cost = measure(lab.backbone, lab.editor(variant), cases, spec.max_new_tokens)
    replace_file(path, json.dumps(asdict(cost)).encode())
    return cost


def measure(backbone: Backbone, editor: Editor[Any], cases: Sequence[EditCase], max_new_tokens: int) -> Cost:
    """Edit some cases, and ask their questions one at a time."""
    editor.prepare(backbone)
    tokens, seconds, sizes = [], [], []
    for number, case in enumerate(cases):
        edit = editor.edit(backbone, case.edit)
        sizes.append(sum(tensor.nbytes for tensor in edit.tensors.values()))
        asked = [query for _, query in questions(case)]
        # The very first question is asked twice, and not counted the first time: models warm up.
        for query in asked[:1] * (number == 0) + asked:
            read, took = timed(edit, backbone, query, max_new_tokens)
            tokens.append(read)
            seconds.append(took)
    return Cost(round(fmean(tokens[1:]), 2), round(median(seconds[1:]), 4), len(seconds) - 1, fmean(sizes))


def timed(edit: Edit, backbone: Backbone, query: Query, max_new_tokens: int) -> tuple[int, float]:
    """Ask one question under an edit: how many positions were read before the answer, and the seconds it took."""
    passes: list[int] = []

    def count(module: Any, args: Args, kwargs: Kwargs) -> None:
        passes.append(text_input(args, kwargs).shape[1])

    with Hooks() as hooks:
        hooks.add_pre(backbone.text_stack, count)
        start = time.perf_counter()
        EditedModel(backbone, [edit]).generate([query], max_new_tokens=max_new_tokens)
        took = time.perf_counter() - start
    return passes[0], took


def cost_table(measurements: Sequence[Measurement], costs: Mapping[str, Cost]) -> Table:
    """Costs side by side; those of the edit from the runs themselves."""
    rows = []
    for m in measurements:
        if m.method in costs:
            cost, edits = costs[m.method], [case.edit_seconds for run in m.runs.values() for case in run.cases]
            told = (cost.prompt_tokens, cost.ask_seconds, fmean(edits), cost.edit_bytes / 1024)
            cells = [f"{told[0]:.0f}", f"{told[1]:.3f}", f"{told[2]:.3f}", f"{told[3]:.0f}"]
            rows.append((m.method, tuple(Cell(text, measurement=m) for text in cells)))
    timed = next(iter(costs.values())).questions
    return Table(
        "What asking and editing cost",
        (("", ("prompt, tokens", "asking, s", "editing, s", "edit, KiB")),),
        tuple(rows),
        (
            f"prompt: mean positions read before an answer, picture included; asking: median of {timed} questions, one "
            "at a time; editing: mean of the run, edits of a batch sharing its time; edit: tensors of one. Seconds are "
            "of the machine that measured them.",
        ),
    )
