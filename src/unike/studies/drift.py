"""Beyond the paper: what edits change elsewhere, asked on questions that have nothing to do with them.

A sequence of edits is made, and after 1, 10 and 100 of them a *probe set* is asked that the unedited model has answered
before: questions with a known answer, of cases that are not edited. It tells how many right answers are still right,
how many answers are still the same text, and how far the distribution of an answer's first token has moved.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers
from unike.backbones.forward.functional import kl
from unike.bench.replay import TOGETHER
from unike.bench.selection import cases_hash, choose, room
from unike.bench.summary import interval
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import read_file, replace_file
from unike.core.folders import check_writable
from unike.data.queries import GENERALITY, LOCALITY, EditCase, Query
from unike.edits.edit import Edit
from unike.edits.stack import attached
from unike.report import Table
from unike.report.cells import Cell
from unike.report.drawing import COLOURS, MARKERS, Drawing, in_percent, legend, styled
from unike.studies.base import Findings, Study, whole
from unike.studies.lab import Lab, Variant

EDITS = (1, 10, 100)

QUESTIONS = 200
"""In the probe set, unless another number is asked for."""

METHODS = (
    Variant("UniKE"),
    Variant("UniKE, no gate", {"gate.on": False}),
    Variant("UniKE as in the paper", {"paper": True}),
    Variant("only Intrin", {"ablation": "only_intrinsic"}),
    Variant("FT", editor="ft"),
)

QUANTITIES = {
    "kept": ("right answers kept, percent", 100.0),
    "same": ("answers unchanged, percent", 100.0),
    "kl": ("KL of the first token, nats", 1.0),
}
"""What is measured, with its unit and what a share is multiplied with."""


@dataclass(frozen=True)
class Probed:
    """The probe set after some edits.

    Attributes:
        edits: How many.
        kept: For each question that was answered rightly before, whether it still is.
        same: For each question, whether the answer is the same text.
        kl: For each question, ``KL(before || after)`` of the first answer token, in nats.
    """

    edits: int
    kept: list[float]
    same: list[float]
    kl: list[float]


class Drift(Study):
    """Accuracy kept and divergence on a held-out probe set, after 1, 10, 100 edits."""

    name: ClassVar[str] = "drift"
    title: ClassVar[str] = "What edits change elsewhere"
    asks: ClassVar[str] = "Of what the model knew and said about other things, how much is left after many edits?"

    def check(self, lab: Lab) -> None:
        """Settings, data, and numbers of edits."""
        request = lab.request
        whole(request.numbers, "a number of edits", least=1)
        if request.count is not None and request.count < 1:
            raise UnikeError(f"--count {request.count} asks nothing; ask at least 1 question")
        for variant in METHODS:
            registry.editors.get(variant.editor).config_class.parse(variant.with_base(request.spec.settings))
        check_writable(lab.out)
        _ = lab.tasks

    def conduct(self, lab: Lab) -> Findings:
        """Edit with every method, unless that has been done."""
        at = whole(lab.request.numbers or EDITS, "a number of edits", least=1)
        sequence, probes = draw(lab, at[-1])
        before = cache(lambda: Unedited.ask(lab, probes))  # only if something is left to measure
        found = {variant.name: self._probed(lab, variant, sequence, probes, before, at) for variant in METHODS}
        seed = lab.request.spec.seed
        rows = [row for name, each in found.items() for probed in each for row in summary(name, probed, seed)]
        backbone, task = lab.backbone, lab.tasks[0]
        caption = (
            f"Answers to {len(probes)} questions about other things, against the number of edits. {task.dataset} "
            f"{task.split}, {backbone.source} ({backbone.fingerprint()}), one sequence, seed {seed}; "
            "greedy answers, bootstrap 95 % intervals over questions"
        )
        return Findings(
            tables=[table(found, seed, caption)],
            drawings=[Drawing(self.name, caption, drifts(rows, {key: name for key, (name, _) in QUANTITIES.items()}))],
            numbers=rows,
        )

    def _probed(
        self,
        lab: Lab,
        variant: Variant,
        sequence: Sequence[EditCase],
        probes: Sequence[Query],
        before: Callable[[], "Unedited"],
        at: Sequence[int],
    ) -> list[Probed]:
        """One method's drift, measured now or by an earlier run."""
        path = lab.out / f"{variant.folder}-drift.json"
        editor, backbone = lab.editor(variant), lab.backbone
        made_from = {
            "fingerprint": backbone.fingerprint(),
            "dtype": str(backbone.dtype),
            "config": editor.config.model_dump(mode="json"),
            "learned": editor.learned(backbone),
            "max_new_tokens": longest(lab),
            "cases": cases_hash(lab.tasks),
            "sequence": [case.case_id for case in sequence],
            "probes": [query.prompt for query in probes],
            "edits": list(at),
        }
        if (done := read(path, made_from)) is not None:
            return done
        unedited = before()
        editor.prepare(backbone)
        edits: list[Edit] = []
        found = []
        for number, case in enumerate(sequence, 1):
            lab.progress(f"{variant.name}: editing", number - 1, len(sequence))
            with attached(backbone, edits):
                edits.append(editor.edit(backbone, case.edit))
            if number in at:
                with attached(backbone, edits):
                    found.append(unedited.compare(backbone, probes, number))
        lab.progress(f"{variant.name}: editing", len(sequence), len(sequence))
        write(path, made_from, found)
        return found


def draw(lab: Lab, count: int) -> tuple[list[EditCase], list[Query]]:
    """The edits, cases that the model gets wrong in the order of the seed, and questions about other things.

    Raises:
        UnikeError: There are too few of either.
    """
    request, everything = lab.request, [case for task in lab.tasks for case in task.cases]
    answers = Answers(lab.backbone, longest(lab))
    (sequence,), _ = choose(
        lab.backbone,
        lab.editor(METHODS[0]),
        lab.tasks,
        replace(request.spec, limit=count),
        answers,
        progress=lab.progress,
    )
    if len(sequence) < count:
        raise UnikeError(f"too few cases to edit: {len(sequence)} that the model gets wrong, {count} are needed")
    edited = {case.case_id for case in sequence}
    shown = {query.image for case in sequence for query in related(case)} - {None}
    asked = {query.prompt for case in sequence for query in related(case) if query.image is None}
    others = [query for case in everything if case.case_id not in edited for query in about(case)]
    apart = [query for query in others if query.image not in shown and (query.image or query.prompt not in asked)]
    known = list({(query.prompt, query.image): query for query in apart if query.target}.values())
    if not known:
        raise UnikeError(f"no questions are left beside {count} edits; make fewer edits with --at")
    wanted = request.count or QUESTIONS
    return sequence, random.Random(request.spec.seed).sample(known, min(wanted, len(known)))


def longest(lab: Lab) -> int:
    """The longest answer, in tokens."""
    return lab.request.spec.max_new_tokens or room(lab.backbone, [case for task in lab.tasks for case in task.cases])


def related(case: EditCase) -> list[Query]:
    """What an edit is about: its own question, in other words and about other pictures too."""
    return [case.edit, *(probe.query for probe in case.probes if probe.kind in GENERALITY)]


def about(case: EditCase) -> list[Query]:
    """The questions that may be in a probe set, of a case that is not edited: all are about something else."""
    return [case.edit, *(probe.query for probe in case.probes if probe.kind in LOCALITY)]


@dataclass(frozen=True, eq=False)
class Unedited:
    """What the model says to the probe set before any edit, asked in the passes that it is asked in later.

    Attributes:
        said: The answers.
        first: Logits of their first tokens, ``[n, V]``.
        max_new_tokens: The longest answer.
    """

    said: list[str]
    first: Tensor
    max_new_tokens: int

    @classmethod
    def ask(cls, lab: Lab, probes: Sequence[Query]) -> Self:
        """Ask the model as it came."""
        backbone, tokens = lab.backbone, longest(lab)
        said = ask(backbone, probes, tokens, partial(lab.progress, "asking the probe set, before"))
        return cls(said, first_tokens(backbone, probes), tokens)

    def compare(self, backbone: Backbone, probes: Sequence[Query], edits: int) -> Probed:
        """Ask the model as it is now."""
        said = ask(backbone, probes, self.max_new_tokens)
        right = [query.accepts(answer) for answer, query in zip(self.said, probes, strict=True)]
        still = [float(query.accepts(answer)) for answer, query in zip(said, probes, strict=True)]
        return Probed(
            edits,
            kept=[score for score, was in zip(still, right, strict=True) if was],
            same=[float(now == before) for now, before in zip(said, self.said, strict=True)],
            kl=[round(value, 6) for value in kl(self.first, first_tokens(backbone, probes)).tolist()],
        )


def ask(
    backbone: Backbone,
    probes: Sequence[Query],
    max_new_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Greedy answers of a model as it is now."""
    said: list[str] = []
    while len(said) < len(probes):
        progress(len(said), len(probes))
        said += backbone.generate(probes[len(said) : len(said) + TOGETHER], max_new_tokens=max_new_tokens)
    progress(len(said), len(probes))
    return said


@torch.no_grad()
def first_tokens(backbone: Backbone, queries: Sequence[Query]) -> Tensor:
    """Logits of the first token of an answer, ``[n, V]`` in the order of the queries."""
    bare = [Query(query.prompt, query.image) for query in queries]
    found: dict[int, Tensor] = {}
    for group in backbone.groups(bare):
        for start in range(0, len(group), TOGETHER):
            rows = group[start : start + TOGETHER]
            batch = backbone.encode([bare[row] for row in rows])
            positions = torch.zeros_like(batch.labels, dtype=torch.bool)
            positions[torch.arange(len(rows)), batch.prompt_last] = True
            # In two steps, for the head's sake: of all positions one a row is needed.
            found |= dict(zip(rows, backbone.run_from_split(backbone.run_to_split(batch, 0), positions), strict=True))
    return torch.stack([found[row] for row in range(len(queries))])


# ---------------------------------------------------------------------- what is shown and kept


def summary(name: str, probed: Probed, seed: int) -> list[dict[str, Any]]:
    """A row for each quantity, with the keys of a summary: mean and bootstrap 95 % interval over questions."""
    rows = []
    for quantity in QUANTITIES:
        value, low, high, n = interval([[score, 1] for score in getattr(probed, quantity)] or [[0, 0]], seed)
        row = {"editor": name, "edits": probed.edits, "quantity": quantity}
        rows.append(row | {"value": value, "low": low, "high": high, "n": n, "seed": seed})
    return rows


def table(found: dict[str, list[Probed]], seed: int, caption: str) -> Table:
    """Methods by numbers of edits."""
    rows = []
    for name, each in found.items():
        cells = [cell(row) for probed in each for row in summary(name, probed, seed)]
        rows.append((name, tuple(cells)))
    heads = tuple(name for name, _ in QUANTITIES.values())
    numbers = [probed.edits for probed in next(iter(found.values()))]
    columns = tuple((f"after {number}:", heads) for number in numbers)
    return Table("Drift", columns, tuple(rows), (f"{caption}.",))


def cell(row: dict[str, Any]) -> Cell:
    """A quantity in its unit."""
    if row["value"] is None:
        return Cell()
    scale = QUANTITIES[row["quantity"]][1]
    digits = 1 if scale > 1 else 3
    ends = f"[{scale * row['low']:.{digits}f}, {scale * row['high']:.{digits}f}]"
    return Cell(f"{scale * row['value']:.{digits}f}", remark=ends, n=row["n"])


def read(path: Path, made_from: dict[str, Any]) -> list[Probed] | None:
    """What an earlier run measured; None if there is nothing.

    Raises:
        UnikeError: It is damaged, or of something else.
    """
    try:
        found = json.loads(read_file(path))
        if found["made_from"] == made_from:
            return [Probed(**probed) for probed in found["probed"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UnikeError(f"{path} is damaged ({error}); delete it, and it is measured anew") from None
    raise UnikeError(f"{path} is of another model, data or request; choose another folder")


def write(path: Path, made_from: dict[str, Any], found: Sequence[Probed]) -> None:
    """Keep what was measured."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnikeError(f"cannot write {path.parent}: {error.strerror}; choose another folder") from None
    text = json.dumps({"made_from": made_from, "probed": [asdict(probed) for probed in found]})
    replace_file(path, text.encode())


def drifts(rows: Sequence[Mapping[str, Any]], quantities: Mapping[str, str]) -> Figure:
    """Several quantities against the number of edits, each in a panel and a unit of its own, with 95 % intervals.

    Args:
        rows: With ``editor``, ``edits``, ``quantity``, ``value``, ``low``, ``high``; shares from 0 to 1 are shown in
            percent if the quantity's name says so.
        quantities: Their names.
    """
    numbers = sorted({row["edits"] for row in rows})
    methods = list(dict.fromkeys(row["editor"] for row in rows))
    with styled():
        figure = Figure(figsize=(2.5 * len(quantities), 3.0), layout="constrained")
        for axes, (quantity, name) in zip(figure.subplots(1, len(quantities)), quantities.items(), strict=True):
            for index, method in enumerate(methods):
                own = [row for row in rows if (row["editor"], row["quantity"]) == (method, quantity)]
                values, ends = in_percent(own)
                scale = 1.0 if "percent" in name else 0.01
                places = [numbers.index(row["edits"]) + 0.06 * index for row in own]  # intervals beside each other
                style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index]}
                scaled = [[scale * end for end in side] for side in ends]
                heights = [scale * value for value in values]
                axes.errorbar(places, heights, yerr=scaled, markersize=4, linewidth=1, label=method, **style)
            axes.set_title(name, fontsize=9)
            axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
            axes.set_ylim((-4, 104) if "percent" in name else (0, None))
        figure.supxlabel("edits so far", fontsize=9)
        legend(figure)
        return figure
