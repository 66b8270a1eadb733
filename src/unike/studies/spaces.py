"""Figure 5a: states behind true and false answers, as they are and in the spaces that the encoders make of them.

States are those that `unike prepare` kept. A t-SNE shows what is near what, not how well a line could part it; so the
accuracy of a linear probe stands beside each picture. It says whether a space knows truth only on answers that neither
probe nor encoder has seen, which `unike prepare` has measured with encoders trained without them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from unike.core.errors import UnikeError
from unike.core.folders import check_writable
from unike.data.matching import normalise
from unike.data.sampling import evenly
from unike.editors.unike.knowledge import Knowledge, as_attention_output, knowledge_of
from unike.editors.unike.prepare.probe import probe_accuracy, split_by_answer
from unike.report import Table
from unike.report.cells import Cell
from unike.report.drawing import COLOURS, Drawing, legend, styled
from unike.studies.base import Findings, Study, whole
from unike.studies.lab import UNIKE, Lab, Variant

STATES = 300
"""Triplets in a picture, unless another number is asked for."""

SPACES = {"h": "raw", "f": "truthfulness", "g": "semantic"}
"""As the preparation's report has them."""


class Spaces(Study):
    """The raw space, that of the truthfulness encoder and that of the semantic encoder, for each chosen layer."""

    name: ClassVar[str] = "spaces"
    title: ClassVar[str] = "Knowledge spaces (Figure 5a)"
    asks: ClassVar[str] = (
        "Does one encoder part true from false answers, and the other bring them together by what they are about?"
    )

    def check(self, lab: Lab) -> None:
        """Layers are whole numbers, and two triplets are no picture."""
        whole(lab.request.numbers, "a layer", least=-1000)
        check_writable(lab.out)
        if lab.request.count is not None and lab.request.count < 5:
            raise UnikeError(f"--count {lab.request.count} is too few states for a picture; show at least 5")

    def conduct(self, lab: Lab) -> Findings:
        """Encode the states of each layer, probe them, and lay them out in a plane."""
        editor = lab.editor(Variant(UNIKE))
        knowledge = knowledge_of(lab.backbone, editor.config.knowledge)
        layers = whole(lab.request.numbers or tuple(knowledge.layers), "a layer", least=-1000)
        chosen = evenly(len(knowledge), lab.request.count or STATES)
        pictures: dict[str, dict[str, dict[str, Any]]] = {}
        probes: list[ProbeResult] = []
        for number, layer in enumerate(layers):
            lab.progress("laying out layers", number, len(layers))
            spaces = encoded(lab, knowledge, layer)
            found = probed(knowledge, layer, spaces)
            probes += found.values()
            pictures[f"layer {layer}"] = {
                found[name].title: laid_out(pos[chosen], neg[chosen], lab.request.spec.seed)
                for name, (pos, neg) in spaces.items()
            }
        lab.progress("laying out layers", len(layers), len(layers))
        source = knowledge.description["backbone"]
        caption = (
            f"t-SNE of states behind true and false answers, raw and encoded (Figure 5a). {source['source']} "
            f"({source['fingerprint']}), {len(chosen)} of {len(knowledge)} triplets of its knowledge "
            f"({knowledge.fingerprint}), seed {lab.request.spec.seed}; probe: accuracy of a linear probe in percent on "
            "answers that neither it nor the encoder has seen, chance is 50. Axes have no unit"
        )
        return Findings(
            tables=[probe_table(probes)],
            drawings=[Drawing(self.name, caption, clouds(pictures))],
            numbers=[asdict(probe) for probe in probes],
        )


@dataclass(frozen=True)
class ProbeResult:
    """How well a linear probe tells true from false answers in one space, as shares; chance is 0.5.

    Attributes:
        layer: Whose states.
        space: Of `SPACES`.
        unseen: On answers that neither probe nor encoder has seen, as `unike prepare` measured it with encoders trained
            without them; None if there were too few.
        n_unseen: States that was measured on.
        known: On answers that the probe has not seen, but the encoder has, the one that is in use.
        n_known: States that was measured on.
    """

    layer: int
    space: str
    unseen: float | None
    n_unseen: int
    known: float | None
    n_known: int

    @property
    def title(self) -> str:
        """Of a panel."""
        return f"{self.space} (probe {'n/a' if self.unseen is None else f'{100 * self.unseen:.0f} %'})"


@torch.no_grad()
def encoded(lab: Lab, knowledge: Knowledge, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
    """States behind true and false answers in each space, ``[T, d]`` each; ``g`` reads what attention makes of them."""
    known, site = knowledge.layer(layer), lab.backbone.attention(layer)
    pos, neg = known.h_pos, known.h_neg
    return {
        "h": (pos, neg),
        "f": (known.truthfulness(pos), known.truthfulness(neg)),
        "g": (known.semantic(as_attention_output(site, pos)), known.semantic(as_attention_output(site, neg))),
    }


def probed(knowledge: Knowledge, layer: int, spaces: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, ProbeResult]:
    """The probes of each space of a layer."""
    prepared = next(index for index, known in knowledge.layers.items() if known is knowledge.layer(layer))
    report = knowledge.description.get("report", {}).get("layers", {}).get(str(prepared), {}).get("probe", {})
    triplets = knowledge.triplets[: len(knowledge)]
    known: dict[str, tuple[float | None, int]] = dict.fromkeys(spaces, (None, 0))
    try:
        folds = split_by_answer([normalise(t.positive) for t in triplets], [normalise(t.negative) for t in triplets])
        known = {name: probe_accuracy(*pair, folds) for name, pair in spaces.items()}
    except UnikeError:
        pass  # a few triplets make a memory, but no test
    return {
        name: ProbeResult(layer, SPACES[name], report.get(name), report.get("n", 0), *known[name]) for name in spaces
    }


def probe_table(probes: Sequence[ProbeResult]) -> Table:
    """Layers and spaces by what the answers are known to."""
    rows = []
    for probe in probes:
        parts = ((probe.unseen, probe.n_unseen), (probe.known, probe.n_known))
        cells = [("n/a" if share is None else f"{100 * share:.1f}", str(n)) for share, n in parts]
        rows.append((f"layer {probe.layer}, {probe.space}", tuple(Cell(text) for pair in cells for text in pair)))
    notes = (
        "Accuracy of a linear probe in percent; chance is 50. unseen: answers that neither probe nor encoder has seen, "
        "as unike prepare measured it with encoders trained without them. known: the probe has not seen them, but the "
        "encoder, the one that is in use, has. The raw space has no encoder.",
    )
    columns = (("unseen:", ("percent", "n")), ("known:", ("percent", "n")))
    return Table("Linear probes for truth", columns, tuple(rows), notes, of="space")


def laid_out(pos: Tensor, neg: Tensor, seed: int) -> dict[str, Any]:
    """A t-SNE of true and false answers together: name of the cloud to ``[n, 2]``."""
    from sklearn.manifold import TSNE

    states = torch.cat([pos, neg]).float().cpu().numpy()
    perplexity = min(30.0, (len(states) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(states)
    return {"true answers": points[: len(pos)], "false answers": points[len(pos) :]}


def clouds(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Points in a plane: a row of panels each with one or more clouds.

    Args:
        rows: Title of a row to title of a panel to name of a cloud to its points ``[n, 2]``. Axes have no unit.
    """
    with styled():
        columns = max(map(len, rows.values()))
        figure = Figure(figsize=(2.4 * columns, 0.5 + 2.3 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, (row, panel) in zip(grid, rows.items(), strict=True):
            line[0].set_ylabel(row)
            for axes, (title, found) in zip(line, panel.items(), strict=True):
                for index, (name, points) in enumerate(found.items()):
                    style: dict[str, Any] = {"color": COLOURS[index], "marker": "ox^v"[index % 4], "linewidths": 0.8}
                    axes.scatter(*points.T, s=8, alpha=0.7, label=name, **style)
                axes.set_title(title, fontsize=8)
                axes.set_xticks([])
                axes.set_yticks([])
        legend(figure)
        return figure
