"""UniKE: intrinsic key-value pairs and a latent in-context memory, in collaboration (NeurIPS 2024).

At each edited layer, with the attention's input ``x``, the last prompt token ``p`` and the layer's memory of triplets:

1. the memory's entries most like ``x[p]`` are retrieved, and every position attends to them: ``h_know`` (Eq. 8),
2. the self-attention's output ``h_input`` is shifted towards it (Eq. 2, 7)::

       attn_out = (1 - alpha) h_input + alpha h_know,    alpha = cos(Enc_sem(h_know[p]), h_input[p])

3. new pairs stand beside the feed-forward network, their values moved in the direction of truth (Eq. 3, 6)::

       FFN_edit(q) = FFN(q) + relu(q K^T + b) (V + beta zeta'),    zeta' = W_zeta zeta

Only ``K, b, V`` are trained, on the answer's NLL, with the memory active, from ``V = 0``; by default also the values of
the edit's own entry in the memory, without which it has little to say (``train_entry``). The parts lie
beside: `memory` (1 and 2), `pairs` (3), `spaces` (the encoders and zeta), and `knowledge`, what `unike prepare` made of
them for a backbone.

Note:
    Beyond the paper, unless ``paper=True``: the memory's relevance gates *both* halves (`gate_of_pairs`), so that an
    input about something else keeps the unedited model's answer, bit for bit.

Note:
    The paper does not say how keys start. T-Patcher, which it builds on, takes ``k = q_e / |q_e|^2`` for the network's
    input ``q_e`` where a wrong answer token is predicted (``key_init="raw"``); nearly every input activates such a key,
    because the inputs of a layer share a large mean. ``"centred"`` measures from the mean of *anchors*, unrelated
    inputs, ``"whitened"`` also by their covariance ``C``: with ``d = q_e - mean``, ``k ~ C^-1 d`` is the linear
    discriminant between the edit and the anchors. Each is scaled so that ``q_e`` activates its key by 1 and an input
    that is less than ``threshold`` of the way from the mean to ``q_e``, along the key, not at all.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import cycle, target_positions, token_nll
from unike.backbones.forward.hooks import Hooks
from unike.backbones.forward.split import Batch, SplitState
from unike.core.errors import UnikeError
from unike.core.settings import Layers
from unike.data.leaks import ImageHashes, Trace
from unike.data.queries import Query
from unike.editors.base import Edit, Editor, EditorConfig, side_by_side
from unike.editors.common.anchors import ffn_inputs
from unike.editors.common.optimise import optimise
from unike.editors.common.pairs import FFNPatch, PairGate, install_patch, wrong_positions
from unike.editors.unike.gate import Gate, Reading, Relevance
from unike.editors.unike.knowledge import Knowledge, knowledge_of
from unike.editors.unike.memory import (
    Alpha,
    FixedAlpha,
    LatentInjection,
    LatentMemory,
    SiteName,
    current_prefill,
    last_answer_token,
    read_entries,
)

PAPER: dict[str, Any] = {
    "gate": False,
    "centred_retrieval": False,
    "k": 40,
    "entry": "last",
    "train_entry": False,
    "key_init": "raw",
    "threshold": 0.0,
    "everywhere": True,
}
"""What ``paper=True`` changes; other settings still override it."""

GATE_KEYS, GATE_WHOLE, AT_PROMPT, KNOWLEDGE = "gate.keys", "gate.whole", "gate.at_prompt", "knowledge"

PLAIN_ALPHA = 0.1
"""Alpha of the cells of Table 4 that are without collaboration, unless ``fixed_alpha`` is given."""


class UniKEConfig(EditorConfig):
    """Settings of `UniKE`.

    Attributes:
        paper: The paper's method as docs/method.md reads it, without what is beyond it.
        only_intrinsic: New pairs alone (Table 4, row 1).
        only_latent: The memory alone (Table 4, row 2).
        no_collaboration: Both halves with a fixed alpha, without zeta and gate (Table 4, row 4).
        layers: The edited layers, counted from the top when negative (paper: the last four).
        knowledge: Folder of `unike prepare`; None for the one that is found for the backbone.
        n_pairs: N, key-value pairs a layer (paper: 10).
        steps: Adam steps.
        lr: Learning rate of Adam.
        clip: Largest gradient norm of an edit, or None.
        key_init: Where keys start, see above; without anchors all are ``"raw"``.
        shrinkage: Weight of the identity in the covariance of ``"whitened"``: near 0 the sample's own, 1 ``"centred"``.
        threshold: The part of the way to ``q_e`` at which a key begins to fire; ``"raw"`` keys count from the origin.
        noise: Standard deviation, relative to a key, of the noise that makes keys of one position differ.
        locality: Weight of the locality term ``mean(relu(a + margin))`` over the pre-activations ``a`` of anchors.
        margin: How far below zero the locality term pushes those.
        train_keys: Whether keys and biases are trained, or values alone.
        seed: Of the noise and of a random zeta.
        k: K, retrieved entries (paper: 40).
        site: How the memory is read, see `LatentInjection`.
        centred_retrieval: Whether retrieval compares states minus their mean.
        memory_size: Use only so many triplets of the memory; 0 for none.
        own_entry: Whether the edit's own entry is in the memory.
        entry: Where the own entry's values are read: at the ``"last"`` answer token, as those of the others are, or at
            the positions that predict ``"every"`` one.
        train_entry: Whether the own entry's values are trained too.
        fixed_alpha: Alpha for all inputs (Figure 4b); None for Eq. 7's, or, without collaboration, `PLAIN_ALPHA`.
        alpha_slope: Of an affine calibration of Eq. 7's alpha.
        alpha_offset: Of the same.
        literal_eq7: Alpha as the weight of ``h_input``, as Eq. 2 and 7 are printed.
        zeta: The direction that values are moved in (Figure 4c): ``"truthful"`` is the paper's, ``"semantic"`` and
            ``"random"`` have its norm, ``"learned"`` starts at 0 and is trained, which makes it a bias.
        beta: Length of the move, relative to the norm of what the layer's feed-forward network writes.
        gate: Whether relevance scales both halves.
        slack: How much lower a key's threshold is where the question is of the edit's kind.
        rivalry: How far an edit of a stack may be behind the one that is most like an input before it is silent; None
            lets each act by itself. One edit alone has no rivals.
        everywhere: Whether an edit acts on every position, as in the paper, or only from the prompt's last token on.
            Then what was read before that, pictures above all, stays as it was and need not be computed again.
    """

    paper: bool = False
    only_intrinsic: bool = False
    only_latent: bool = False
    no_collaboration: bool = False
    layers: Layers = (-4, -3, -2, -1)
    knowledge: str | None = None
    n_pairs: int = Field(10, ge=1)
    steps: int = Field(20, ge=0)
    lr: float = Field(1e-2, gt=0)
    clip: float | None = Field(1.0, gt=0)
    key_init: Literal["raw", "centred", "whitened"] = "centred"
    shrinkage: float = Field(0.1, ge=1e-4, le=1)
    threshold: float = Field(0.3, ge=0, lt=1)
    noise: float = Field(0.01, ge=0)
    locality: float = Field(0.0, ge=0)
    margin: float = 0.1
    train_keys: bool = True
    seed: int = 0
    k: int = Field(10, ge=1)
    site: SiteName = "projected"
    centred_retrieval: bool = True
    memory_size: int | None = Field(None, ge=0)
    own_entry: bool = True
    entry: Literal["last", "every"] = "every"
    train_entry: bool = True
    fixed_alpha: float | None = Field(None, ge=0, le=1)
    alpha_slope: float = 1.0
    alpha_offset: float = 0.0
    literal_eq7: bool = False
    zeta: Literal["off", "truthful", "semantic", "random", "learned"] = "truthful"
    beta: float = Field(0.01, ge=0)
    gate: bool = True
    slack: float = Field(0.3, ge=0)
    rivalry: float | None = Field(0.1, gt=0)
    everywhere: bool = False

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, settings: Any) -> Any:
        return {**PAPER, **settings} if isinstance(settings, dict) and settings.get("paper") else settings

    @model_validator(mode="after")
    def _one_row_of_table_4(self) -> "UniKEConfig":
        if self.only_intrinsic + self.only_latent + self.no_collaboration > 1:
            raise ValueError("choose one of only_intrinsic, only_latent and no_collaboration")
        return self

    @property
    def collaborates(self) -> bool:
        """Whether zeta, Eq. 7's alpha and the gate take part."""
        return not (self.only_intrinsic or self.only_latent or self.no_collaboration)

    @property
    def has_pairs(self) -> bool:
        """Whether there is an intrinsic half."""
        return not self.only_latent

    @property
    def has_memory(self) -> bool:
        """Whether there is a latent half that does anything."""
        return not self.only_intrinsic and (self.literal_eq7 or self.fixed_alpha != 0)

    @property
    def has_zeta(self) -> bool:
        """Whether values are moved."""
        return self.collaborates and self.zeta != "off"

    @property
    def has_gate(self) -> bool:
        """Whether relevance gates the edit."""
        return self.collaborates and self.gate

    @property
    def needs_knowledge(self) -> bool:
        """Whether a backbone has to be prepared."""
        return not self.only_intrinsic


class UniKEEdit(Edit):
    """What an edit adds to a backbone and its knowledge.

    For each edited layer ``{layer}.keys [B, N, D]``, ``{layer}.bias [B, N]``, ``{layer}.values [B, N, D]``: the pairs;
    ``{layer}.shift [B, 1, D]``: ``beta zeta'``; ``{layer}.own_keys``, ``{layer}.own_values [B, E, D]``: its entries in
    the memory. And ``gate.keys`` and ``gate.whole``, ``[B, 1, D]``: what relevance compares with; ``gate.at_prompt
    [B, N]``: which pairs were made at the end of the prompt; and ``knowledge [B, 8]`` uint8: the fingerprint of the
    knowledge that the edit was made with, because it acts only together with that.
    """

    editor = "unike"
    config_class = UniKEConfig

    def install(self, backbone: Backbone, hooks: Hooks) -> None:
        """Put one edit, or a batch, on a backbone."""
        self.install_stack([self], backbone, hooks)

    @classmethod
    def install_stack(cls, edits: Sequence[Edit], backbone: Backbone, hooks: Hooks) -> None:
        """One injection a layer with the entries of all edits; the pairs of all, each gated by its own relevance."""
        config = cast(UniKEConfig, edits[0].config)
        knowledge = knowledge_of(backbone, config.knowledge) if config.needs_knowledge else None
        if knowledge is not None:
            for edit in edits:
                check_knowledge(edit, knowledge)
        gate = None
        if config.has_gate:
            keys = Reading(*(side_by_side(edits, name) for name in (GATE_KEYS, GATE_WHOLE)))
            gate = gate_of(knowledge).install(keys, backbone, hooks, config.rivalry)
        memories: dict[int, LatentMemory] = {}
        if config.has_memory and knowledge is not None:
            for layer in config.layers:
                memories[layer] = knowledge.memory(layer, config.site, config.memory_size, config.centred_retrieval)
                if config.own_entry:
                    own = (side_by_side(edits, f"{layer}.{part}") for part in ("own_keys", "own_values"))
                    memories[layer] = memories[layer].with_own(*own)
                alpha = alpha_of(knowledge, layer, config)
                injection = LatentInjection(
                    memories[layer], config.k, config.site, alpha, config.literal_eq7, config.everywhere
                )
                eligible = partial(called_upon, gate, memories[layer]) if gate and config.own_entry else None
                injection.install(backbone, layer, hooks, gate and partial(strongest, gate), eligible)
        patches: dict[int, FFNPatch] = {}
        if config.has_pairs:
            for layer in config.layers:
                pair_gate = None
                if gate is not None:
                    pair_gate = partial(gate_of_pairs, gate, side_by_side(edits, AT_PROMPT), config)
                patch, passing = partial(patches.__getitem__, layer), partial(acting, backbone, config)
                install_patch(patch, backbone.ffn(layer), hooks, pair_gate, passing)

        def refresh(*_: Any) -> None:
            for layer in config.layers if config.has_pairs else ():
                patches[layer] = patch_of(edits, layer)
            for layer, memory in memories.items():
                if config.own_entry and config.train_entry:
                    memory.own_values = side_by_side(edits, f"{layer}.own_values")

        refresh()
        if any(tensor.requires_grad for edit in edits for tensor in edit.tensors.values()):
            hooks.add_pre(backbone.text_stack, refresh)  # while they are trained


def fingerprint_of(knowledge: Knowledge) -> Tensor:
    """Eight bytes, ``[8]`` uint8."""
    return torch.tensor(list(bytes.fromhex(knowledge.fingerprint)), dtype=torch.uint8)


def check_knowledge(edit: Edit, knowledge: Knowledge) -> None:
    """Refuse an edit that was made with other knowledge.

    Raises:
        UnikeError: It would act in another way than it was made to.
    """
    made_with = edit.tensors.get(KNOWLEDGE)
    if made_with is None or not (made_with.cpu() == fingerprint_of(knowledge)).all():
        raise UnikeError(
            f"the edit {edit.facts[0].prompt!r} was made with other knowledge of {edit.source!r} than there is now "
            f"({knowledge.fingerprint}); bring that back, or make the edit anew"
        )


def patch_of(edits: Sequence[Edit], layer: int) -> FFNPatch:
    """The pairs of several edits at a layer, their values moved in the direction of truth (Eq. 6)."""
    keys, bias, values = (side_by_side(edits, f"{layer}.{part}") for part in ("keys", "bias", "values"))
    if f"{layer}.shift" in edits[0].tensors:
        shift = side_by_side(edits, f"{layer}.shift")
        values = values + shift.repeat_interleave(values.shape[1] // shift.shape[1], dim=1)
    return FFNPatch(keys, bias, values)


def strongest(gate: Gate) -> Tensor:
    """How far any edit of a stack is called upon, ``[R]``."""
    return gate().amax(dim=1)


def called_upon(gate: Gate, memory: LatentMemory) -> Tensor:
    """Which own entries of G edits may be retrieved, ``[R, G * E]``: those of edits that are called upon at all.

    Questions are of few kinds, so entries of another edit that was asked about in the same words are near, too.
    """
    assert memory.own_keys is not None
    called = gate() > 0
    return called.repeat_interleave(memory.own_keys.shape[1] // called.shape[1], dim=1)


def gate_of_pairs(gate: Gate, at_prompt: Tensor, config: UniKEConfig) -> PairGate:
    """What relevance does to the pairs of G edits.

    A pair whose key was made at the end of the prompt answers a question, so it is scaled by the gate. The others, made
    within the answer, go on where a text has come to the same point: the less a question is of the edit's kind, the
    more it is what the input is about that scales them. A question of that kind lowers the threshold of all.

    Args:
        gate: Of G edits.
        at_prompt: ``[B, G * N]``, 1 for the first sort of pairs and 0 for the others.
        config: For N and the slack.
    """
    question, fact, own = (each.repeat_interleave(config.n_pairs, dim=1) for each in gate.read())
    first = at_prompt.repeat_interleave(len(question) // len(at_prompt), dim=0)
    return PairGate(torch.where(first > 0, own, own + (1 - question) * fact), config.slack * question)


def acting(backbone: Backbone, config: UniKEConfig, activations: Tensor) -> Tensor:
    """Of the pairs' activations ``[B, T, N]``, those that take effect; the strongest for each prompt is noted."""
    prefill = current_prefill(backbone)
    if not config.everywhere:
        since = prefill.from_prompt_last(activations.flatten(0, 1))  # [B * T, 1]
        activations = activations * since.reshape(*activations.shape[:2], 1)
    prefill.note("activation", activations.reshape(len(prefill.prompt_last), -1).amax(dim=1))
    return activations


def alpha_of(knowledge: Knowledge, layer: int, config: UniKEConfig) -> Alpha:
    """How much is injected at a layer."""
    if config.fixed_alpha is not None:
        return FixedAlpha(config.fixed_alpha)
    if not config.collaborates:
        return FixedAlpha(PLAIN_ALPHA)
    return knowledge.dynamic_alpha(layer, config.alpha_slope, config.alpha_offset)


def gate_of(knowledge: Knowledge | None) -> Relevance:
    """The backbone's gate.

    Raises:
        UnikeError: It was prepared without.
    """
    if knowledge is None or knowledge.gate is None:
        raise UnikeError("the knowledge of this backbone has no gate; run unike prepare anew, or set gate=false")
    return knowledge.gate


class UniKE(Editor[UniKEConfig]):
    """The paper's method: new key-value pairs and a latent in-context memory, in collaboration."""

    name: ClassVar[str] = "unike"
    config_class = UniKEConfig
    edit_class = UniKEEdit

    @property
    def keeps_prefix(self) -> bool:
        """Unless it acts everywhere."""
        return not self.config.everywhere

    def prepare(self, backbone: Backbone) -> None:
        """Read the anchors and the knowledge."""
        if self.config.needs_knowledge:
            knowledge_of(backbone, self.config.knowledge)
        if self.uses_anchors:
            self.anchor_inputs(backbone, self.config.layers)

    def sources(self, backbone: Backbone) -> Sequence[Trace]:
        """The triplets of the knowledge."""
        if not self.config.needs_knowledge:
            return ()
        return [
            Trace(triplet.prompt, ImageHashes(triplet.image_hash, triplet.perceptual_hash))
            for triplet in knowledge_of(backbone, self.config.knowledge).triplets
        ]

    def learned(self, backbone: Backbone) -> str | None:
        """The hash of the knowledge."""
        return knowledge_of(backbone, self.config.knowledge).fingerprint if self.config.needs_knowledge else None

    @property
    def uses_anchors(self) -> bool:
        """Unless keys start raw, with no locality term."""
        return self.config.has_pairs and (self.config.key_init != "raw" or self.config.locality > 0)

    def split(self, backbone: Backbone) -> int:
        """The lowest edited layer, or the gate's."""
        lowest = min(map(backbone.layer_index, self.config.layers))
        if not self.config.has_gate:
            return lowest
        return min(lowest, gate_of(knowledge_of(backbone, self.config.knowledge)).layer)

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Run to the edited layers once, read what the edit starts from, and train it on the rest of the model."""
        config = self.config
        lowest = min(map(backbone.layer_index, config.layers))
        anchors = self.anchor_inputs(backbone, config.layers) if self.uses_anchors else {}
        batch, stacked = backbone.encode(facts), bool(backbone.edits)
        below = self._run_to(backbone, batch, self.split(backbone))
        tensors = self._start(backbone, below, backbone.advance(below, lowest), anchors)
        trained = [tensor.requires_grad_() for name, tensor in tensors.items() if self._is_trained(name)]
        if not trained:
            return tensors

        edit = UniKEEdit(config, tensors, facts, fingerprint=backbone.fingerprint(), source=backbone.source)
        with edit.attached(backbone):
            # Once more: now the edit's own gate is read on the way, and those of older edits, put on anew, below it.
            state = self._run_to(backbone, batch, lowest) if stacked else backbone.advance(below, lowest)
            positions = target_positions(state.labels)

            def loss() -> Tensor:
                total = token_nll(backbone.run_from_split(state, positions), state.labels)
                for layer, memory in anchors.items() if config.locality else ():
                    a = patch_of([edit], layer).pre_activations(memory.unsqueeze(0))
                    total = total + config.locality * torch.relu(a + config.margin).mean(dim=(1, 2))
                return total

            optimise(trained, loss, steps=config.steps, lr=config.lr, clip=config.clip)
        return tensors

    def _run_to(self, backbone: Backbone, batch: Batch, layer: int) -> SplitState:
        state = backbone.run_to_split(batch, layer)
        return backbone.shorten(state) if self.keeps_prefix else state

    def _is_trained(self, name: str) -> bool:
        part = name.rpartition(".")[2]
        return (
            part == "values"
            or (part in ("keys", "bias") and name != GATE_KEYS and self.config.train_keys)
            or (part == "own_values" and self.config.train_entry)
            or (part == "shift" and self.config.zeta == "learned")
        )

    # ------------------------------------------------------------------ where an edit starts

    def _start(
        self, backbone: Backbone, below: SplitState, state: SplitState, anchors: dict[int, Tensor]
    ) -> dict[str, Tensor]:
        """The edit's tensors before training, see `UniKEEdit`; with ``V = 0``.

        Args:
            backbone: The model, with older edits attached.
            below: The facts, run to the gate's layer.
            state: The facts, run to the lowest edited layer.
            anchors: FFN inputs of unrelated questions, ``[M, D]`` for each layer.
        """
        config = self.config
        tensors: dict[str, Tensor] = {}
        knowledge = knowledge_of(backbone, config.knowledge) if config.needs_knowledge else None
        if knowledge is not None:
            tensors[KNOWLEDGE] = fingerprint_of(knowledge).to(backbone.device).repeat(len(state), 1)
        if config.has_gate:
            read = gate_of(knowledge).read(backbone, below)
            tensors |= {GATE_KEYS: read.last.unsqueeze(1), GATE_WHOLE: read.whole.unsqueeze(1)}
        if config.has_memory and config.own_entry:
            for layer, (keys, values) in self._entries(backbone, state).items():
                tensors |= {f"{layer}.own_keys": keys, f"{layer}.own_values": values}
        if config.has_pairs:
            where = cycle(wrong_positions(backbone, state), config.n_pairs)[1]  # [B, N]
            if config.has_gate:
                tensors[AT_PROMPT] = (where == state.prompt_last.unsqueeze(1)).float()
            for layer, (keys, bias) in self._keys(backbone, state, where, anchors).items():
                tensors |= {f"{layer}.keys": keys, f"{layer}.bias": bias, f"{layer}.values": torch.zeros_like(keys)}
        if config.has_pairs and config.has_zeta and knowledge is not None:
            for layer in config.layers:
                tensors[f"{layer}.shift"] = self._shift(knowledge, layer).expand(len(state), 1, -1).clone()
        return tensors

    def _entries(self, backbone: Backbone, state: SplitState) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values of the edit's own entries, ``[B, E, D]`` each."""
        config, where = self.config, last_answer_token(backbone, state)
        if config.entry == "every":
            where = cycle(target_positions(state.labels), config.n_pairs)[1]
        return read_entries(backbone, state, config.layers, positions=where, site=config.site)

    def _shift(self, knowledge: Knowledge, layer: int) -> Tensor:
        """``beta zeta'`` of a layer, ``[D]``: of the length ``beta`` times what the network usually writes (Eq. 6)."""
        config, known = self.config, knowledge.layer(layer)
        if config.zeta == "learned":
            return torch.zeros_like(known.mean)
        direction = known.w_semantic @ known.semantic_zeta if config.zeta == "semantic" else known.w_zeta @ known.zeta
        if config.zeta == "random":
            generator = torch.Generator().manual_seed(config.seed + layer % 1000)
            noise = torch.randn(known.zeta.shape, generator=generator).to(known.zeta)
            direction = known.w_zeta @ (noise / noise.norm() * known.zeta.norm())
        return config.beta * known.ffn_norm * direction / direction.norm().clamp(min=1e-8)

    def _keys(
        self, backbone: Backbone, state: SplitState, where: Tensor, anchors: dict[int, Tensor]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys ``[B, N, D]`` and biases ``[B, N]`` that fire at the positions ``where [B, N]``."""
        rows = torch.arange(len(where), device=where.device).unsqueeze(1)
        generator = torch.Generator().manual_seed(self.config.seed)
        found = {}
        for layer, inputs in ffn_inputs(backbone, state, self.config.layers).items():
            q = inputs[rows, where].float()  # [B, N, D]
            # one draw for all rows, so that a batch equals single edits
            noise = torch.randn(q.shape[1:], generator=generator).to(q) / q.shape[-1] ** 0.5
            q = q + self.config.noise * q.norm(dim=-1, keepdim=True) * noise
            found[layer] = self._firing_at(q, anchors.get(layer))
        return found

    def _firing_at(self, q: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and biases for the inputs ``q [B, N, D]`` they are to fire at.

        ``a(x) = (k (x - mean) - t) / (1 - t)`` with ``k (q_e - mean) = 1`` and ``t`` the threshold.
        """
        config = self.config
        mean = q.new_zeros(q.shape[-1]) if memory is None or config.key_init == "raw" else memory.mean(dim=0)
        d = q - mean
        k = d if memory is None or config.key_init != "whitened" else d @ precision(memory, config.shrinkage)
        k = k / (k * d).sum(dim=-1, keepdim=True).clamp(min=1e-8)
        return k / (1 - config.threshold), (-(k @ mean) - config.threshold) / (1 - config.threshold)


def precision(memory: Tensor, shrinkage: float) -> Tensor:
    """Inverse of the shrunken covariance of ``memory [M, D]``: ``((1 - s) C + s tr(C) / D I)^-1``, ``[D, D]``."""
    centred = memory - memory.mean(dim=0)
    covariance = centred.T @ centred / len(memory)
    identity = torch.eye(len(covariance), device=memory.device)
    scale = covariance.diagonal().mean().clamp(min=1e-8)  # a single anchor has no spread
    return torch.linalg.inv((1 - shrinkage) * covariance + shrinkage * scale * identity)
