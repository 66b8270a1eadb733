"""Greedy decoding as simple as can be, to hold `Backbone.generate` against."""

import torch

from unike.backbones.adapter import Backbone
from unike.data.queries import Query


def greedy_without_cache(backbone: Backbone, query: Query, steps: int) -> str:
    """The answer, one whole forward pass for each token."""
    batch, new = backbone.encode([Query(query.prompt, query.image)]), []
    for _ in range(steps):
        token = int(backbone.forward(batch)[0, -1].argmax())
        if token == backbone.tokenizer.eos_token_id:
            break
        new.append(token)
        batch = backbone.extended(batch, torch.tensor([[token]]))
    text = backbone.tokenizer.decode(new, skip_special_tokens=True)
    return text.strip().split("\n")[0].strip()
