"""UniKE: intrinsic key-value pairs and a latent in-context memory, in collaboration (NeurIPS 2024).

At each edited layer, with the attention's input ``x``, the last prompt token ``p`` and the layer's memory of triplets:

1. the memory's entries most like ``x[p]`` are retrieved, and every position attends to them: ``h_know`` (Eq. 8),
2. the self-attention's output ``h_input`` is shifted towards it (Eq. 2, 7)::

       attn_out = (1 - alpha) h_input + alpha h_know,    alpha = cos(Enc_sem(h_know[p]), h_input[p])

3. new pairs stand beside the feed-forward network, their values moved in the direction of truth (Eq. 3, 6)::

       FFN_edit(q) = FFN(q) + relu(q K^T + b) (V + beta zeta'),    zeta' = W_zeta zeta

Only ``K, b, V`` are trained, on the answer's NLL, with the memory active, from ``V = 0``; by default also the values of
the edit's own entry in the memory, without which it has little to say (``train_entry``). The parts lie
beside: `memory` and `injection` (1, 2), `pairs` (3), `spaces` (the encoders and zeta), `collaboration` (alpha, the
shift), and `knowledge`, what `unike prepare` made of them for a backbone.

Note:
    Beyond the paper, unless ``paper=True``: the memory's relevance gates *both* halves (`gate`), so that an
    input about something else keeps the unedited model's answer, bit for bit.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.functional import cycle, target_positions
from unike.backbones.forward.hooks import Hooks, trace
from unike.backbones.forward.split import SplitState
from unike.core.errors import UnikeError
from unike.core.memo import MemoOf
from unike.data.leaks import Trace
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.pairs import PARTS, pairs_layout, wrong_predictions
from unike.editors.unike.asked import ASKED_WIDTH
from unike.editors.unike.collaboration import alpha_of, shift_of
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.follows import told
from unike.editors.unike.gate import Gate, Openings, install_gate
from unike.editors.unike.injection import LatentInjection, OwnEntries
from unike.editors.unike.knowledge import Knowledge, knowledge_of
from unike.editors.unike.likeness import GATE_ASKED, GATE_PICTURE, GATE_USUAL, KEPT, WORDS, needed
from unike.editors.unike.memory import LatentMemory, entries_of, last_answer_token
from unike.editors.unike.pairs import as_one, blurred, install_pairs, keys_firing_at
from unike.editors.unike.training import as_the_first, asked_otherwise, train
from unike.editors.unike.words import NAMED_WIDTH, WORD, words_fingerprint
from unike.edits.edit import Edit
from unike.edits.group import Group
from unike.edits.layout import FINGERPRINT, WIDTH, Declared, Layout, declared

KNOWLEDGE = "knowledge"


class UniKEEdit(Edit):
    """What an edit adds to a backbone and its knowledge.

    For each edited layer ``{layer}.keys [B, N, D]``, ``{layer}.bias [B, N]``, ``{layer}.values [B, N, D]``: the pairs;
    ``{layer}.shift [B, 1, D]``: ``beta zeta'``; ``{layer}.own_key [B, 1, D]``, ``{layer}.own_values [B, E, D]``: its
    entries in the memory, which share a key. And ``gate.picture``, ``gate.usual``, ``gate.asked`` and, unless all facts
    have a picture, ``gate.said`` and ``gate.rare``, ``[B, 1, n]``: what relevance compares with, see `Reading`; and
    ``knowledge [B, 8]`` uint8: the fingerprint of what the edit was made with, because it acts only together with that
    (`fingerprint_of`). All but the bias is as fine as bfloat16, in which files keep it.
    """

    editor = "unike"
    config_class = UniKEConfig

    @classmethod
    def layout(cls, config: UniKEConfig, names: Collection[str]) -> Layout:
        """What the settings ask for, and no more."""
        if "gate.keys" in names:
            raise ValueError("its gate read states, as that of version 0.1 did; make the edit anew")
        found: dict[str, Declared] = {}
        if config.needs_knowledge:
            found[KNOWLEDGE] = FINGERPRINT
        if config.has_gate:
            found |= {GATE_PICTURE: declared(1, "P"), GATE_USUAL: declared(1, 1), GATE_ASKED: declared(1, ASKED_WIDTH)}
            found |= dict.fromkeys((each for each in WORDS if each in names), declared(1, NAMED_WIDTH))
        if config.has_memory and config.memory.own_entry:
            values = declared(config.pairs.n if config.memory.entry == "every" else 1, WIDTH)
            found |= {f"{layer}.own_key": declared(1, WIDTH) for layer in config.layers}
            found |= {f"{layer}.own_values": values for layer in config.layers}
        if config.has_pairs:
            found |= pairs_layout(config.layers, config.pairs.n)
            moved = config.has_zeta and config.needs_knowledge
            found |= {f"{layer}.shift": declared(1, WIDTH) for layer in config.layers if moved}
        return found

    @classmethod
    def standing(cls, config: UniKEConfig) -> tuple[str, ...]:
        """What the gate compares with, and the knowledge; without a gate every pass reads all."""
        return (*KEPT, KNOWLEDGE) if config.has_gate else ()

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        """Put one edit, or a batch, on a backbone."""
        self.install_group(Group(backbone, [self]), hooks, prefill)

    @classmethod
    def check_group(cls, group: Group) -> None:
        """They act only together with the knowledge that they were made with."""
        if group.config.needs_knowledge:
            group.kept(KNOWLEDGE, partial(checked_knowledge, group))

    @classmethod
    def install_group(cls, group: Group, hooks: Hooks, prefill: Prefill) -> None:
        """Memory and pairs of all edits of a stack, each scaled by how far its own gate is open."""
        config: UniKEConfig = group.config
        knowledge = group.kept(KNOWLEDGE, partial(checked_knowledge, group)) if config.needs_knowledge else None
        gate = install_gate(gate_of(knowledge), group, prefill) if config.has_gate else None
        if config.has_memory and knowledge is not None:
            install_memory(group, knowledge, hooks, prefill, gate)
        if config.has_pairs:
            install_pairs(group, hooks, prefill, gate)

    @classmethod
    def told(cls, group: Group, queries: Sequence[Query]) -> list[Query | None]:
        """Behind the fact in words, those that ask for what follows from it."""
        if not (group.config.tells and group.config.has_gate):
            return super().told(group, queries)
        return told(gate_of(group.kept(KNOWLEDGE, partial(checked_knowledge, group))), group, queries)

    @classmethod
    def calls(cls, group: Group, queries: Sequence[Query]) -> Tensor | None:
        """How far the gate of each edit is open; None without a gate."""
        if not group.config.has_gate:
            return None
        gate = gate_of(group.kept(KNOWLEDGE, partial(checked_knowledge, group)))
        return gate.opened_by(group, queries).gate


def checked_knowledge(group: Group) -> Knowledge:
    """The knowledge that the edits of a stack act together with.

    Raises:
        UnikeError: One was made with other knowledge, and would act in another way than it was made to.
    """
    knowledge = knowledge_of(group.backbone, group.config.knowledge)
    start = 0
    for block in group.blocks(UniKEEdit.standing(group.config) or (KNOWLEDGE,)):
        made_with = block.tensors.get(KNOWLEDGE, torch.zeros(1, len(block), 1))
        other = (made_with.cpu() != fingerprint_of(knowledge)).any(dim=-1)  # [B, g]
        if group.present is not None:
            present = group.present[:, start : start + len(block)].cpu()
            other = other.repeat_interleave(len(present) // len(other), dim=0) & present
        if other.any():
            edit = group.made[start + int(other.any(dim=0).nonzero()[0])]
            raise UnikeError(
                f"the edit {edit.facts[0].prompt!r} was made with other knowledge of {edit.source!r} than there is now "
                f"({knowledge.fingerprint}), or by another version; bring that back, or make the edit anew"
            )
        start += len(block)
    return knowledge


def fingerprint_of(knowledge: Knowledge) -> Tensor:
    """Eight bytes, ``[8]`` uint8: of the knowledge, and of the network that its gate reads questions with."""
    read_with = f"{knowledge.fingerprint} {words_fingerprint() if knowledge.gate is not None else ''}"
    return torch.tensor(list(hashlib.sha256(read_with.encode()).digest()[:8]), dtype=torch.uint8)


def part_of(name: str) -> str:
    """What a tensor is, whatever its layer."""
    return name.rpartition(".")[2]


def rounded(tensor: Tensor) -> Tensor:
    """As fine as bfloat16, which files keep in half the bytes."""
    return tensor.bfloat16().float() if tensor.is_floating_point() else tensor


def gate_of(knowledge: Knowledge | None) -> Gate:
    """The backbone's gate.

    Raises:
        UnikeError: It was prepared without.
    """
    if knowledge is None or knowledge.gate is None:
        raise UnikeError("the knowledge of this backbone has no gate; run unike prepare anew, or set gate.on=false")
    return knowledge.gate


# ---------------------------------------------------------------------- the latent half


def install_memory(
    group: Group, knowledge: Knowledge, hooks: Hooks, prefill: Prefill, gate: Callable[[], Openings] | None
) -> None:
    """Put the memory, with the own entries of a stack, beside the attention of the edited layers, for one pass.

    Args:
        group: Whose entries.
        knowledge: With everybody's.
        hooks: Where the hooks are kept.
        prefill: The pass.
        gate: How far each row is about each edit, asked for when a layer runs; None for no gate.
    """
    config: UniKEConfig = group.config
    for layer in config.layers:
        injection = LatentInjection(
            shared_memory(group, knowledge, layer),
            config.memory.k,
            config.memory.site,
            alpha_of(knowledge, layer, config),
            config.collaboration.literal_eq7,
            config.everywhere,
        )
        weight = None if gate is None and group.present is None else partial(called_upon, group, prefill, gate)
        own = partial(own_entries, group, layer, prefill, gate) if config.memory.own_entry else None
        injection.install(group.backbone, layer, hooks, prefill, weight, own)


def shared_memory(group: Group, knowledge: Knowledge, layer: int) -> LatentMemory:
    """The memory of a layer, without entries of edits: one for all stacks, which only read it."""
    settings = group.config.memory
    chosen = layer, settings.site, settings.size, settings.centred
    return _MEMORIES.of(knowledge).get(chosen, lambda: knowledge.memory(*chosen))


_MEMORIES: MemoOf[tuple[Any, ...], LatentMemory] = MemoOf()


def called_upon(group: Group, prefill: Prefill, gate: Callable[[], Openings] | None) -> Tensor:
    """How far any edit of a stack is called upon, ``[R]``."""
    if gate is not None:
        return gate().gate.amax(dim=1)
    present = group.present_on(prefill.passes[-1][0])
    assert present is not None
    return present.any(dim=1).float()


def own_entries(group: Group, layer: int, prefill: Prefill, gate: Callable[[], Openings] | None) -> OwnEntries | None:
    """The entries of those edits that any row calls upon, and which of them each row may retrieve; None for no edit.

    Questions are of few kinds, so entries of another edit that was asked about in the same words are near, too.
    """
    eligible = group.present_on(prefill.passes[-1][0])
    if gate is not None:
        called = gate().called
        if not called:
            return None
        group, eligible = group.part(called), gate().gate[:, list(called)] > 0
    keys, values = (group.side_by_side(f"{layer}.{part}") for part in ("own_key", "own_values"))
    each = values.shape[1] // len(group)
    eligible = None if eligible is None else eligible.repeat_interleave(each, dim=1)
    return OwnEntries(keys.repeat_interleave(each, dim=1), values, eligible)


class UniKE(Editor[UniKEConfig]):
    """The paper's method: new key-value pairs and a latent in-context memory, in collaboration."""

    name: ClassVar[str] = "unike"
    config_class = UniKEConfig
    edit_class = UniKEEdit

    @property
    def keeps_prefix(self) -> bool:
        """Unless it acts everywhere."""
        return not self.config.everywhere

    def check(self, backbone: Backbone, fact: Query) -> None:
        """Refuse a fact that cannot be edited, or by which nothing could be told.

        Raises:
            UnikeError: As `Editor.check`; or there is neither a picture nor a word.
        """
        super().check(backbone, fact)
        if fact.image is None and self.config.has_gate:
            (said,) = backbone.encode([fact.question]).tokens
            if not WORD.search(backbone.asked(said)):
                raise UnikeError(
                    f"the prompt {fact.prompt!r} has no word, and no picture, to tell what it is about; say it in words"
                )

    def prepare(self, backbone: Backbone) -> None:
        """Read the anchors and the knowledge."""
        if self.config.needs_knowledge:
            knowledge_of(backbone, self.config.knowledge)
        if self.uses_anchors:
            self.anchor_inputs(backbone, self.config.layers)

    def learned_from(self, backbone: Backbone) -> Sequence[Trace]:
        """The triplets of the knowledge."""
        if not self.config.needs_knowledge:
            return ()
        return knowledge_of(backbone, self.config.knowledge).triplets

    def learned(self, backbone: Backbone) -> str | None:
        """The hash of the knowledge."""
        return knowledge_of(backbone, self.config.knowledge).fingerprint if self.config.needs_knowledge else None

    @property
    def uses_anchors(self) -> bool:
        """Unless keys start raw, with no locality term."""
        return self.config.has_pairs and (self.config.pairs.key_init != "raw" or self.config.pairs.locality > 0)

    def lowest_layer(self, backbone: Backbone) -> int:
        """The lowest edited layer."""
        return min(map(backbone.layer_index, self.config.layers))

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Run to the edited layers once, read what the edit starts from, and train it on the rest of the model."""
        config = self.config
        anchors = self.anchor_inputs(backbone, config.layers) if self.uses_anchors else {}
        read = backbone.run_to_split(backbone.encode(asked_otherwise(facts, config)), self.lowest_layer(backbone))
        own = read.expand(range(0, len(read), len(read) // len(facts)))
        tensors, where = self._start(backbone, self._frozen(backbone, own), anchors)
        trained = [tensor.requires_grad_() for name, tensor in tensors.items() if self._is_trained(name)]
        if trained:
            edit = UniKEEdit(config, tensors, facts, fingerprint=backbone.fingerprint(), source=backbone.source)
            train(backbone, edit, trained, self._frozen(backbone, as_the_first(read, len(facts))), anchors)
        kept = {name: as_one(t.detach(), where) if part_of(name) in PARTS else t for name, t in tensors.items()}
        return {name: tensor if part_of(name) == "bias" else rounded(tensor) for name, tensor in kept.items()}

    def _frozen(self, backbone: Backbone, state: SplitState) -> SplitState:
        """What comes before the prompts' ends is finished, where an edit leaves it as it is."""
        return backbone.shorten(state) if self.keeps_prefix else state

    def _is_trained(self, name: str) -> bool:
        part = part_of(name)
        return (
            part == "values"
            or (part in ("keys", "bias") and self.config.pairs.train_keys)
            or (part == "own_values" and self.config.memory.train_entry)
            or (part == "shift" and self.config.collaboration.zeta == "learned")
        )

    # ------------------------------------------------------------------ where an edit starts

    @torch.no_grad()
    def _start(
        self, backbone: Backbone, state: SplitState, anchors: dict[int, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The edit's tensors before training, see `UniKEEdit`, with ``V = 0``; and where pairs are to fire, ``[B, N]``.

        Args:
            backbone: The model, with older edits attached.
            state: The facts, run to the lowest edited layer.
            anchors: FFN inputs of unrelated questions, ``[M, D]`` for each layer.
        """
        config, layers = self.config, self.config.layers
        tensors: dict[str, Tensor] = {}
        knowledge = knowledge_of(backbone, config.knowledge) if config.needs_knowledge else None
        if knowledge is not None:
            tensors[KNOWLEDGE] = fingerprint_of(knowledge).to(backbone.device).repeat(len(state), 1)
        if config.has_gate:
            tensors |= needed(gate_of(knowledge).keys(backbone, state.prefill()))

        positions = target_positions(state.labels)
        attention = [backbone.attention(layer).module for layer in layers]
        networks = [backbone.ffn(layer).inputs for layer in layers]
        with trace([*attention, *networks]) as records:
            logits = backbone.run_from_split(state, positions)
        if config.has_memory and config.memory.own_entry:
            at = last_answer_token(backbone, state)
            if config.memory.entry == "every":
                at = cycle(positions, config.pairs.n)[1]
            entries = entries_of(state, dict(zip(layers, records, strict=False)), at, config.memory.site)
            for layer, (keys, values) in entries.items():
                tensors |= {f"{layer}.own_key": keys[:, :1], f"{layer}.own_values": values}
        where = cycle(wrong_predictions(logits, state.labels), config.pairs.n)[1]
        if config.has_pairs:
            rows = torch.arange(len(where), device=where.device).unsqueeze(1)
            generator = torch.Generator().manual_seed(config.seed)
            for layer, record in zip(layers, records[len(layers) :], strict=True):
                q = record.input.reshape(state.hidden.shape)[rows, where].float()  # [B, N, D]
                q = blurred(q, config.pairs.noise, generator)
                keys, bias = keys_firing_at(q, anchors.get(layer), config.pairs)
                tensors |= {f"{layer}.keys": keys, f"{layer}.bias": bias, f"{layer}.values": torch.zeros_like(keys)}
        if config.has_pairs and config.has_zeta and knowledge is not None:
            for layer in layers:
                tensors[f"{layer}.shift"] = shift_of(knowledge, layer, config).expand(len(state), 1, -1).clone()
        return tensors, where
