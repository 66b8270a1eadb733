"""Edits on rows of a flat batch, in an engine that runs a tiny model as vLLM does: the tokens of a plain model."""

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor, nn
from transformers import DynamicCache

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.unike.knowledge import Knowledge
from unike.edits.edit import Edit
from unike.edits.stack import Stack, attached
from unike.serve.vllm_plugin.acting import Acting, check_supported
from unike.serve.vllm_plugin.rows import Rows, rows_of

TOKENS = 8

UNIKE: dict[str, Any] = {
    "layers": (-2, -1),
    "lr": 5e-2,
    "steps": 3,
    "pairs": {"n": 3},
    "memory": {"k": 6},
    "collaboration": {"alpha_offset": 0.2},
    "gate": {"rivalry": 2.0},
}

SETS: dict[str, list[str]] = {
    "none": [],
    "one": ["unike 0"],
    "stack": ["unike 1", "unike 0", "unike 2"],
    "weights": ["ft 1", "ft 0"],
    "network": ["mend 0", "mend 2"],
}


@dataclass
class Request:
    """What an engine keeps of one."""

    ids: list[int]
    embedded: Tensor
    edits: list[Edit]
    said: list[int] = field(default_factory=list)
    computed: int = 0
    cache: Any = field(default_factory=DynamicCache)

    @property
    def left(self) -> int:
        """Tokens that can be computed now."""
        return len(self.ids) + len(self.said) - self.computed


class FlatAttention(nn.Module):
    """Of rows of several requests, each with a cache of its own."""

    def __init__(self, engine: "Engine", attention: Any) -> None:
        super().__init__()
        self.engine, self.attention = [engine], attention

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        (engine,) = self.engine
        parts = []
        for rows in engine.batch:
            part = hidden_states[:, rows.begin : rows.end]
            where = torch.arange(rows.offset, rows.offset + len(rows))
            seen = torch.arange(rows.offset + len(rows)) <= where.unsqueeze(1)
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
            turned = engine.backbone.text_stack.rotary_emb(part, where.unsqueeze(0))
            cache = engine.requests[rows.request].cache
            parts.append(
                self.attention(part, position_embeddings=turned, attention_mask=mask, past_key_values=cache)[0]
            )
        return torch.cat(parts, dim=1), None


class FlatLayer(nn.Module):
    """A decoder layer."""

    def __init__(self, engine: "Engine", layer: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = FlatAttention(engine, layer.self_attn), Network(layer.mlp)
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(hidden_states=self.before(hidden))[0]
        return hidden + self.mlp(self.between(hidden))


class Network(nn.Module):
    """The engine's own, as it fuses matrices: hooks on the plain model's do not fire."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        gated = torch.nn.functional.linear(x, torch.cat([self.mlp.gate_proj.weight, self.mlp.up_proj.weight]))
        gate, up = gated.chunk(2, dim=-1)
        return torch.nn.functional.linear(self.mlp.act_fn(gate) * up, self.mlp.down_proj.weight)


class Engine:
    """A model whose passes take rows of whichever requests."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.requests: dict[str, Request] = {}
        self.batch: list[Rows] = []
        self.layers = [FlatLayer(self, layer) for layer in backbone.layers]
        self.acting = Acting(backbone, self.asked, range(backbone.n_layers))
        self.acting.put_on(self.layers)

    def asked(self, name: str) -> tuple[Sequence[int], Stack] | None:
        request = self.requests[name]
        return (request.ids, Stack(self.backbone, request.edits)) if request.edits else None

    @torch.no_grad()
    def step(self, tokens: dict[str, int]) -> None:
        """A pass that computes so many tokens of requests."""
        asked = [self.requests[name] for name in tokens]
        starts = [sum(list(tokens.values())[:number]) for number in range(len(tokens) + 1)]
        computed, prompts = [each.computed for each in asked], [len(each.ids) for each in asked]
        self.batch = list(rows_of(list(tokens), starts, computed, prompts))
        hidden = torch.cat([self._embedded(rows) for rows in self.batch]).unsqueeze(0)
        self.acting.begin(self.batch, self.requests, hidden[0])
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.backbone.head(self.backbone.text_stack.norm(hidden))[0]
        for rows in self.batch:
            request = self.requests[rows.request]
            request.computed += len(rows)
            if not request.left:
                request.said.append(int(logits[rows.end - 1].argmax()))

    def _embedded(self, rows: Rows) -> Tensor:
        request = self.requests[rows.request]
        said = self.backbone.model.get_input_embeddings()(torch.tensor(request.said, dtype=torch.long))
        return torch.cat([request.embedded, said])[rows.offset : rows.offset + len(rows)]

    def set_aside(self, name: str) -> None:
        """Forget what was computed of a request, not what it has said."""
        self.requests[name].computed, self.requests[name].cache = 0, DynamicCache()

    def run(self, seed: int, most: int = 60) -> None:
        """Answer all requests: any of them in any pass, with any number of tokens."""
        draw = random.Random(seed)
        aside = 0
        while waiting := [name for name, each in self.requests.items() if len(each.said) < TOKENS]:
            room, tokens = most, {}
            for name in draw.sample(waiting, draw.randint(1, len(waiting))):
                count = min(draw.choice((1, 3, 12, most)), self.requests[name].left, room)
                if count:
                    tokens[name] = count
                    room -= count
            self.step(tokens)
            if draw.random() < 0.5 and aside < 30:
                aside += 1
                self.set_aside(draw.choice(waiting))


@pytest.fixture(scope="module")
def model() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture(scope="module")
def edits(
    model: Backbone, make_knowledge: Callable[..., Knowledge], tmp_path_factory: Any, facts: list[Query], at_home: None
) -> dict[str, Edit]:
    folder = tmp_path_factory.mktemp("knowledge")
    make_knowledge(model).save_pretrained(folder)
    methods = {
        "unike": registry.editors.get("unike")(**UNIKE, knowledge=str(folder)),
        "ft": registry.editors.get("ft")(lr=1e-2, steps=3),
        "mend": registry.editors.get("mend")(),
    }
    return {f"{name} {n}": method.edit(model, fact) for name, method in methods.items() for n, fact in enumerate(facts)}


@torch.no_grad()
def plainly(model: Backbone, query: Query, edits: Sequence[Edit]) -> tuple[list[int], list[int]]:
    """Tokens of a prompt, and what the model says by itself under edits."""
    inputs = dict(model.encode([query]).inputs)
    how = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None}
    with attached(model, edits) if edits else nullcontext():
        ids = model.model.generate(**inputs, **how, pad_token_id=0)
    length = inputs["input_ids"].shape[1]
    return ids[0, :length].tolist(), ids[0, length:].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_those_of_the_plain_model(
    model: Backbone, edits: dict[str, Edit], facts: list[Query], pictures: list[Path], seed: int
) -> None:
    engine, expected = Engine(model), {}
    queries = [*(Query(fact.prompt, fact.image) for fact in facts), Query("Who?"), Query("What is this?", pictures[2])]
    for number, query in enumerate(queries):
        for name, chosen in SETS.items():
            key = f"{number} {name}"
            acting = [edits[each] for each in chosen]
            ids, expected[key] = plainly(model, query, acting)
            embedded = model.run_to_split(model.encode([query]), 0).hidden[0]
            engine.requests[key] = Request(ids, embedded, acting)
    engine.run(seed)
    assert {key: each.said[:TOKENS] for key, each in engine.requests.items()} == expected
    for name in ("one", "stack", "weights", "network"):  # else nothing was tested
        assert any(expected[f"{number} {name}"] != expected[f"{number} none"] for number in range(len(queries)))


def test_a_pass_that_nobody_asked_for_is_left_alone(model: Backbone, edits: dict[str, Edit]) -> None:
    engine = Engine(model)
    ids, _ = plainly(model, Query("Who?"), [])
    embedded = model.run_to_split(model.encode([Query("Who?")]), 0).hidden[0]
    engine.requests["a"] = Request(ids, embedded, [edits["ft 0"]])
    engine.step({"a": len(ids)})
    assert len(engine.acting.now) == 1
    engine.acting.begin([], (), None)
    assert engine.acting.now == []


def test_what_is_not_supported_is_refused(model: Backbone, edits: dict[str, Edit], facts: list[Query]) -> None:
    check_supported(model, [edits["unike 0"], edits["unike 1"]])
    check_supported(model, [edits["ft 0"]])
    with pytest.raises(UnikeError, match="edits of 'unike' and of other methods are not supported together in vLLM"):
        check_supported(model, [edits["unike 0"], edits["ft 0"]])
    for settings in ({"everywhere": True}, {"gate": {"on": False}}):
        config = type(edits["unike 0"].config).parse({**UNIKE, **settings})
        other = type(edits["unike 0"])(
            config, edits["unike 0"].tensors, edits["unike 0"].facts, fingerprint=model.fingerprint(), source="x"
        )
        with pytest.raises(UnikeError, match="everywhere=true or without a gate are not supported"):
            check_supported(model, [other])
    patched = registry.editors.get("t_patcher")(steps=1, memory_weight=0.0).edit(model, facts[0])
    with pytest.raises(UnikeError, match="edits of 't_patcher' are not supported in vLLM; use unike serve"):
        check_supported(model, [patched])
    kept = registry.editors.get("answer_cache")().edit(model, facts[0])
    with pytest.raises(UnikeError, match="'answer_cache' does not act within the model"):
        check_supported(model, [kept])
    with pytest.raises(UnikeError, match="its layers are built in another way"):
        check_supported(tiny_backbone("blip2-opt"), [])
