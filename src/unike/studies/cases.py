"""Figures 5b and 7: what edits look like, case by case; the cases are chosen by a rule, never by hand."""

import itertools
import random
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from matplotlib.figure import Figure

from unike.bench.outcome import Asked, CaseResult
from unike.bench.protocols.base import views
from unike.core.errors import UnikeError
from unike.core.images import load_image
from unike.core.registry import check_names
from unike.data.datasets.base import open_dataset
from unike.data.queries import probe_kinds
from unike.report import Chosen, Measurement
from unike.report.drawing import Drawing, styled
from unike.report.failures import SIDE
from unike.studies.base import Findings, VariantStudy, first_view, told
from unike.studies.lab import Lab, Variant
from unike.studies.request import Request

COUNT = 4
"""Cases that are shown, unless another number is asked for."""

FULL, HALF = "UniKE", "only Intrin"

RULES: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "drawn": ("all cases", lambda full, half: True),
    "right": ("the cases in which UniKE got everything right", lambda full, half: full == 1),
    "failed": ("the cases in which UniKE got something wrong", lambda full, half: full < 1),
    "gained": ("the cases in which UniKE got more right than its intrinsic half", lambda full, half: full > half),
    "lost": ("the cases in which UniKE got less right than its intrinsic half", lambda full, half: full < half),
}
"""Which cases may be drawn, by the shares of their questions that both methods got right."""

WIDTH = 26
"""Characters in a line of a card."""


class Cases(VariantStudy):
    """Picture, question, answer before and after: of the edit and of everything else that is asked about it."""

    name: ClassVar[str] = "cases"
    title: ClassVar[str] = "Cases (Figures 5b and 7)"
    asks: ClassVar[str] = "What does a model say before and after an edit, to the edited question and to others?"

    def check(self, lab: Lab) -> None:
        """There is such a rule, and something to be shown."""
        check_names("rule", [lab.request.rule], list(RULES))
        if lab.request.count is not None and lab.request.count < 1:
            raise UnikeError(f"--count {lab.request.count} shows nothing; show at least 1 case")
        super().check(lab)

    def variants(self, request: Request) -> list[Variant]:
        """The method, and its intrinsic half to compare with."""
        return [Variant(FULL), Variant(HALF, {"ablation": "only_intrinsic"})]

    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Findings:
        """The chosen cases, as a figure and for the page."""
        view = first_view(lab)
        found = {m.method: {case.case_id: case for run in m.runs.values() for case in run.cases} for m in measurements}
        chosen = choose(found[FULL], found[HALF], view, lab.request)
        rule = f"{len(chosen)} cases drawn from {RULES[lab.request.rule][0]} with seed {lab.request.spec.seed}"
        caption = told(lab, measurements[0], f"{rule} (Figures 5b and 7)")
        if not chosen:
            raise UnikeError(f"no case follows the rule {lab.request.rule!r}; take another, or more cases")
        pairs = [(full, found[HALF][name]) for name, full in chosen.items()]
        figure = cards(
            [[card(lab, *each) for each in zip(full.asked, half.asked, strict=True)] for full, half in pairs]
        )
        shown = [
            Chosen(full.case_id, lab.request.spec.dataset, full.asked, {HALF: [asked.after for asked in half.asked]})
            for full, half in pairs
        ]
        return Findings(drawings=[Drawing(self.name, caption, figure)], cases=shown)


def choose(
    full: Mapping[str, CaseResult], half: Mapping[str, CaseResult], view: str, request: Request
) -> dict[str, CaseResult]:
    """The cases that the rule allows, drawn with the seed from them in the order of their ids."""
    allows = RULES[request.rule][1]
    both = sorted(full.keys() & half.keys())
    allowed = [name for name in both if allows(share_right(full[name], view), share_right(half[name], view))]
    count = min(request.count or COUNT, len(allowed))
    return {name: full[name] for name in random.Random(request.spec.seed).sample(allowed, count)}


def share_right(case: CaseResult, view: str) -> float:
    """The share of a case's questions with full marks; of those that have any."""
    keys = [f"{view.partition('/')[0]}/{scorer}" for scorer in views()[view]]
    marks = [[score for key in keys if (score := asked.scores.get(key)) is not None] for asked in case.asked]
    scored = [min(each) == 1 for each in marks if each]
    return sum(scored) / len(scored) if scored else 0.0


def card(lab: Lab, asked: Asked, half: Asked) -> tuple[Any, str]:
    """A question as the figure has it: the picture's pixels, and what was asked and said."""
    pixels = None
    if asked.image is not None:
        picture = load_image(open_dataset(lab.request.spec.dataset, lab.request.data).picture(asked.image))
        picture.thumbnail((SIDE, SIDE))
        pixels = picture
    told = {
        probe_kinds()[asked.kind].short: asked.prompt,
        "target": " or ".join((asked.target, *asked.also)) if asked.target else "none",
        "before": asked.before,
        "after": asked.after,
        HALF: half.after,
    }
    texts = [f"{what}: {text or '(nothing)'}" for what, text in told.items()]
    lines = [textwrap.shorten(text, 2 * WIDTH, placeholder="...") for text in texts]
    return pixels, "\n".join(part for line in lines for part in textwrap.wrap(line, WIDTH))


def cards(cases: Sequence[Sequence[tuple[Any, str]]]) -> Figure:
    """Cases as rows of cards: a picture, if there is one, with a text below it.

    Args:
        cases: For each, its cards: pixels ``[H, W, 3]`` or None, and lines of text that fit the card.
    """
    with styled():
        columns = max(map(len, cases))
        lines = max(text.count("\n") + 1 for case in cases for _, text in case)
        height = 1.1 + 0.13 * lines
        figure = Figure(figsize=(1.75 * columns, height * len(cases)), layout="constrained")
        grid = figure.subplots(len(cases), columns, squeeze=False)
        for line, case in zip(grid, cases, strict=True):
            for axes, card in itertools.zip_longest(line, case):
                axes.set_axis_off()
                if card is None:
                    continue
                pixels, text = card
                axes.set_anchor("N")
                axes.imshow(pixels if pixels is not None else [[(0, 0, 0, 0)]])
                axes.text(0, -0.04, text, transform=axes.transAxes, va="top", fontsize=6.5)
        return figure
