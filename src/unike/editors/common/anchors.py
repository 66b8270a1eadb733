"""Inputs an edit should not touch: what they look like to the feed-forward networks of a backbone."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import UNEDITED, Acting
from unike.backbones.forward.hooks import trace
from unike.backbones.forward.split import IGNORE, SplitState
from unike.backbones.given import given_queries
from unike.core import home
from unike.core.errors import UnikeError
from unike.core.files import SealedFolder
from unike.core.folders import replace_folder
from unike.core.memo import MemoOf
from unike.core.progress import Progress, silent
from unike.core.version import __version__
from unike.data.leaks import content_hash
from unike.data.queries import Query

TOGETHER = 16
"""Questions that are read in one pass."""


class Anchors:
    """A fixed set of unrelated queries, read once for each backbone.

    Args:
        queries: Questions with and without images that have nothing to do with the edits to come.
        kept: Whether what was read stays on disk for the next process, see `KeptStates`.
    """

    def __init__(self, queries: Sequence[Query], *, kept: bool = False) -> None:
        self.queries = tuple(given_queries(queries))
        self.kept = kept
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

    def ffn_inputs(self, backbone: Backbone, layers: Sequence[int], progress: Progress = silent) -> dict[int, Tensor]:
        """The inputs of each layer's feed-forward network, ``[M, D]`` fp32: every prompt position of every query.

        They are read once, from the model without edits, whatever is attached.
        """
        indices = {layer: backbone.layer_index(layer) for layer in layers}
        make = partial(self._read_layers, backbone, progress)
        read = self._inputs.of(backbone).get_all(sorted(indices.values()), make)
        return {layer: read[index] for layer, index in indices.items()}

    def _read_layers(self, backbone: Backbone, progress: Progress, layers: Sequence[int]) -> dict[int, Tensor]:
        kept = KeptStates(backbone, self.fingerprint, layers) if self.kept else None
        found = kept.read() if kept else None
        if found is None:
            found = self._run_layers(backbone, progress, layers)
            if kept:
                kept.write(found)
        return found

    def _run_layers(self, backbone: Backbone, progress: Progress, layers: Sequence[int]) -> dict[int, Tensor]:
        parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        done = 0
        for with_image in (True, False):
            group = [q for q in self.queries if (q.image is not None) is with_image]
            for start in range(0, len(group), TOGETHER):
                progress("reading unrelated questions", done, len(self))
                part = group[start : start + TOGETHER]
                done += len(part)
                batch = backbone.encode(part)
                state = backbone.run_to_split(batch, min(layers), UNEDITED)
                real = batch.inputs["attention_mask"].bool() & (batch.labels == IGNORE)
                for layer, q in ffn_inputs(backbone, state, layers, UNEDITED).items():
                    parts[layer].append(q[real].float())
        progress("reading unrelated questions", done, len(self))
        return {layer: torch.cat(found) for layer, found in parts.items()}


class KeptStates:
    """What was read of a set of anchors, in a folder of ``UNIKE_HOME/anchors``, which may be deleted at any time.

    It is found by everything that the numbers depend on: another model, question, picture, layer, precision, kind of
    device or version of a library has another folder, so what is read is what would be computed.

    Args:
        backbone: The model.
        anchors: Fingerprint of the questions.
        layers: Their indices, counted from 0.
    """

    LARGEST = 256 * 2**20
    """Bytes; what takes more is read anew."""

    SAVED = SealedFolder("reading of anchors", "anchors.json", "anchors.safetensors", version=1, keys=frozenset({"of"}))

    def __init__(self, backbone: Backbone, anchors: str, layers: Sequence[int]) -> None:
        self.device = backbone.device
        self.dtype = backbone.dtype
        self.layers = list(layers)
        self.made_from = {
            "backbone": backbone.fingerprint(),
            "anchors": anchors,
            "layers": self.layers,
            "dtype": str(backbone.dtype),
            "device": backbone.device.type,
            "attention": str(getattr(backbone.text_config, "_attn_implementation", None)),
            "versions": [__version__, torch.__version__, transformers.__version__],
        }
        name = hashlib.sha256(json.dumps(self.made_from, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = home.folder() / "anchors" / name

    def read(self) -> dict[int, Tensor] | None:
        """``[M, D]`` fp32 for each layer; None if they are not there, or damaged."""
        try:
            described, content = self.SAVED.read(self.folder)
            tensors = load(content) if described["of"] == self.made_from else {}
        except (UnikeError, SafetensorError):
            return None
        layers = {str(layer): layer for layer in self.layers}
        if tensors.keys() != layers.keys():
            return None
        return {layers[name]: tensor.to(self.device).float() for name, tensor in tensors.items()}

    def write(self, found: dict[int, Tensor]) -> None:
        """Keep them in the model's own dtype, which they have come in, unless they are large or the disk does not."""
        tensors = {str(layer): tensor.to("cpu", self.dtype).contiguous() for layer, tensor in found.items()}
        if sum(tensor.nbytes for tensor in tensors.values()) > self.LARGEST:
            return
        with suppress(UnikeError):  # a full or read-only disk costs the next process some seconds
            files = self.SAVED.files({"of": self.made_from}, save(tensors))
            replace_folder(self.folder, files, known_by=self.SAVED.description)


@torch.no_grad()
def ffn_inputs(
    backbone: Backbone, state: SplitState, layers: Sequence[int], acting: Acting | None = None
) -> dict[int, Tensor]:
    """What the feed-forward networks of some layers read when a forward pass is finished: ``[B, S, D]`` each."""
    sites = [backbone.ffn(layer).inputs for layer in layers]
    with trace(sites) as records:
        backbone.run_from_split(state, torch.zeros_like(state.labels, dtype=torch.bool), acting)
    return {layer: record.input.reshape(state.hidden.shape) for layer, record in zip(layers, records, strict=True)}
