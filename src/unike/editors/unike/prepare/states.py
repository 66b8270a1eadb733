"""The states behind true and false answers, and the mean of what attention reads at the end of a prompt."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.backbones.forward.split import IGNORE
from unike.data.queries import Query
from unike.editors.unike.memory import last_answer_token, read_entries
from unike.editors.unike.prepare.collect import Mistake
from unike.editors.unike.prepare.work import Work

States = dict[str, Tensor]
"""Of one layer, ``[T, D]`` fp32 each.

``h_sem, h_pos, h_neg`` are attention inputs, ``raw_sem, raw_pos`` attention outputs, ``written_pos, written_neg`` what
the feed-forward network writes; ``sem`` is at the last prompt token, ``pos`` and ``neg`` at the last of the answer.
`learn` adds ``out_pos, out_neg``, the attention outputs that ``h_pos`` and ``h_neg`` alone would lead to.
"""


def read_states(work: Work, mistakes: Sequence[Mistake]) -> tuple[dict[int, States], dict[str, float]]:
    """The states of all triplets, in one teacher-forced pass for each answer.

    Returns:
        The states of each layer, and the mean length in tokens of true and false answers.
    """
    config = work.config
    chunks, lengths = [], []
    for start in range(0, len(mistakes), config.rows):
        some = mistakes[start : start + config.rows]
        tensors, tokens = work.once(
            f"states-{start // config.rows:05}",
            [config.layers, [mistake.triplet.values() for mistake in some]],
            partial(read_some, work.backbone, some, config.layers),
        )
        chunks.append(tensors)
        lengths.append(tokens)
        work.progress("reading states", start + len(some), len(mistakes))
    whole = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    states: dict[int, States] = {layer: {} for layer in config.layers}
    for name, tensor in whole.items():
        layer, part = name.split(".")
        states[int(layer)][part] = tensor
    return states, {side: round(sum(tokens[side] for tokens in lengths) / len(mistakes), 2) for side in ("pos", "neg")}


def read_some(
    backbone: Backbone, mistakes: Sequence[Mistake], layers: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """`States` of one batch as ``{layer}.{part}``, and how many tokens its true and false answers have."""
    states: dict[str, Tensor] = {}
    tokens = {}
    for side in ("pos", "neg"):
        queries = [mistake.answered(true=side == "pos") for mistake in mistakes]
        state = backbone.run_to_split(backbone.encode(queries), min(map(backbone.layer_index, layers)))
        where = last_answer_token(backbone, state)
        rows, prefill = torch.arange(len(where), device=where.device), state.prefill()
        attentions = [backbone.attention(layer).module for layer in layers]
        networks = [backbone.ffn(layer).outputs for layer in layers]
        with trace([*attentions, *networks]) as records:
            entries = read_entries(backbone, state, layers, positions=where)
        for layer, attention, network in zip(layers, records[: len(layers)], records[len(layers) :], strict=True):
            h_sem, h_answer = (entry.squeeze(1) for entry in entries[layer])
            attended, written = attention.output[0], network.output.reshape(state.hidden.shape)
            states[f"{layer}.h_{side}"] = h_answer
            states[f"{layer}.written_{side}"] = written[rows, where.squeeze(1)].float()
            if side == "pos":  # the same question both times, and a memory of true answers
                states[f"{layer}.h_sem"] = h_sem
                states[f"{layer}.raw_sem"] = prefill.at_prompt_last(attended).float()
                states[f"{layer}.raw_pos"] = attended[rows, where.squeeze(1)].float()
        answers = (state.labels != IGNORE) & (state.labels != backbone.tokenizer.eos_token_id)
        tokens[side] = int(answers.sum())
    return states, tokens


def read_means(work: Work, texts: Sequence[str], states: Mapping[int, States]) -> dict[int, Tensor]:
    """The mean attention input at ``p`` of each layer, ``[D]``; triplets and texts, if any, weigh the same."""
    backbone, config = work.backbone, work.config
    of_triplets = {layer: states[layer]["h_sem"].mean(dim=0) for layer in config.layers}
    if not texts:
        return of_triplets

    def read() -> tuple[dict[str, Tensor], None]:
        inputs: dict[str, list[Tensor]] = {str(layer): [] for layer in config.layers}
        for start in range(0, len(texts), config.rows):
            batch = backbone.encode([Query(prompt) for prompt in texts[start : start + config.rows]])
            state = backbone.run_to_split(batch, min(map(backbone.layer_index, config.layers)))
            with torch.no_grad(), trace([backbone.attention(layer).module for layer in config.layers]) as records:
                backbone.run_from_split(state, positions=torch.zeros_like(state.labels, dtype=torch.bool))
            for layer, record in zip(config.layers, records, strict=True):
                inputs[str(layer)].append(state.prefill().at_prompt_last(record.input).float())
            work.progress("reading texts", start + len(batch), len(texts))
        return {layer: torch.cat(parts).mean(dim=0) for layer, parts in inputs.items()}, None

    of_texts, _ = work.once("texts", [config.layers, texts], read)
    return {layer: (of_triplets[layer] + of_texts[str(layer)]) / 2 for layer in config.layers}
