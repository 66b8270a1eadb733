"""The injection against slow, literal loops, and the derivation it comes from."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor, nn
from unike_parts import cosine, draw, numpy_search

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import UNEDITED, Prefill
from unike.backbones.forward.hooks import Hooks, trace
from unike.backbones.forward.split import Batch
from unike.backbones.sites import AttentionSite
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.unike.collaboration import DynamicAlpha, FixedAlpha
from unike.editors.unike.injection import LatentInjection, Recall, RecallLog
from unike.editors.unike.memory import LatentMemory, last_answer_token, read_entries

D, LAYER = 32, 2


def some_memory(own: int = 0, entries: int = 9, **kwargs: Any) -> LatentMemory:
    memory = LatentMemory(draw(entries, D, seed=1), draw(entries, D, seed=2), **kwargs)
    return memory.with_own(draw(3, own, D, seed=3), draw(3, own, D, seed=4)) if own else memory


class Injected:
    """One injection, as it acts in a pass, and what it recalled."""

    rows = 1

    def __init__(self, injection: LatentInjection, gate: Callable[[], Tensor] | None = None) -> None:
        self.injection, self.gate, self.log = injection, gate, RecallLog()

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        self.log = self.injection.install(backbone, LAYER, hooks, prefill, self.gate)

    @property
    def recall(self) -> Recall:
        assert self.log.latest is not None
        return self.log.latest


@pytest.fixture(scope="module")
def batch(tiny: Backbone, pictures: list[Path]) -> Batch:
    asked = [("What is this?", "a cat"), ("Which colour has it?", "bright red"), ("Who?", "the baker")]
    return tiny.encode([Query(q, picture, a) for (q, a), picture in zip(asked, pictures, strict=True)])


def plain(tiny: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    """Input and output of the attention."""
    with trace(tiny.attention(LAYER).module) as record:
        tiny.forward(batch, UNEDITED)
    return record.input, record.output[0]


def run(
    tiny: Backbone, batch: Batch, injection: LatentInjection, gate: Callable[[], Tensor] | None = None
) -> tuple[Tensor, Recall]:
    """Output of the attention under an injection, and what was recalled."""
    acting = Injected(injection, gate)
    with trace(tiny.attention(LAYER).module) as record:
        tiny.forward(batch, acting)
    return record.output[0], acting.recall


def by_hand(site: AttentionSite, x: Tensor, states: Tensor) -> Tensor:
    """One position ``x [D]`` attending to ``states [K, D]``: Appendix A's Attn(X_input, X_know, X_know), in loops."""

    def linear(module: nn.Linear, v: Tensor) -> Tensor:
        return module.weight @ v + (0 if module.bias is None else module.bias)

    def norm(module: Any, v: Tensor) -> Tensor:
        return v if module is None else module.weight * v / (v.pow(2).mean() + module.variance_epsilon).sqrt()

    q, heads = linear(site.q_proj, x), []
    for head in range(site.n_heads):
        group = head // (site.n_heads // site.n_kv_heads)
        mine = slice(head * site.head_dim, (head + 1) * site.head_dim)
        theirs = slice(group * site.head_dim, (group + 1) * site.head_dim)
        query = norm(site.q_norm, q[mine])
        weights = []
        for state in states:
            key = norm(site.k_norm, linear(site.k_proj, state)[theirs])
            weights.append(math.exp(float(query @ key) / math.sqrt(site.head_dim)))
        total = sum(weights)
        heads.append(sum(w / total * linear(site.v_proj, s)[theirs] for w, s in zip(weights, states, strict=True)))
    return linear(site.o_proj, torch.cat(heads))


@pytest.mark.parametrize("literal_eq7", [False, True])
def test_the_projected_injection_is_the_equation(tiny: Backbone, batch: Batch, literal_eq7: bool) -> None:
    x, h_input = plain(tiny, batch)
    mean, encoder, k = x.mean(dim=(0, 1)), nn.Linear(D, D).requires_grad_(False), 4
    memory = some_memory(own=1, mean=mean)
    assert memory.own_keys is not None and memory.own_values is not None
    alpha = DynamicAlpha(encoder, slope=0.5, offset=0.4)
    shifted, recall = run(tiny, batch, LatentInjection(memory, k=k, alpha=alpha, literal_eq7=literal_eq7))
    site = tiny.attention(LAYER)
    assert (site.q_norm is not None) == ("qwen3" in tiny.source)
    for row in range(len(batch)):
        p = int(batch.prompt_last[row])
        keys = torch.cat([memory.keys, memory.own_keys[row]])
        values = torch.cat([memory.values, memory.own_values[row]])
        best, _ = numpy_search(keys, x[row, p : p + 1], k, mean)
        assert recall.indices[row].tolist() == best[0].tolist()
        states = values[best[0].tolist()]
        a = min(max(0.5 * cosine(encoder(by_hand(site, x[row, p], states)), h_input[row, p]) + 0.4, 0.0), 1.0)
        assert recall.alpha[row].item() == pytest.approx(a, abs=1e-4)
        assert 0.02 < a < 0.98
        weight = 1 - a if literal_eq7 else a
        assert recall.weight[row].item() == pytest.approx(weight, abs=1e-4)
        for position in {0, 3, p, x.shape[1] - 1}:
            h_know = by_hand(site, x[row, position], states)
            expected = (1 - weight) * h_input[row, position] + weight * h_know
            assert torch.allclose(shifted[row, position], expected, atol=1e-4)


def test_the_raw_injection_is_one_unprojected_head(tiny: Backbone, batch: Batch) -> None:
    x, h_input = plain(tiny, batch)
    memory = some_memory()
    shifted, recall = run(tiny, batch, LatentInjection(memory, k=4, site="raw", alpha=FixedAlpha(0.3)))
    for row in range(len(batch)):
        p = int(batch.prompt_last[row])
        best, _ = numpy_search(memory.keys, x[row, p : p + 1], 4)
        assert recall.indices[row].tolist() == best[0].tolist()
        for position in (0, p):
            scores = [float(h_input[row, position] @ memory.values[i]) / math.sqrt(D) for i in best[0]]
            weights = np.exp(scores) / np.exp(scores).sum()
            h_know = sum(float(w) * memory.values[i] for w, i in zip(weights, best[0], strict=True))
            assert torch.allclose(shifted[row, position], 0.7 * h_input[row, position] + 0.3 * h_know, atol=1e-5)


def test_the_papers_alpha_is_the_clamped_cosine(tiny: Backbone, batch: Batch) -> None:
    _, h_input = plain(tiny, batch)
    p = batch.prompt_last[0]
    # with alpha of 1 the output is h_know itself
    h_know, _ = run(tiny, batch, LatentInjection(some_memory(), k=4, alpha=FixedAlpha(1)))
    for sign in (1, -1):
        alpha = DynamicAlpha(lambda h, sign=sign: sign * h)
        _, recall = run(tiny, batch, LatentInjection(some_memory(), k=4, alpha=alpha))
        expected = min(max(sign * cosine(h_know[0, p], h_input[0, p]), 0.0), 1.0)
        assert recall.alpha[0].item() == pytest.approx(expected, abs=1e-4)


def test_eq_9s_alpha_gives_in_context_attention(pictures: list[Path]) -> None:
    """Appendix A, Eq. 8: with one head and the alpha of Eq. 9, the shift *is* attention to a longer context."""
    tiny = tiny_backbone("blip2-opt", num_attention_heads=1)
    batch, memory = tiny.encode([Query("What is this?", pictures[0])]), some_memory(entries=6)
    x, _ = plain(tiny, batch)
    site, x_p = tiny.attention(LAYER), x[0, -1]
    in_context, input_alone = (
        torch.exp(site.k_proj(states) @ site.q_proj(x_p) * site.scale).sum() for states in (memory.values, x[0])
    )
    eq_9 = input_alone / (in_context + input_alone)
    injection = LatentInjection(memory, k=6, alpha=lambda know, own: eq_9.expand(1), literal_eq7=True)
    shifted, _ = run(tiny, batch, injection)
    expected = by_hand(site, x_p, torch.cat([memory.values, x[0]]))
    assert torch.allclose(shifted[0, -1], expected, atol=1e-4)


def test_recorders_on_the_maps_see_the_models_own_calls(tiny: Backbone, batch: Batch) -> None:
    site = tiny.attention(LAYER)
    with trace([site.q_proj, site.k_proj, site.v_proj, site.o_proj]) as records:
        tiny.forward(batch, Injected(LatentInjection(some_memory())))
    assert [record.count for record in records] == [1, 1, 1, 1]


def test_a_trained_own_value_lowers_a_loss(tiny: Backbone, batch: Batch) -> None:
    values = draw(3, 1, D, seed=3).requires_grad_()
    memory = LatentMemory(draw(0, D), draw(0, D)).with_own(draw(3, 1, D), values)
    acting = Injected(LatentInjection(memory, k=1, alpha=FixedAlpha(0.5)))
    state = tiny.run_to_split(batch, LAYER, acting)
    adam = torch.optim.Adam([values], lr=0.05)
    losses = []
    for _ in range(8):
        adam.zero_grad()
        loss = tiny.run_from_split(state, acting=acting)[..., 7].square().mean()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_what_cannot_be_injected_is_refused(tiny: Backbone, batch: Batch) -> None:
    _, h_input = plain(tiny, batch)
    with pytest.raises(UnikeError, match="memory of layer 2 is empty"):
        tiny.forward(batch, Injected(LatentInjection(LatentMemory(draw(0, D), draw(0, D)))))
    assert torch.equal(plain(tiny, batch)[1], h_input), "nothing of it stays on"
    for make, message in [
        (lambda: LatentInjection(some_memory(), k=0), "k=0"),
        (lambda: LatentInjection(some_memory(), site="both"), "unknown site"),
        (lambda: FixedAlpha(1.5), "alpha=1.5"),
    ]:
        refused: Callable[[], object] = make
        with pytest.raises(ValueError, match=message):
            refused()


def test_a_gate_scales_the_weight(tiny: Backbone, batch: Batch) -> None:
    """Of the projected and the printed form alike: a closed gate is the attention's own output, bit for bit."""
    _, h_input = plain(tiny, batch)
    gate = torch.tensor([0.0, 0.25, 1.0])
    for settings in ({"alpha": FixedAlpha(0.4)}, {"alpha": FixedAlpha(0.6), "literal_eq7": True}):
        injection = LatentInjection(some_memory(), k=4, **settings)
        full, _ = run(tiny, batch, injection)
        gated, recall = run(tiny, batch, injection, lambda: gate)
        assert torch.allclose(recall.weight, 0.4 * gate)
        assert torch.equal(gated[0], h_input[0])
        assert torch.allclose(gated, h_input + gate[:, None, None] * (full - h_input), atol=1e-5)


# ---------------------------------------------------------------------- reading entries


@pytest.mark.parametrize("site", ["projected", "raw"])
def test_entries_are_states_of_the_prompts_and_the_answers_end(tiny: Backbone, batch: Batch, site: Any) -> None:
    x, h_input = plain(tiny, batch)
    content = x if site == "projected" else h_input
    state = tiny.run_to_split(batch, 1)
    last = last_answer_token(tiny, state)
    for row in range(3):
        targets = (batch.labels[row] != -100).nonzero()[:, 0].tolist()
        assert batch.labels[row, targets[-1]] == tiny.tokenizer.eos_token_id
        assert last[row].item() == targets[-2]
    keys, values = read_entries(tiny, state, [LAYER], site=site)[LAYER]
    assert keys.shape == values.shape == (3, 1, D)
    for row in range(3):
        assert torch.allclose(keys[row, 0], x[row, batch.prompt_last[row]], atol=1e-6)
        assert torch.allclose(values[row, 0], content[row, last[row, 0]], atol=1e-6)
    several = torch.stack([batch.prompt_last, batch.prompt_last + 1], dim=1)
    keys, values = read_entries(tiny, state, [LAYER], positions=several, site=site)[LAYER]
    assert keys.shape == values.shape == (3, 2, D)
    assert torch.equal(keys[:, 0], keys[:, 1])
    assert torch.allclose(values[1, 1], content[1, batch.prompt_last[1] + 1], atol=1e-6)
    with pytest.raises(ValueError, match="every row needs a target"):
        last_answer_token(tiny, tiny.run_to_split(tiny.encode([Query("Who?")]), 1))
