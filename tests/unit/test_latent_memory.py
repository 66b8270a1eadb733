"""The latent memory against slow, literal loops, numpy, and the derivation it comes from."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Hooks, trace
from unike.backbones.forward.split import Batch
from unike.backbones.sites import AttentionSite
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.unike import nearest
from unike.editors.unike.collaboration import DynamicAlpha, FixedAlpha
from unike.editors.unike.injection import LatentInjection
from unike.editors.unike.memory import LatentMemory, last_answer_token, read_entries

D, LAYER = 32, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_memory(entries: int = 9, own: int = 0, rows: int = 3, **kwargs: Any) -> LatentMemory:
    memory = LatentMemory(draw(entries, D, seed=1), draw(entries, D, seed=2), **kwargs)
    return memory.with_own(draw(rows, own, D, seed=3), draw(rows, own, D, seed=4)) if own else memory


# ---------------------------------------------------------------------- retrieval


def numpy_search(keys: Tensor, query: Tensor, k: int, mean: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    shift = np.zeros(keys.shape[1]) if mean is None else mean.numpy().astype(float)
    a, b = query.numpy().astype(float) - shift, keys.numpy().astype(float) - shift
    cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    best = np.argsort(-cosines, axis=1)[:, :k]
    return best, np.take_along_axis(cosines, best, axis=1)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("index", ["torch", "flat", "auto"])
def test_the_most_similar_entries_are_found(index: Any, centred: bool) -> None:
    if index == "flat":
        pytest.importorskip("faiss")
    keys, query = draw(300, D) + 2, draw(5, D, seed=1) + 2
    mean = keys.mean(dim=0) if centred else None
    indices, scores = LatentMemory(keys, draw(300, D), mean=mean, index=index).search(query, 40)
    expected, cosines = numpy_search(keys, query, 40, mean)
    assert indices.dtype == torch.long and scores.dtype == torch.float32
    assert np.array_equal(indices.numpy(), expected)
    assert np.allclose(scores.numpy(), cosines, atol=1e-5)


def test_appended_entries_are_found_and_counted_on() -> None:
    pytest.importorskip("faiss")
    keys, values, query = draw(50, D), draw(50, D, seed=1), draw(4, D, seed=2)
    for index in ("torch", "flat", "hnsw"):
        whole = LatentMemory(keys, values, index=index)
        grown = LatentMemory(keys[:0], values[:0], index=index)
        assert len(grown) == 0
        assert grown.search(query, 3)[0].shape == (4, 0)
        for start, stop in [(0, 20), (20, 21), (21, 50)]:
            grown.append(keys[start:stop], values[start:stop])
            assert len(grown) == stop
        assert torch.equal(grown.keys, keys) and torch.equal(grown.values, values)
        assert torch.equal(grown.search(query, 7)[0], whole.search(query, 7)[0])
        assert torch.equal(grown.take(grown.search(query, 7)[0]), values[whole.search(query, 7)[0]])
        assert grown.search(query, 99)[0].shape == (4, 50), "no more than there are"


def test_a_large_memory_moves_to_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "LARGE", 30)
    keys, query = draw(50, D), draw(4, D, seed=2)
    memory = LatentMemory(keys[:25], keys[:25])
    assert memory._shared.nearest.units is not None
    memory.append(keys[25:], keys[25:])
    assert memory._shared.nearest.units is None
    assert len(memory) == 50
    assert torch.equal(memory.search(query, 9)[0], LatentMemory(keys, keys, index="torch").search(query, 9)[0])


def test_hnsw_finds_most_of_what_there_is() -> None:
    pytest.importorskip("faiss")
    centres = draw(20, D, seed=5)
    keys = centres.repeat_interleave(150, dim=0) + 0.5 * draw(3000, D)
    query = centres + 0.5 * draw(20, D, seed=6)
    flat, hnsw = (LatentMemory(keys, keys, index=index).search(query, 40)[0] for index in ("flat", "hnsw"))
    recall = np.mean([len(set(a) & set(b)) / 40 for a, b in zip(flat.tolist(), hnsw.tolist(), strict=True)])
    assert recall > 0.95


def test_faiss_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    LatentMemory(draw(5, D), draw(5, D)).search(draw(1, D), 2)
    with pytest.raises(UnikeError, match="pip install faiss-cpu"):
        LatentMemory(draw(5, D), draw(5, D), index="flat")


def test_what_does_not_fit_is_refused() -> None:
    memory = some_memory()
    for keys, values in [(draw(3, D), draw(2, D)), (draw(3, 5), draw(3, 5)), (draw(D), draw(D))]:
        with pytest.raises(ValueError, match="are not"):
            memory.append(keys, values)
    for keys, values in [(draw(3, D), draw(3, D)), (draw(2, 1, D), draw(1, 1, D)), (draw(2, 0, D), draw(2, 0, D))]:
        with pytest.raises(ValueError, match="are not"):
            memory.with_own(keys, values)
    with pytest.raises(UnikeError, match="unknown index 'annoy'"):
        some_memory(index="annoy")
    with pytest.raises(ValueError, match="own entries need as many rows"):
        some_memory(own=1, rows=3).search(draw(4, D), 2)


# ---------------------------------------------------------------------- own entries


@pytest.mark.parametrize("shared", [0, 9])
@pytest.mark.parametrize("beams", [1, 2])
def test_own_entries_are_seen_by_their_own_rows_alone(shared: int, beams: int) -> None:
    memory, query = some_memory(shared, own=2), draw(3, D, seed=7).repeat_interleave(beams, dim=0)
    assert memory.own_keys is not None and memory.own_values is not None
    indices, scores = memory.search(query, 5)
    for row in range(3 * beams):
        edit = row // beams
        keys = torch.cat([draw(shared, D, seed=1), memory.own_keys[edit]])
        values = torch.cat([draw(shared, D, seed=2), memory.own_values[edit]])
        expected, cosines = numpy_search(keys, query[row : row + 1], 5)
        assert indices[row].tolist() == expected[0].tolist()
        assert np.allclose(scores[row].numpy(), cosines[0], atol=1e-5)
        assert torch.equal(memory.take(indices)[row], values[indices[row]])


def test_anothers_own_entry_is_invisible_however_similar() -> None:
    memory = some_memory(own=1)
    assert memory.own_keys is not None
    query = memory.own_keys[[1, 2, 0], 0]  # each row asks for another row's entry
    _, scores = memory.search(query, 1)
    assert (scores < 0.9).all()
    indices, scores = memory.search(memory.own_keys[:, 0], 1)
    assert (indices == len(memory)).all()
    assert torch.allclose(scores, torch.ones(3, 1))


def test_the_shared_part_is_shared() -> None:
    memory = some_memory()
    own = memory.with_own(draw(1, 1, D), draw(1, 1, D))
    memory.append(draw(2, D), draw(2, D))
    assert len(own) == 11
    assert memory.own_keys is None
    assert own.search(draw(1, D, seed=3), 99)[0].max() == 11


def test_gradients_reach_own_values_alone() -> None:
    values = draw(2, 1, D).requires_grad_()
    memory = some_memory().with_own(draw(2, 1, D, seed=1), values)
    taken = memory.take(torch.tensor([[9, 0], [3, 4]]))
    taken.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad[0, 0], torch.ones(D))
    assert not values.grad[1].any()


# ---------------------------------------------------------------------- prefill


def test_a_prefill_finds_the_prompts_end_also_of_beams() -> None:
    prefill, hidden = Prefill(torch.tensor([1, 3]), torch.tensor([2, 3])), draw(4, 5, D)
    assert torch.equal(prefill.at_prompt_last(hidden[:2]), torch.stack([hidden[0, 1], hidden[1, 3]]))
    at_p = torch.stack([hidden[0, 1], hidden[1, 1], hidden[2, 3], hidden[3, 3]])
    assert torch.equal(prefill.at_prompt_last(hidden), at_p)
    whole = torch.stack([*(x[:2].mean(dim=0) for x in hidden[:2]), *(x[1:4].mean(dim=0) for x in hidden[2:])])
    assert torch.allclose(prefill.over_prompt(hidden, 7), whole, atol=1e-6)
    sums = draw(2, D, seed=1)  # of four and three tokens that are not run again
    rest = Prefill(torch.tensor([1, 3]), torch.tensor([6, 7]), sums={7: sums})
    whole = [(sums[row // 2] + x[: 2 + 2 * (row // 2)].sum(dim=0)) / (6 + row // 2) for row, x in enumerate(hidden)]
    assert torch.allclose(rest.over_prompt(hidden, 7), torch.stack(whole), atol=1e-6)
    with pytest.raises(ValueError, match="2 prompts are read, but the model runs on 3 rows"):
        prefill.at_prompt_last(hidden[:3])
    calls: list[int] = []
    first, second = object(), object()
    for _ in range(2):
        prefill.once(first, lambda: calls.append(1))
        prefill.once(second, lambda: calls.append(2))
    assert calls == [1, 2]


# ---------------------------------------------------------------------- the injection, by hand


@pytest.fixture(scope="module", params=["llava", "qwen3_vl", "blip2-opt"])
def tiny(request: pytest.FixtureRequest) -> Backbone:
    """Grouped queries; with head norms; with biases and a head for each key."""
    return tiny_backbone(request.param)


@pytest.fixture(scope="module")
def batch(tiny: Backbone, pictures: list[Path]) -> Batch:
    asked = [("What is this?", "a cat"), ("Which colour has it?", "bright red"), ("Who?", "the baker")]
    return tiny.encode([Query(q, picture, a) for (q, a), picture in zip(asked, pictures, strict=True)])


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


def run(tiny: Backbone, batch: Batch, injection: LatentInjection | None) -> tuple[Tensor, Tensor, Any]:
    """Input and output of the attention, and what was recalled."""
    with Hooks() as hooks:
        log = injection.install(tiny, LAYER, hooks) if injection else None
        with trace(tiny.attention(LAYER).module) as record:
            tiny.forward(batch)
    return record.input, record.output[0], log and log.latest


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("literal_eq7", [False, True])
def test_the_projected_injection_is_the_equation(tiny: Backbone, batch: Batch, literal_eq7: bool) -> None:
    x, h_input, _ = run(tiny, batch, None)
    mean, encoder, k = x.mean(dim=(0, 1)), nn.Linear(D, D).requires_grad_(False), 4
    memory = some_memory(own=1, mean=mean)
    assert memory.own_keys is not None and memory.own_values is not None
    alpha = DynamicAlpha(encoder, slope=0.5, offset=0.4)
    _, shifted, recall = run(tiny, batch, LatentInjection(memory, k=k, alpha=alpha, literal_eq7=literal_eq7))
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
    x, h_input, _ = run(tiny, batch, None)
    memory = some_memory()
    _, shifted, recall = run(tiny, batch, LatentInjection(memory, k=4, site="raw", alpha=FixedAlpha(0.3)))
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
    _, h_input, _ = run(tiny, batch, None)
    p = batch.prompt_last[0]
    # with alpha of 1 the output is h_know itself
    _, h_know, _ = run(tiny, batch, LatentInjection(some_memory(), k=4, alpha=FixedAlpha(1)))
    for sign in (1, -1):
        alpha = DynamicAlpha(lambda h, sign=sign: sign * h)
        _, _, recall = run(tiny, batch, LatentInjection(some_memory(), k=4, alpha=alpha))
        expected = min(max(sign * cosine(h_know[0, p], h_input[0, p]), 0.0), 1.0)
        assert recall.alpha[0].item() == pytest.approx(expected, abs=1e-4)


def test_eq_9s_alpha_gives_in_context_attention(pictures: list[Path]) -> None:
    """Appendix A, Eq. 8: with one head and the alpha of Eq. 9, the shift *is* attention to a longer context."""
    tiny = tiny_backbone("blip2-opt", num_attention_heads=1)
    batch, memory = tiny.encode([Query("What is this?", pictures[0])]), some_memory(6)
    x, _, _ = run(tiny, batch, None)
    site, x_p = tiny.attention(LAYER), x[0, -1]
    in_context, input_alone = (
        torch.exp(site.k_proj(states) @ site.q_proj(x_p) * site.scale).sum() for states in (memory.values, x[0])
    )
    eq_9 = input_alone / (in_context + input_alone)
    injection = LatentInjection(memory, k=6, alpha=lambda know, own: eq_9.expand(1), literal_eq7=True)
    _, shifted, _ = run(tiny, batch, injection)
    expected = by_hand(site, x_p, torch.cat([memory.values, x[0]]))
    assert torch.allclose(shifted[0, -1], expected, atol=1e-4)


def test_recorders_on_the_maps_see_the_models_own_calls(tiny: Backbone, batch: Batch) -> None:
    site = tiny.attention(LAYER)
    with Hooks() as hooks:
        LatentInjection(some_memory()).install(tiny, LAYER, hooks)
        with trace([site.q_proj, site.k_proj, site.v_proj, site.o_proj]) as records:
            tiny.forward(batch)
    assert [record.count for record in records] == [1, 1, 1, 1]


def test_a_trained_own_value_lowers_a_loss(tiny: Backbone, batch: Batch) -> None:
    values = draw(3, 1, D, seed=3).requires_grad_()
    memory = LatentMemory(draw(0, D), draw(0, D)).with_own(draw(3, 1, D), values)
    with Hooks() as hooks:
        LatentInjection(memory, k=1, alpha=FixedAlpha(0.5)).install(tiny, LAYER, hooks)
        state = tiny.run_to_split(batch, LAYER)
        adam = torch.optim.Adam([values], lr=0.05)
        losses = []
        for _ in range(8):
            adam.zero_grad()
            loss = tiny.run_from_split(state)[..., 7].square().mean()
            loss.backward()
            adam.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_what_cannot_be_injected_is_refused(tiny: Backbone, batch: Batch) -> None:
    with pytest.raises(UnikeError, match="memory of layer 2 is empty"), Hooks() as hooks:
        LatentInjection(LatentMemory(draw(0, D), draw(0, D))).install(tiny, LAYER, hooks)
    with pytest.raises(UnikeError, match="needs to know where the prompt ends"), Hooks() as hooks:
        LatentInjection(some_memory()).install(tiny, LAYER, hooks)
        tiny.model(**batch.inputs)
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
    _, h_input, _ = run(tiny, batch, None)
    gate = torch.tensor([0.0, 0.25, 1.0])
    for settings in ({"alpha": FixedAlpha(0.4)}, {"alpha": FixedAlpha(0.6), "literal_eq7": True}):
        injection = LatentInjection(some_memory(), k=4, **settings)
        _, full, _ = run(tiny, batch, injection)
        with Hooks() as hooks:
            log = injection.install(tiny, LAYER, hooks, lambda: gate)
            with trace(tiny.attention(LAYER).module) as record:
                tiny.forward(batch)
        gated = record.output[0]
        assert log.latest is not None
        assert torch.allclose(log.latest.weight, 0.4 * gate)
        assert torch.equal(gated[0], h_input[0])
        assert torch.allclose(gated, h_input + gate[:, None, None] * (full - h_input), atol=1e-5)


# ---------------------------------------------------------------------- reading entries


@pytest.mark.parametrize("site", ["projected", "raw"])
def test_entries_are_states_of_the_prompts_and_the_answers_end(tiny: Backbone, batch: Batch, site: Any) -> None:
    x, h_input, _ = run(tiny, batch, None)
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


def test_entries_that_are_not_eligible_are_not_found() -> None:
    memory = LatentMemory(draw(3, D), draw(3, D, seed=1)).with_own(draw(1, 2, D, seed=2), draw(1, 2, D, seed=3))
    query = memory.own_keys[0]  # each own entry is the nearest to one row
    assert memory.search(query, 1)[0].tolist() == [[3], [4]]
    eligible = torch.tensor([[True, False], [True, False]])
    indices, scores = memory.search(query, 4, eligible)
    assert indices[0, 0] == 3 and 4 not in indices and scores.isfinite().all()
    indices, scores = memory.search(query, 5, eligible)
    assert indices[:, -1].tolist() == [4, 4] and scores[:, -1].tolist() == [-torch.inf] * 2, "last, if all are wanted"
