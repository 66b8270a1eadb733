"""Figure 4a: in-context editing by states of the memory or by demonstrations in the prompt, few and many of them.

Both stand beside the intrinsic half, without collaboration, as in the paper. Demonstrations make every prompt longer;
states do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from matplotlib.figure import Figure

from unike.editors.ike import IKEConfig
from unike.editors.unike.config import UniKEConfig
from unike.report import Measurement
from unike.report.drawing import COLOURS, MARKERS, Drawing, Scores, legend, styled
from unike.report.figures import curves
from unike.studies._costs import Cost, cost_of, cost_table
from unike.studies.base import Findings, VariantStudy, first_view, scores_of, told, whole
from unike.studies.lab import INTRINSIC_IKE, Lab, Variant
from unike.studies.request import Request

SIZES = (0, 1, 2, 4, 8, 16, 32, 64)

IKE, LATENT = "Intrin + IKE", "Intrin + Latent-IKE"


class ContextSize(VariantStudy):
    """IKE and Latent-IKE with as many demonstrations as states."""

    name: ClassVar[str] = "context_size"
    title: ClassVar[str] = "Number of demonstrations or states (Figure 4a)"
    asks: ClassVar[str] = (
        "What do more examples bring, as text in the prompt and as states in the memory, and what do they cost?"
    )

    def variants(self, request: Request) -> list[Variant]:
        """Both methods with each number; beside the examples, both know the edit itself."""
        sizes = whole(request.numbers or SIZES, "a number of examples", least=0)
        return [
            *(Variant(f"{IKE}, {size}", {"ike": demonstrations(size)}, INTRINSIC_IKE) for size in sizes),
            *(Variant(f"{LATENT}, {size}", states(size, request.spec.settings)) for size in sizes),
        ]

    def show(self, lab: Lab, measurements: Sequence[Measurement]) -> Findings:
        """Scores against the number of examples, and what these cost."""
        view, variants = first_view(lab), {variant.name: variant for variant in self.variants(lab.request)}
        lines: dict[str, dict[float, Scores]] = {IKE: {}, LATENT: {}}
        tokens: dict[str, dict[float, float]] = {IKE: {}, LATENT: {}}
        seconds: dict[str, dict[float, float]] = {IKE: {}, LATENT: {}}
        costs: dict[str, Cost] = {}
        for m in measurements:
            method, _, size = m.method.rpartition(", ")
            costs[m.method] = cost = cost_of(lab, variants[m.method], m.header.spec)
            lines[method][int(size)] = scores_of(m, view)
            tokens[method][int(size)], seconds[method][int(size)] = cost.prompt_tokens, cost.ask_seconds
        x, spec = "demonstrations, or states of the memory", measurements[0].header.spec
        what = told(lab, measurements[0], "Scores and the number of examples (Figure 4a)")
        costing = f"Length of prompts, and time to answer. {spec.model} ({spec.dtype}) on {spec.device}"
        axes = ("prompt, tokens", "asking, seconds")
        return Findings(
            tables=[cost_table(measurements, costs)],
            drawings=[
                Drawing(self.name, what, curves(lines, x, view, even=True)),
                Drawing(f"{self.name}_cost", costing, pair_of_axes(tokens, seconds, x, *axes)),
            ],
        )


def demonstrations(count: int) -> dict[str, int]:
    """So many demonstrations of `ike`, of the three kinds in the proportions of its own setting (3 : 12 : 17)."""
    kinds = ("n_copy", "n_update", "n_retain")
    usual = {kind: IKEConfig.model_fields[kind].default for kind in kinds}
    shares = {kind: count * usual[kind] / sum(usual.values()) for kind in kinds}
    found = {kind: int(share) for kind, share in shares.items()}
    for kind in sorted(kinds, key=lambda kind: found[kind] - shares[kind])[: count - sum(found.values())]:
        found[kind] += 1  # the largest remainders
    return found


def states(count: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """So many states of other facts in the memory, all of them retrieved beside the edit's own."""
    config = UniKEConfig.parse(dict(settings))
    memory = config.memory
    own = (config.pairs.n if memory.entry == "every" else 1) if memory.own_entry else 0
    return {"ablation": "no_collaboration", "memory.size": count, "memory.k": max(1, count + own)}


def pair_of_axes(
    left: Mapping[str, Mapping[float, float]], right: Mapping[str, Mapping[float, float]], x: str, y: str, other_y: str
) -> Figure:
    """Two quantities against one number, at even distances: one on the left, the other, dashed, on the right.

    Args:
        left: Name to number to value.
        right: The same names and numbers.
        x: What the numbers are.
        y: The quantity on the left.
        other_y: That on the right.
    """
    numbers = sorted({number for line in left.values() for number in line})
    with styled():
        figure = Figure(figsize=(5.5, 3.0), layout="constrained")
        axes = figure.add_subplot()
        other = axes.twinx()
        for scale, lines, dash, quantity in ((axes, left, "-", y), (other, right, "--", other_y)):
            for index, (name, line) in enumerate(lines.items()):
                places = [numbers.index(number) for number in line]
                style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": dash}
                label = f"{name}: {quantity}"
                scale.plot(places, list(line.values()), markersize=4, linewidth=1, label=label, **style)
            scale.set_ylabel(quantity)
            scale.set_ylim(bottom=0)
        other.spines["right"].set_visible(True)
        axes.set_xticks(range(len(numbers)), [f"{number:g}" for number in numbers])
        axes.set_xlabel(x)
        legend(figure, columns=2)
        return figure
