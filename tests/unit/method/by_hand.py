"""UniKE's equations, written out in loops.

`by_hand` replaces the forward methods of the edited layers' attention and feed-forward networks; it shares nothing with
the hooks, the memory, the gate and the pairs of the library but the numbers.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from unike_parts import cosine

from unike.backbones.adapter import Backbone
from unike.backbones.forward.split import Batch
from unike.backbones.sites import AttentionSite
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.gate import Ramp
from unike.editors.unike.knowledge import LayerKnowledge, evenly, knowledge_of
from unike.edits.edit import Edit


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


@contextmanager
def by_hand(
    backbone: Backbone, config: UniKEConfig, acting: list[list[dict[str, Tensor]]], batch: Batch
) -> Iterator[None]:
    """Let the model compute Eq. 2, 3, 6, 7 and 8 in loops; rows come in as many copies as there are beams."""
    knowledge = knowledge_of(backbone, config.knowledge)
    gates: dict[int, list[tuple[float, float, float]]] = {}

    first_token = batch.inputs["attention_mask"].argmax(dim=1)

    def of_row(row: int, rows: int) -> tuple[list[dict[str, Tensor]], int]:
        own = row * len(acting) // rows
        return acting[own], int(batch.prompt_last[own])

    def gates_of(edits: list[dict[str, Tensor]], x: Tensor) -> list[tuple[float, float, float]]:
        """For each edit: the kind of question, what it is about, and whether it is the edit's own question."""
        gate = knowledge.gate
        assert gate is not None
        state, keys = x[-1] - gate.mean, [tensors["gate.keys"][0] - gate.mean for tensors in edits]
        wholes = [tensors["gate.whole"][0] for tensors in edits]
        common = sum(wholes) / len(wholes)

        def cosines(matrix: Tensor) -> list[float]:
            return [cosine(matrix @ key, matrix @ state) for key in keys]

        def on(ramp: Ramp, s: float) -> float:
            return clamp((s - ramp.low) / (ramp.high - ramp.low))

        whitened = cosines(gate.whitening)
        mean, floor = sum(x) / len(x) - common, 0.05 * float(common.norm())
        alike = [
            float(whole @ mean) / max(float(whole.norm()), floor) / max(float(mean.norm()), floor)
            for whole in (each - common for each in wholes)
        ]
        near = [w + 2 * a for w, a in zip(whitened, alike, strict=True)]
        first = [1 if config.gate.rivalry is None else max(1 - (max(near) - s) / config.gate.rivalry, 0) for s in near]
        asked = [on(gate.question, s) for s in cosines(torch.eye(len(state)))]
        about = [on(gate.fact.of(1), s) * c for s, c in zip(whitened, first, strict=True)]
        strict = [on(gate.fact.of(len(edits)), s) * c for s, c in zip(whitened, first, strict=True)]
        return [(q, f, q * own) for q, f, own in zip(asked, about, strict, strict=True)]

    def shifted(layer: int, row: int, edits: list[dict[str, Tensor]], x: Tensor, h_input: Tensor, p: int) -> Tensor:
        known, site = knowledge.layer(layer), backbone.attention(layer)
        shared = evenly(len(knowledge), config.memory.size)
        entries = [
            (known.h_sem[i], (known.h_pos if config.memory.site == "projected" else known.raw_pos)[i]) for i in shared
        ]
        for number, edit in enumerate(edits if config.memory.own_entry else []):
            if row in gates and not gates[row][number][2]:
                continue  # what is about something else is not there
            entries += zip(edit[f"{layer}.own_keys"], edit[f"{layer}.own_values"], strict=True)
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
        weight = (1 - alpha if config.collaboration.literal_eq7 else alpha) * max(
            own for *_, own in gates.get(row, [(1.0,)])
        )
        changed = (1 - weight) * h_input + weight * h_know
        return changed if config.everywhere else torch.cat([h_input[:p], changed[p:]])

    def new_attention(layer: int, original: Any) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = original(hidden_states, *args, **kwargs)
            found = []
            for row, (x, h_input) in enumerate(zip(hidden_states, output[0], strict=True)):
                edits, p = of_row(row, len(hidden_states))
                if config.has_gate and layer == knowledge.gate.layer:  # type: ignore[union-attr]
                    gates[row] = gates_of(edits, x[first_token[row * len(acting) // len(hidden_states)] : p + 1])
                edited = layer in edited_layers and config.has_memory
                found.append(shifted(edited_layers[layer], row, edits, x, h_input, p) if edited else h_input)
            return (torch.stack(found), *output[1:])

        return forward

    def new_terms(layer: int, q: Tensor, rows: int) -> Tensor:
        q = q.reshape(rows, -1, q.shape[-1])
        found = torch.zeros_like(q)
        for row in range(rows):
            edits, p = of_row(row, rows)
            begin = 0 if config.everywhere else p
            for number, edit in enumerate(edits):
                asked, about, own = gates[row][number] if row in gates else (0.0, 1.0, 0.0)
                shift = edit[f"{layer}.shift"][0] if f"{layer}.shift" in edit else 0
                pairs = (edit[f"{layer}.{part}"] for part in ("keys", "bias", "values"))
                first = edit["gate.at_prompt"] if row in gates else torch.zeros(config.pairs.n)
                for key, bias, value, of_prompt in zip(*pairs, first, strict=True):
                    activation = torch.relu(q[row] @ key + bias + config.gate.slack * asked).unsqueeze(1)
                    scale = own if of_prompt else own + (1 - asked) * about
                    found[row, begin:] += activation[begin:] * scale * (value + shift)
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
    gate_layers = {knowledge.gate.layer} if config.has_gate and knowledge.gate else set()
    try:
        for layer in sorted(edited_layers | dict.fromkeys(gate_layers)):
            module = backbone.attention(layer).module
            replaced(module, new_attention(layer, module.forward))
        for layer in config.layers if config.has_pairs else ():
            new_network(layer)
        yield
    finally:
        for module in changed:
            del module.forward
