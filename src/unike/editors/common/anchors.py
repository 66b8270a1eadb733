"""Inputs an edit should not touch: what they look like to the feed-forward networks of a backbone."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import UNEDITED, Acting
from unike.backbones.forward.hooks import trace
from unike.backbones.forward.split import IGNORE, SplitState
from unike.core.memo import MemoOf
from unike.data.leaks import content_hash
from unike.data.queries import Query


class Anchors:
    """A fixed set of unrelated queries, read once for each backbone.

    Args:
        queries: Questions with and without images that have nothing to do with the edits to come.
    """

    def __init__(self, queries: Sequence[Query]) -> None:
        self.queries = tuple(queries)
        self._inputs: MemoOf[int, Tensor] = MemoOf()

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the questions and their pictures.

        Raises:
            UnikeError: A picture cannot be read.
        """
        asked = [[query.prompt, query.image and content_hash(query.image)] for query in self.queries]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def ffn_inputs(self, backbone: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
        """The inputs of each layer's feed-forward network, ``[M, D]`` fp32: every prompt position of every query.

        They are read once, from the model without edits, whatever is attached.
        """
        indices = {layer: backbone.layer_index(layer) for layer in layers}
        read = self._inputs.of(backbone).get_all(sorted(indices.values()), partial(self._read_layers, backbone))
        return {layer: read[index] for layer, index in indices.items()}

    def _read_layers(self, backbone: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
        parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for with_image in (True, False):
            group = [q for q in self.queries if (q.image is not None) is with_image]
            for start in range(0, len(group), 16):
                batch = backbone.encode(group[start : start + 16])
                state = backbone.run_to_split(batch, min(layers), UNEDITED)
                real = batch.inputs["attention_mask"].bool() & (batch.labels == IGNORE)
                for layer, q in ffn_inputs(backbone, state, layers, UNEDITED).items():
                    parts[layer].append(q[real].float())
        return {layer: torch.cat(found) for layer, found in parts.items()}


@torch.no_grad()
def ffn_inputs(
    backbone: Backbone, state: SplitState, layers: Sequence[int], acting: Acting | None = None
) -> dict[int, Tensor]:
    """What the feed-forward networks of some layers read when a forward pass is finished: ``[B, S, D]`` each."""
    sites = [backbone.ffn(layer).inputs for layer in layers]
    with trace(sites) as records:
        backbone.run_from_split(state, torch.zeros_like(state.labels, dtype=torch.bool), acting)
    return {layer: record.input.reshape(state.hidden.shape) for layer, record in zip(layers, records, strict=True)}
