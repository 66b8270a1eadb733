"""In-context knowledge of one backbone: states of triplets, the encoders trained on them, and where it all came from.

``unike prepare`` makes it (Appendix C); editors read the memory (Eq. 2), alpha's encoder (Eq. 7), and zeta (Eq. 6)
from it. On disk it is a folder with ``knowledge.json`` and ``knowledge.safetensors``, never a pickle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import SEEN
from unike.backbones.loading import DTYPES
from unike.backbones.sites import AttentionSite
from unike.core import home
from unike.core.errors import UnikeError
from unike.core.files import SealedFolder
from unike.core.folders import replace_folder
from unike.core.memo import MemoOf, file_stamp
from unike.core.schema import checked
from unike.data.leaks import ImageHashes, Trace
from unike.data.sampling import evenly
from unike.editors.unike.collaboration import DynamicAlpha
from unike.editors.unike.gate import Gate
from unike.editors.unike.injection import project_memory
from unike.editors.unike.knowledge_files import SavedKnowledge, below, check_gate, check_layer
from unike.editors.unike.memory import LatentMemory, SiteName
from unike.editors.unike.spaces import Encoder

CONFIG_FILE, TENSOR_FILE = "knowledge.json", "knowledge.safetensors"
SAVED = SealedFolder(
    "knowledge",
    CONFIG_FILE,
    TENSOR_FILE,
    version=6,  # 1: one gate for all stacks; 2: edits competed by `p`; 3: it read states; 4: no parts; 5: no hubs
    keys=frozenset({"backbone", "dtype", "layers", "gate", "triplets"}),
)


@dataclass(frozen=True)
class Triplet(Trace):
    """A question about a picture that was learned from, its answer, and what the unedited backbone says instead.

    Args:
        prompt: The question.
        image: Of its picture.
        positive: The true answer.
        negative: The false one.
        tag: Why the backbone may be wrong (Appendix C, Figure 6), or the empty string.
    """

    image: ImageHashes
    positive: str
    negative: str
    tag: str = ""

    def to_json(self) -> dict[str, Any]:
        """As files keep it."""
        return super().to_json() | {"positive": self.positive, "negative": self.negative, "tag": self.tag}

    def values(self) -> list[str]:
        """Everything it says, in a fixed order: what is made from it is known by this."""
        return list(self.to_json().values())


@dataclass(frozen=True, eq=False)
class LayerKnowledge:
    """What one layer knows; T triplets, all tensors fp32.

    Args:
        h_sem: ``[T, D]``, attention inputs at the last prompt token ``p``.
        h_pos: ``[T, D]``, attention inputs at the last token of the true answer.
        h_neg: ``[T, D]``, the same of the false answer.
        raw_pos: ``[T, D]``, attention outputs where ``h_pos`` was read: values of a memory with ``site="raw"``.
        mean: ``[D]``, of attention inputs at ``p``, triplets and questions without a picture weighing the same.
        truthfulness: ``f = Enc_tru``, from attention inputs to ``R^d``.
        semantic: ``g = Enc_sem``, from attention outputs to ``R^D``; trained for a memory with ``site="projected"``.
        w_zeta: ``[D, d]``, maps ``zeta`` to what a feed-forward network writes.
        zeta: ``[d]``, from false to true.
        w_semantic: ``[D, D]``, maps ``semantic_zeta`` likewise: a control (Figure 4c).
        semantic_zeta: ``[D]``, ``zeta`` by ``g`` instead of ``f``.
        ffn_norm: A scalar, the mean norm of the feed-forward network's output behind true answers: the scale of what
            is written.
    """

    h_sem: Tensor
    h_pos: Tensor
    h_neg: Tensor
    raw_pos: Tensor
    mean: Tensor
    truthfulness: Encoder
    semantic: Encoder
    w_zeta: Tensor
    zeta: Tensor
    w_semantic: Tensor
    semantic_zeta: Tensor
    ffn_norm: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, an encoder's weights as ``semantic.inner.weight``."""
        tensors: dict[str, Tensor] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Encoder):
                tensors |= {f"{part.name}.{name}": weight for name, weight in value.state_dict().items()}
            else:
                tensors[part.name] = value
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The reverse of `tensors`, from any float dtype."""
        values: dict[str, Any] = {}
        for part in fields(cls):
            if part.type is Encoder:
                prefix = f"{part.name}."
                weights = {
                    name.removeprefix(prefix): t.float() for name, t in tensors.items() if name.startswith(prefix)
                }
                values[part.name] = Encoder.from_weights(weights)
            else:
                values[part.name] = tensors[part.name].float()
        return cls(**values)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.from_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def rounded(self, dtype: torch.dtype) -> Self:
        """With the precision it is stored in.

        Raises:
            UnikeError: A state is too large for it.
        """
        tensors = {name: tensor.to(dtype) for name, tensor in self.tensors().items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise UnikeError("states of this backbone do not fit into float16; set store_dtype=bfloat16")
        return self.from_tensors(tensors)


@dataclass(frozen=True, eq=False)
class Knowledge:
    """In-context knowledge of one backbone.

    Args:
        layers: By index, negative ones counting from the top.
        triplets: The first T in the order of every layer's states; those behind them were only learned from.
        gate: Tells which inputs an edit is about, or None.
        description: JSON values: ``backbone`` (source, fingerprint, template, n_layers), ``dtype`` that tensors are
            stored in, and whatever says how it was made.
    """

    layers: Mapping[int, LayerKnowledge]
    triplets: Sequence[Triplet]
    description: Mapping[str, Any]
    gate: Gate | None = None

    def __len__(self) -> int:
        """T."""
        return len(next(iter(self.layers.values())).h_sem)

    def __repr__(self) -> str:
        source = self.description["backbone"]["source"]
        return f"{type(self).__name__}({len(self)} triplets, layers {sorted(self.layers)}, for {source!r})"

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone, or a template, whose states are not these.

        Raises:
            UnikeError: It was made for another.
        """
        made_for = self.description["backbone"]
        known = backbone.is_known_as(made_for["fingerprint"])
        if made_for["template"] != backbone.template and (known or made_for["source"] == backbone.source):
            raise UnikeError(
                f"the knowledge was made with the template {made_for['template']!r}, not with {backbone.template!r}; "
                f"run: unike prepare {backbone.as_options}"
            )
        if not known:
            raise UnikeError(
                f"the knowledge was made for {made_for['source']!r} ({made_for['fingerprint']}), not for "
                f"{backbone.source!r} ({backbone.fingerprint()}); run unike prepare for that model"
            )
        width = next(iter(self.layers.values())).h_sem.shape[1]
        if width != backbone.width or (self.gate is not None and len(self.gate.metric.mean) != SEEN * width):
            raise UnikeError(
                f"the knowledge of {made_for['source']!r} is {width} numbers wide, and {backbone.source!r} "
                f"{backbone.width}; run unike prepare anew"
            )

    # ------------------------------------------------------------------ what editors need

    def layer(self, i: int) -> LayerKnowledge:
        """What layer ``i`` knows, counted from 0 or, if negative, from the top.

        Raises:
            UnikeError: That layer was not prepared.
        """
        n_layers = self.description["backbone"]["n_layers"]
        for index, known in self.layers.items():
            if index == i or index % n_layers == i:
                return known
        there = ", ".join(map(str, self.layers))
        raise UnikeError(
            f"the knowledge holds nothing of layer {i}, only of {there}; run unike prepare with that layer"
        )

    def memory(
        self, layer: int, site: SiteName = "projected", k_entries: int | None = None, centred: bool = True
    ) -> LatentMemory:
        """The latent memory of a layer.

        Args:
            layer: Which.
            site: As in `LatentInjection`.
            k_entries: Use only so many triplets, evenly spread over all.
            centred: Whether states are compared without their mean.

        Raises:
            UnikeError: That layer was not prepared.
        """
        known = self.layer(layer)
        values = known.h_pos if site == "projected" else known.raw_pos
        rows = torch.tensor(evenly(len(self), k_entries), dtype=torch.long, device=values.device)
        return LatentMemory(known.h_sem[rows], values[rows], mean=known.mean if centred else None)

    def dynamic_alpha(self, layer: int, slope: float = 1.0, offset: float = 0.0) -> DynamicAlpha:
        """Eq. 7's alpha with the semantic encoder of a layer, calibrated as `DynamicAlpha` says.

        Raises:
            UnikeError: That layer was not prepared.
        """
        return DynamicAlpha(self.layer(layer).semantic, slope, offset)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        moved = {index: layer.to(device) for index, layer in self.layers.items()}
        return type(self)(moved, self.triplets, self.description, self.gate and self.gate.to(device))

    # ------------------------------------------------------------------ files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``knowledge.json`` and ``knowledge.safetensors``; knowledge already there is replaced as a whole.

        Raises:
            UnikeError: The folder cannot be written, or holds something else.
        """
        replace_folder(Path(folder), self.files(), known_by=CONFIG_FILE)

    def files(self) -> dict[str, bytes]:
        """Both files, name to content."""
        return SAVED.files(*self._halves())

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the content."""
        return str(SAVED.sign(*self._halves())["sha256"])[:16]

    def _halves(self) -> tuple[dict[str, Any], bytes]:
        """The description, and the tensors in the dtype they are stored in."""
        described = {
            **self.description,
            "layers": list(self.layers),
            "gate": self.gate and self.gate.settings(),
            "triplets": [triplet.to_json() for triplet in self.triplets],
        }
        dtype = DTYPES[self.description["dtype"]]
        tensors = {
            f"{index}.{name}": tensor.to("cpu", dtype).contiguous()
            for index, layer in self.layers.items()
            for name, tensor in layer.tensors().items()
        }
        if self.gate:
            tensors |= {f"gate.{name}": tensor.to("cpu", dtype) for name, tensor in self.gate.tensors().items()}
        return described, save(tensors)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            UnikeError: Nothing there, or something that was changed, cut short, or made by a newer version.
        """
        folder = Path(folder)
        described, content = SAVED.read(folder)
        try:
            saved = checked(SavedKnowledge, described)
            tensors = load(content)
            layers = {index: LayerKnowledge.from_tensors(below(f"{index}.", tensors)) for index in saved.layers}
            for index, layer in layers.items():
                check_layer(index, layer, len(saved.triplets), next(iter(layers.values())))
            triplets = tuple(map(Triplet.from_json, described["triplets"]))
            of_gate = {name: tensor.float() for name, tensor in below("gate.", tensors).items()}
            gate = described["gate"] and Gate.of(described["gate"], of_gate)
            if gate:
                check_gate(gate.tensors(), next(iter(layers.values())).h_sem.shape[1])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
            raise SAVED.damaged(folder, repr(error)) from None
        own = ("format", "sha256", "layers", "triplets", "gate")
        return cls(layers, triplets, {key: described[key] for key in described if key not in own}, gate)


# ---------------------------------------------------------------------- where it is found


def place(backbone: Backbone) -> Path:
    """Where the knowledge of a backbone is kept unless another folder is chosen."""
    return backbone.folder_in(home.folder() / "knowledge")


_READ: MemoOf[str | None, Knowledge] = MemoOf()


def knowledge_of(backbone: Backbone, folder: str | Path | None = None) -> Knowledge:
    """The knowledge of a backbone, on its device; read once, and again when other knowledge lies there.

    Args:
        backbone: The model.
        folder: Where to look; None for `place`, and, for a bundled model, what comes with the package.

    Raises:
        UnikeError: There is none, or it was made for another backbone.
    """
    if folder is None:
        key, where = None, place(backbone)
    else:
        key, where = str(folder), Path(folder)

    def read() -> Knowledge:
        knowledge = Knowledge.from_pretrained(where) if folder else _find(backbone)
        knowledge.check(backbone)
        return knowledge.to(backbone.device)

    return _READ.of(backbone).get(key, read, stamp=file_stamp(where / CONFIG_FILE))


def _find(backbone: Backbone) -> Knowledge:
    bundled = resources.files("unike.editors.unike").joinpath("knowledge_data")
    with resources.as_file(bundled) as folder:
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        for where in [place(backbone), *there]:
            if not SAVED.lies_in(where):
                continue
            if backbone.is_known_as(SAVED.describe(where)["backbone"]["fingerprint"]):
                return Knowledge.from_pretrained(where)
    raise UnikeError(
        f"there is no in-context knowledge of {backbone.source!r} yet; run: unike prepare {backbone.as_options}, "
        "or edit with ablation=only_intrinsic"
    )


# ---------------------------------------------------------------------- helpers


def as_attention_output(site: AttentionSite, states: Tensor) -> Tensor:
    """``W_o W_v h``: what the attention returns if it attends to one state alone, the space that ``g`` reads.

    Args:
        site: Whose maps; value heads that serve several query heads are repeated.
        states: ``[T, D]``, attention inputs.

    Returns:
        ``[T, D]`` fp32.
    """
    _, values = project_memory(site, states.unsqueeze(1))  # [T, n_heads, 1, head_dim]
    output: Tensor = site.o_proj.forward(values.flatten(1))
    return output.float()
