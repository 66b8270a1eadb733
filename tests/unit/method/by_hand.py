"""UniKE's equations, written out in loops.

`by_hand` replaces the forward methods of the edited layers' attention and feed-forward networks; it shares nothing with
the hooks, the memory, the gate and the pairs of the library but the numbers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from unike_parts import cosine

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import ACROSS
from unike.backbones.forward.hooks import trace
from unike.backbones.forward.split import Batch
from unike.backbones.sites import AttentionSite
from unike.editors.unike import gate as ramps
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.gate import Gate, Ramp
from unike.editors.unike.knowledge import LayerKnowledge, evenly, knowledge_of
from unike.editors.unike.likeness import COMMON
from unike.editors.unike.metric import SHARE, Metric
from unike.editors.unike.words import NAMED_WIDTH, read_words
from unike.edits.edit import Edit

Opened = tuple[float, float, float]


def linear(module: nn.Linear, v: Tensor) -> Tensor:
    return module.weight @ v + (0 if module.bias is None else module.bias)


def head_norm(module: Any, v: Tensor) -> Tensor:
    return v if module is None else module.weight * v / (v.pow(2).mean() + module.variance_epsilon).sqrt()


def softmax(scores: list[Tensor]) -> list[float]:
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def attend(site: AttentionSite, x: Tensor, states: list[Tensor]) -> Tensor:
    """Appendix A: ``Attn(x, X_know, X_know)`` of one position, through every head of the layer's own attention."""
    q, heads = linear(site.q_proj, x), []
    keys, values = ([linear(map_, state) for state in states] for map_ in (site.k_proj, site.v_proj))
    for head in range(site.n_heads):
        group = head // (site.n_heads // site.n_kv_heads)
        mine = slice(head * site.head_dim, (head + 1) * site.head_dim)
        theirs = slice(group * site.head_dim, (group + 1) * site.head_dim)
        query = head_norm(site.q_norm, q[mine])
        scores = [query @ head_norm(site.k_norm, key[theirs]) / math.sqrt(site.head_dim) for key in keys]
        heads.append(sum(w * value[theirs] for w, value in zip(softmax(scores), values, strict=True)))
    return linear(site.o_proj, torch.cat(heads))


def attend_raw(x: Tensor, states: list[Tensor]) -> Tensor:
    weights = softmax([x @ state / math.sqrt(len(x)) for state in states])
    return sum((w * state for w, state in zip(weights, states, strict=True)), torch.zeros_like(x))


def encode(known: LayerKnowledge, h: Tensor) -> Tensor:
    """``g = Enc_sem``: Linear, GELU, Linear."""
    hidden = linear(known.semantic.inner, h)
    return linear(known.semantic.outer, hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def rows_of(edits: Sequence[Edit], rows: int) -> list[list[dict[str, Tensor]]]:
    """For each of the rows, what each edit of a stack holds for it."""
    return [
        [{name: tensor[row * len(edit) // rows] for name, tensor in edit.tensors.items()} for edit in edits]
        for row in range(rows)
    ]


# ---------------------------------------------------------------------- the gate


@dataclass(frozen=True)
class Prompt:
    """What an input is about and asks: numbers of the gate, one for each of `Reading`'s fields."""

    picture: np.ndarray
    usual: float
    asked: np.ndarray
    said: np.ndarray
    rare: np.ndarray


def read_prompt(backbone: Backbone, gate: Gate, batch: Batch, row: int) -> Prompt:
    """Of a row; what its picture shows is looked up where the text stack is given it."""
    with trace(backbone.text_stack) as record:
        backbone.forward(batch)
    tokens, embedded = batch.inputs["input_ids"][row], record.kwargs["inputs_embeds"][row]
    shown = embedded[[i for i, token in enumerate(tokens.tolist()) if token == backbone.config.image_token_id]]
    words = read_words([backbone.asked(batch.tokens[row])])
    read = (part[0].double().numpy() for part in (words.asked, words.said, words.names))
    return Prompt(*picture_of(gate, shown.double().numpy()), *read)


def picture_of(gate: Gate, shown: np.ndarray) -> tuple[np.ndarray, float]:
    """Of visual features ``[n, D]``: where the gate has them, and what is usual there."""
    if not len(shown):
        return np.zeros(gate.metric.width), 0.0
    seen = np.concatenate([shown.mean(axis=0), shown.std(axis=0), *parts_by_hand(shown)])
    mean, discriminant, contrast = (getattr(gate.metric, name).double().numpy() for name in Metric.TENSORS)
    told = unit((seen - mean)[: len(discriminant)] @ discriminant)
    z = unit(np.concatenate([unit((seen - mean) @ contrast), SHARE * told]))
    cosines = sorted(float(other @ z) for other in gate.cohort.double().numpy())
    nearest = float(np.mean(cosines[-10:]))
    return z, nearest + max(0.0, min(COMMON * float(np.mean(cosines)), nearest))


def parts_by_hand(features: np.ndarray) -> list[np.ndarray]:
    """Nine means: of a square's ninths, or of as many stretches, which overlap where they do not come out even."""
    side, n = int(np.sqrt(len(features))), len(features)

    def stretches(length: int, parts: int) -> list[slice]:
        return [slice(i * length // parts, -(-(i + 1) * length // parts)) for i in range(parts)]

    if side < ACROSS or n > side * side + 1:
        return [features[part].mean(axis=0) for part in stretches(n, ACROSS * ACROSS)]
    square, parts = features[: side * side].reshape(side, side, -1), stretches(side, ACROSS)
    return [square[rows, columns].mean(axis=(0, 1)) for rows in parts for columns in parts]


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.sqrt((vector**2).sum()))


def opened(gate: Gate, edits: Sequence[Mapping[str, Tensor]], read: Prompt, rivalry: float | None) -> list[Opened]:
    """For each edit: whether it is its kind of question, about what it is about, and its own question."""

    def on(ramp: Ramp, s: float) -> float:
        return clamp((s - ramp.low) / (ramp.high - ramp.low))

    found = []
    for edit in edits:
        kept = {
            name: edit.get(f"gate.{name}", torch.zeros(NAMED_WIDTH)) for name in (each.name for each in fields(Prompt))
        }
        own = Prompt(*(tensor.double().numpy().squeeze() for tensor in kept.values()))
        asked = float(own.asked @ read.asked)
        said, known = float(own.rare @ read.said), float(own.said @ read.rare)
        about = min(said, known) if read.rare.any() else said
        kinds = (ramps.ASKED_OF_NAMED, ramps.NAMED)
        if own.picture.any():
            about = float(own.picture @ read.picture - (own.usual + read.usual) / 2) if read.picture.any() else -1.0
            kinds = (ramps.ASKED, gate.about.of(len(edits)))
        found.append((asked + about, *(on(kind, s) for kind, s in zip(kinds, (asked, about), strict=True))))
    nearest = max(near for near, *_ in found)
    first = [1.0 if rivalry is None else max(1 - (nearest - near) / rivalry, 0) for near, *_ in found]
    return [(q, fact * c, q * fact * c) for (_, q, fact), c in zip(found, first, strict=True)]


# ---------------------------------------------------------------------- the equations


@contextmanager
def by_hand(
    backbone: Backbone, config: UniKEConfig, acting: list[list[dict[str, Tensor]]], batch: Batch
) -> Iterator[None]:
    """Let the model compute Eq. 2, 3, 6, 7 and 8 in loops; rows come in as many copies as there are beams."""
    knowledge = knowledge_of(backbone, config.knowledge)
    gates: dict[int, list[Opened]] = {}
    gate = knowledge.gate if config.has_gate else None
    prompts = [] if gate is None else [read_prompt(backbone, gate, batch, row) for row in range(len(acting))]

    def of_row(row: int, rows: int) -> tuple[list[dict[str, Tensor]], int]:
        own = row * len(acting) // rows
        return acting[own], int(batch.prompt_last[own])

    def open_gates(rows: int) -> None:
        """Of every row, from its prompt alone; there may be beams."""
        for row in range(0 if gate is None else rows):
            gates[row] = opened(gate, of_row(row, rows)[0], prompts[row * len(prompts) // rows], config.gate.rivalry)

    def shifted(layer: int, row: int, edits: list[dict[str, Tensor]], x: Tensor, h_input: Tensor, p: int) -> Tensor:
        open_to = max(own for *_, own in gates.get(row, [(1.0,)]))
        if not open_to:
            return h_input
        known, site = knowledge.layer(layer), backbone.attention(layer)
        shared = evenly(len(knowledge), config.memory.size)
        entries = [
            (known.h_sem[i], (known.h_pos if config.memory.site == "projected" else known.raw_pos)[i]) for i in shared
        ]
        for number, edit in enumerate(edits if config.memory.own_entry else []):
            if row in gates and not gates[row][number][2]:
                continue  # what is about something else is not there
            entries += [(edit[f"{layer}.own_key"][0], value) for value in edit[f"{layer}.own_values"]]
        mean = known.mean if config.memory.centred else 0
        likeness = [cosine(key - mean, x[p] - mean) for key, _ in entries]
        best = sorted(range(len(entries)), key=lambda i: -likeness[i])[: config.memory.k]
        states = [entries[i][1] for i in best]
        if config.memory.site == "projected":
            h_know = torch.stack([attend(site, x[s], states) for s in range(len(x))])
        else:
            h_know = torch.stack([attend_raw(h_input[s], states) for s in range(len(x))])
        alpha = config.collaboration.fixed_alpha
        if alpha is None and config.collaborates:
            alpha = clamp(
                config.collaboration.alpha_slope * cosine(encode(known, h_know[p]), h_input[p])
                + config.collaboration.alpha_offset
            )
        elif alpha is None:
            alpha = 0.1
        weight = (1 - alpha if config.collaboration.literal_eq7 else alpha) * open_to
        changed = (1 - weight) * h_input + weight * h_know
        return changed if config.everywhere else torch.cat([h_input[:p], changed[p:]])

    def new_attention(layer: int, original: Any) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = original(hidden_states, *args, **kwargs)
            open_gates(len(hidden_states))
            if not config.has_memory:
                return output
            found = []
            for row, (x, h_input) in enumerate(zip(hidden_states, output[0], strict=True)):
                edits, p = of_row(row, len(hidden_states))
                found.append(shifted(edited_layers[layer], row, edits, x, h_input, p))
            return (torch.stack(found), *output[1:])

        return forward

    def new_terms(layer: int, q: Tensor, rows: int) -> Tensor:
        q = q.reshape(rows, -1, q.shape[-1])
        found = torch.zeros_like(q)
        for row in range(rows):
            edits, p = of_row(row, rows)
            begin = 0 if config.everywhere else p
            for number, edit in enumerate(edits):
                asked, _, own = gates[row][number] if row in gates else (0.0, 0.0, 1.0)
                shift = edit[f"{layer}.shift"][0] if f"{layer}.shift" in edit else 0
                pairs = (edit[f"{layer}.{part}"] for part in ("keys", "bias", "values"))
                for key, bias, value in zip(*pairs, strict=True):
                    activation = torch.relu(q[row] @ key + bias + config.gate.slack * asked).unsqueeze(1)
                    found[row, begin:] += activation[begin:] * own * (value + shift)
        return found

    def new_network(layer: int) -> None:
        site, read = backbone.ffn(layer), []
        if site.inputs is site.outputs:
            whole = site.inputs.forward
            replaced(site.inputs, lambda x: whole(x) + new_terms(layer, x, len(x)))
            return
        first, second = site.inputs.forward, site.outputs.forward

        def keep(x: Tensor) -> Tensor:
            read[:] = [x]
            return first(x)

        def add(hidden: Tensor) -> Tensor:
            output = second(hidden)
            rows = len(gates) or (len(read[0]) if read[0].ndim == 3 else len(acting))
            return output + new_terms(layer, read.pop(), rows).reshape(output.shape)

        replaced(site.inputs, keep)
        replaced(site.outputs, add)

    changed: list[nn.Module] = []

    def replaced(module: nn.Module, forward: Any) -> None:
        module.forward = forward  # type: ignore[method-assign]
        changed.append(module)

    edited_layers = {backbone.layer_index(layer): layer for layer in config.layers}
    try:
        for layer in edited_layers:
            module = backbone.attention(layer).module
            replaced(module, new_attention(layer, module.forward))
        for layer in config.layers if config.has_pairs else ():
            new_network(layer)
        yield
    finally:
        for module in changed:
            del module.forward
