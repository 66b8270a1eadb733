"""Figure 5a: states behind true and false answers, as they are and in the spaces that the encoders make of them.

States are those that `unike prepare` kept. A t-SNE shows what is near what, not how well a line could part it; so the
accuracy of a linear probe stands beside each picture. It says whether a space knows truth only on answers that neither
probe nor encoder has seen, which `unike prepare` has measured with encoders trained without them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unike.errors import UnikeError
from unike.metrics import normalise
from unike.modules.disentangle import probe_accuracy, split_by_answer
from unike.modules.knowledge import Knowledge, as_attention_output, evenly, knowledge_of
from unike.report import Table
from unike.report.figures import Drawing, clouds
from unike.report.tables import Cell
from unike.studies.base import UNIKE, Lab, Outcome, Study, Variant, whole

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
        if lab.request.count is not None and lab.request.count < 5:
            raise UnikeError(f"--count {lab.request.count} is too few states for a picture; show at least 5")

    def conduct(self, lab: Lab) -> Outcome:
        """Encode the states of each layer, probe them, and lay them out in a plane."""
        editor = lab.editor(Variant(UNIKE))
        knowledge = knowledge_of(lab.backbone, editor.config.knowledge)
        layers = whole(lab.request.numbers or tuple(knowledge.layers), "a layer", least=-1000)
        chosen = evenly(len(knowledge), lab.request.count or STATES)
        pictures: dict[str, dict[str, dict[str, Any]]] = {}
        rows: list[tuple[str, tuple[Cell, ...]]] = []
        numbers: list[dict[str, Any]] = []
        for number, layer in enumerate(layers):
            lab.progress("laying out layers", number, len(layers))
            spaces = encoded(lab, knowledge, layer)
            probes = probed(knowledge, layer, spaces)
            rows += [(f"layer {layer}, {SPACES[name]}", cells(probe)) for name, probe in probes.items()]
            measured = ("unseen", "n_unseen", "known", "n_known")
            numbers += [
                {"layer": layer, "space": SPACES[name], **dict(zip(measured, probe, strict=True))}
                for name, probe in probes.items()
            ]
            pictures[f"layer {layer}"] = {
                title(name, probes[name]): laid_out(pos[chosen], neg[chosen], lab.request.seed)
                for name, (pos, neg) in spaces.items()
            }
        lab.progress("laying out layers", len(layers), len(layers))
        source = knowledge.description["backbone"]
        caption = (
            f"t-SNE of states behind true and false answers, raw and encoded (Figure 5a). {source['source']} "
            f"({source['fingerprint']}), {len(chosen)} of {len(knowledge)} triplets of its knowledge "
            f"({knowledge.fingerprint}), seed {lab.request.seed}; probe: accuracy of a linear probe in percent on "
            "answers that neither it nor the encoder has seen, chance is 50. Axes have no unit"
        )
        notes = (
            "Accuracy in percent, chance is 50. unseen: answers that neither probe nor encoder has seen, measured by "
            "unike prepare with encoders trained without them (n states); known to the encoder: the probe has not seen "
            "them, the encoder, the one that is in use, has. The raw space has no encoder.",
        )
        heads = ("unseen", "n", "known to the encoder", "n ")
        table = Table("Linear probes for truth", (("", heads),), tuple(rows), notes, of="space")
        return Outcome(tables=[table], drawings=[Drawing(self.name, caption, clouds(pictures))], numbers=numbers)


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


def probed(
    knowledge: Knowledge, layer: int, spaces: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[float | None, int, float | None, int]]:
    """For each space: accuracy and number of states on unseen answers, then on those that the encoder has seen."""
    report = knowledge.description.get("report", {}).get("layers", {}).get(str(layer), {}).get("probe", {})
    answers = [[normalise(getattr(t, side)) for t in knowledge.triplets] for side in ("positive", "negative")]
    try:
        split = split_by_answer(answers[0][: len(knowledge)], answers[1][: len(knowledge)])
    except UnikeError:  # a few triplets make a memory, but no test
        return {name: (report.get(name), report.get("n", 0), None, 0) for name in spaces}
    found = {name: probe_accuracy(*pair, split) for name, pair in spaces.items()}
    return {name: (report.get(name), report.get("n", 0), *found[name]) for name in spaces}


def cells(probe: tuple[float | None, int, float | None, int]) -> tuple[Cell, ...]:
    """A row of the table."""
    texts = ("n/a" if part is None else f"{100 * part:.1f}" if isinstance(part, float) else str(part) for part in probe)
    return tuple(map(Cell, texts))


def title(name: str, probe: tuple[float | None, int, float | None, int]) -> str:
    """Of a panel."""
    unseen = "n/a" if probe[0] is None else f"{100 * probe[0]:.0f} %"
    return f"{SPACES[name]} (probe {unseen})"


def laid_out(pos: Tensor, neg: Tensor, seed: int) -> dict[str, Any]:
    """A t-SNE of true and false answers together: name of the cloud to ``[n, 2]``."""
    from sklearn.manifold import TSNE

    states = torch.cat([pos, neg]).float().cpu().numpy()
    perplexity = min(30.0, (len(states) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(states)
    return {"true answers": points[: len(pos)], "false answers": points[len(pos) :]}
