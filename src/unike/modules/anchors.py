"""Inputs an edit should not touch: what they look like to the feed-forward networks of a backbone."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from unike.backbones.base import Backbone
from unike.hooks import trace
from unike.types import IGNORE, Query, SplitState


class Anchors:
    """A fixed set of unrelated queries, read once for each backbone.

    Args:
        queries: Questions with and without images that have nothing to do with the edits to come.
    """

    def __init__(self, queries: Sequence[Query]) -> None:
        self.queries = tuple(queries)
        self._read: WeakKeyDictionary[Backbone, dict[int, Tensor]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self.queries)

    def ffn_inputs(self, backbone: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
        """The inputs of each layer's feed-forward network, ``[M, D]`` fp32: every prompt position of every query."""
        known = self._read.setdefault(backbone, {})
        missing = [layer for layer in layers if layer not in known]
        if missing:
            parts: dict[int, list[Tensor]] = {layer: [] for layer in missing}
            for with_image in (True, False):
                group = [q for q in self.queries if (q.image is not None) is with_image]
                for start in range(0, len(group), 16):
                    batch = backbone.encode(group[start : start + 16])
                    state = backbone.run_to_split(batch, min(missing, key=backbone.layer_index))
                    real = batch.inputs["attention_mask"].bool() & (batch.labels == IGNORE)
                    for layer, q in ffn_inputs(backbone, state, missing).items():
                        parts[layer].append(q[real].float())
            known.update({layer: torch.cat(found) for layer, found in parts.items()})
        return {layer: known[layer] for layer in layers}


@torch.no_grad()
def ffn_inputs(backbone: Backbone, state: SplitState, layers: Sequence[int]) -> dict[int, Tensor]:
    """What the feed-forward networks of some layers read when a forward pass is finished: ``[B, S, D]`` each."""
    sites = [backbone.ffn(layer).inputs for layer in layers]
    with trace(sites) as records:
        backbone.run_from_split(state, positions=torch.zeros_like(state.labels, dtype=torch.bool))
    return {layer: record.input.reshape(state.hidden.shape) for layer, record in zip(layers, records, strict=True)}
