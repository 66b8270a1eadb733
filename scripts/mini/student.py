"""The bundled model in training: a frozen language model with LoRA, and the connector in front of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from rows import Picture
from unike.backbones.families.mini import FEATURES, N_TOKENS, Connector


class LoraLinear(nn.Module):
    """``W x + scale * B A x`` with ``W`` frozen; ``scale = 0`` gives the plain layer."""

    scale = 1.0

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        plain = self.linear(x)
        if LoraLinear.scale == 0:
            return plain
        return plain + LoraLinear.scale * F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


class Student(nn.Module):
    """The language model with LoRA on every linear layer, and the connector in front of it."""

    def __init__(self, llm: Path, rank: int, connector_size: int) -> None:
        super().__init__()
        self.lm = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.bfloat16).eval().requires_grad_(False)
        self.loras: dict[str, LoraLinear] = {}
        for path, linear in [(p, m) for p, m in self.lm.model.named_modules() if isinstance(m, nn.Linear)]:
            parent, _, leaf = path.rpartition(".")
            self.loras[path] = LoraLinear(linear, rank)
            setattr(self.lm.model.get_submodule(parent), leaf, self.loras[path])
        self.connector = Connector(connector_size)
        self.project = nn.Linear(FEATURES + connector_size, self.lm.config.hidden_size)

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, features: Tensor | None) -> Tensor:
        """Hidden states ``[B, S, D]``; image tokens stand at 1 .. N_TOKENS of every row when there are features."""
        embeds = self.lm.model.embed_tokens(ids)
        if features is not None:
            image = self.project(self.connector(features)).to(embeds.dtype)
            embeds = torch.cat([embeds[:, :1], image, embeds[:, 1 + N_TOKENS :]], dim=1)
        bias = (
            torch.zeros(mask.shape, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min).unsqueeze(1)
        )
        out = self.lm.model(inputs_embeds=embeds, attention_mask=bias, position_ids=positions, use_cache=False)
        return out.last_hidden_state

    def trainable(self) -> dict[str, Tensor]:
        named = {f"connector.{n}": p for n, p in self.connector.named_parameters()}
        named |= {f"projector.{n}": p for n, p in self.project.named_parameters()}
        for path, lora in self.loras.items():
            named |= {f"lora.{path}.down": lora.down, f"lora.{path}.up": lora.up}
        return named


def ridge_start(student: Student, pictures: list[Picture], features: dict[str, Tensor], tokenizer: Any) -> float:
    """Initialise the linear part by ridge regression, global feature -> mean token embedding of the name.

    Returns the share of held-out pictures whose own name is nearest to the mapped feature (cosine).
    """
    connector, embed = student.connector, student.lm.model.embed_tokens.weight.float()
    fit = [p for p in pictures if p.role == "fit"]
    stacked = torch.cat([features[p.image_id].float() for p in fit])
    for row, tokens in ((0, stacked[:, :-1].reshape(-1, FEATURES)), (1, stacked[:, -1])):
        connector.mean[row], connector.scale[row] = tokens.mean(0), 1 / (tokens.std(0) + 1e-3)

    def name(p: Picture) -> str:
        return p.facts.get("name") or p.facts["country"]

    names = sorted({name(p) for p in pictures})
    targets = torch.stack([embed[tokenizer(" " + n)["input_ids"]].mean(0) for n in names])

    def standardised(p: Picture) -> Tensor:
        return (features[p.image_id].float()[:, -1] - connector.mean[1]) * connector.scale[1]

    x = torch.cat([standardised(p) for p in fit])
    y = torch.cat([targets[names.index(name(p))].expand(len(features[p.image_id]), -1) for p in fit])
    weight = torch.linalg.solve(x.T @ x + 0.3 * len(x) * torch.eye(FEATURES), x.T @ (y - y.mean(0)))
    with torch.no_grad():
        student.project.weight.zero_()
        student.project.weight[:, :FEATURES] = weight.T
        student.project.bias.copy_(y.mean(0))
    held = [p for p in pictures if p.role == "held"]
    mapped = torch.cat([standardised(p)[:1] @ weight for p in held])
    nearest = (F.normalize(mapped, dim=-1) @ F.normalize(targets - targets.mean(0), dim=-1).T).argmax(-1)
    return sum(names[i] == name(p) for i, p in zip(nearest, held, strict=True)) / len(held)
