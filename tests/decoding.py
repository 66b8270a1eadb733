"""Greedy decoding as simple as can be, to hold `Backbone.generate` against."""

import torch

from unike.backbones.base import Backbone
from unike.types import Batch, Query


def greedy_without_cache(backbone: Backbone, query: Query, steps: int) -> str:
    """The answer, one whole forward pass for each token."""
    batch = backbone.encode([Query(query.prompt, query.image)])
    inputs, new = dict(batch.inputs), []
    for _ in range(steps):
        token = backbone.forward(Batch(inputs, batch.labels, batch.prompt_last))[0, -1].argmax().item()
        if token == backbone.tokenizer.eos_token_id:
            break
        new.append(token)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if key in inputs:
                value = {"input_ids": token, "attention_mask": 1, "mm_token_type_ids": 0}[key]
                inputs[key] = torch.cat([inputs[key], torch.full_like(inputs[key][:, :1], value)], dim=1)
    text = backbone.tokenizer.decode(new, skip_special_tokens=True)
    return text.strip().split("\n")[0].strip()
