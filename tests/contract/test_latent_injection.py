"""What the latent memory promises: it acts while installed, and only the prompt decides how.

On a few families; on all of them it is installed by the editor that `test_editors.py` holds to its laws on all.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from decoding import greedy_without_cache
from matrix import FEW, STACKS
from patches import hooks_on
from tinies import TINIES
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill, attach, running
from unike.backbones.forward.hooks import Hooks, inject, trace
from unike.data.queries import Query
from unike.editors.unike.collaboration import DynamicAlpha, FixedAlpha
from unike.editors.unike.injection import LatentInjection, RecallLog
from unike.editors.unike.memory import LatentMemory, read_entries

LAYERS = (-2, -1)
ALPHA = DynamicAlpha(slope=0.5, offset=0.5)
"""Neither 0 nor 1 on random states, and different for every input."""

Memories = dict[int, LatentMemory]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=sorted({*FEW, *STACKS}))
def make_backbone(request: pytest.FixtureRequest) -> Callable[..., Backbone]:
    return TINIES[request.param]


@pytest.fixture(scope="module")
def backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def queries(facts: list[Query]) -> list[Query]:
    return facts


@pytest.fixture(scope="module")
def shared(backbone: Backbone) -> Memories:
    """For each layer 12 entries for everybody."""
    return {
        layer: LatentMemory(draw(12, backbone.width, seed=1), 2 * draw(12, backbone.width, seed=2)) for layer in LAYERS
    }


@pytest.fixture(scope="module")
def memories(backbone: Backbone, queries: list[Query], shared: Memories) -> Memories:
    """The same, and one entry of each of the three queries' own."""
    state = backbone.run_to_split(backbone.encode(queries), -2)
    entries = read_entries(backbone, state, LAYERS)
    return {layer: shared[layer].with_own(*entries[layer]) for layer in LAYERS}


def own_of(memories: Memories, row: int) -> Memories:
    """What one of the three rows sees."""
    alone = {}
    for layer, memory in memories.items():
        assert memory.own_keys is not None and memory.own_values is not None
        alone[layer] = memory.with_own(memory.own_keys[row : row + 1], memory.own_values[row : row + 1])
    return alone


class Injected:
    """Injections at several layers, as they are attached; the logs are those of the latest pass."""

    rows = 1

    def __init__(self, memories: Memories, **settings: Any) -> None:
        chosen = {"k": 4, "alpha": ALPHA} | settings
        self.injections = {layer: LatentInjection(memory, **chosen) for layer, memory in memories.items()}
        self.logs: list[RecallLog] = []

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        self.logs = [each.install(backbone, layer, hooks, prefill) for layer, each in self.injections.items()]


@contextmanager
def injected(backbone: Backbone, memories: Memories, **settings: Any) -> Iterator[Injected]:
    acting = Injected(memories, **settings)
    attach(backbone, acting)
    try:
        yield acting
    finally:
        attach(backbone, None)


def forward(backbone: Backbone, *queries: Query) -> Tensor:
    return backbone.forward(backbone.encode(queries))


@contextmanager
def in_words(backbone: Backbone) -> Iterator[None]:
    """Keep a random model from answering with image placeholders, which it could not read in the next step."""
    placeholder = torch.tensor([backbone.image_token_id])
    with inject(backbone.head, output=lambda logits: logits.index_fill(-1, placeholder, -1e3)):
        yield


SITES = pytest.mark.parametrize("site", ["projected", "raw"])


# ---------------------------------------------------------------------- on and off


@SITES
def test_alpha_of_zero_is_no_injection_bit_for_bit(
    backbone: Backbone, queries: list[Query], memories: Memories, site: str
) -> None:
    plain, answers = forward(backbone, *queries), backbone.generate(queries, max_new_tokens=3)
    with injected(backbone, memories, site=site, alpha=FixedAlpha(0)):
        assert torch.equal(forward(backbone, *queries), plain)
        assert backbone.generate(queries, max_new_tokens=3) == answers
    with injected(backbone, memories, site=site, alpha=FixedAlpha(1), literal_eq7=True):
        assert torch.equal(forward(backbone, *queries), plain)


@SITES
def test_it_acts_and_detaching_restores_bit_for_bit(
    backbone: Backbone, queries: list[Query], memories: Memories, site: str
) -> None:
    plain, hooks = forward(backbone, *queries), hooks_on(backbone)
    with injected(backbone, memories, site=site):
        assert not torch.allclose(forward(backbone, *queries), plain, atol=1e-2)
    assert torch.equal(forward(backbone, *queries), plain)
    assert hooks_on(backbone) == hooks
    assert running() is None


def test_nothing_is_remembered_when_a_pass_fails(backbone: Backbone, queries: list[Query], memories: Memories) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with injected(backbone, memories):
        expected = forward(backbone, *queries)
        for run in (lambda: forward(backbone, *queries[::-1]), lambda: backbone.generate(queries[::-1])):
            with pytest.raises(ZeroDivisionError), Hooks() as hooks:
                hooks.add_pre(backbone.layers[-1], fail)
                run()
            assert running() is None
        assert torch.equal(forward(backbone, *queries), expected)


@SITES
def test_the_split_is_bit_equal_under_injection(
    backbone: Backbone, queries: list[Query], memories: Memories, site: str
) -> None:
    batch = backbone.encode(queries)
    with injected(backbone, memories, site=site):
        full = backbone.forward(batch)
        for layer in (1, -2, -1):
            state = backbone.run_to_split(batch, layer)
            assert torch.equal(backbone.run_from_split(state), full)
            assert torch.equal(backbone.run_from_split(state), full), "a state may be replayed"


# ---------------------------------------------------------------------- the prompt alone decides


@SITES
def test_answer_tokens_have_no_say(backbone: Backbone, queries: list[Query], memories: Memories, site: str) -> None:
    """Neither the entries nor alpha change with the target, nor what is computed up to the prompt's end."""
    seen = []
    with injected(backbone, memories, site=site) as acting:
        for targets in [("a cat", "red", "bob"), ("xq!", "a very long answer that is quite another", "5")]:
            batch = backbone.encode([Query(q.prompt, q.image, t) for q, t in zip(queries, targets, strict=True)])
            logits = backbone.forward(batch)
            seen.append(([log.latest for log in acting.logs], logits[torch.arange(3), batch.prompt_last]))
        backbone.generate(queries, max_new_tokens=2)  # padded on the other side, and nothing but the prompt
        seen.append(([log.latest for log in acting.logs], seen[0][1]))
    for recalls, logits in seen[1:]:
        assert torch.allclose(logits, seen[0][1], atol=1e-4)
        for a, b in zip(recalls, seen[0][0], strict=True):
            assert a is not None and b is not None
            assert torch.equal(a.indices, b.indices)
            assert torch.allclose(a.alpha, b.alpha, atol=1e-5)
            assert torch.allclose(a.scores, b.scores, atol=1e-5)
    alphas = seen[0][0][0].alpha
    assert len(set(alphas.tolist())) == 3 and (alphas > 0).all() and (alphas < 1).all()


def test_memory_is_searched_once_for_each_prompt(
    backbone: Backbone, queries: list[Query], memories: Memories, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, search = [], LatentMemory.search

    def counted(self: LatentMemory, query: Tensor, *rest: Any) -> Any:
        calls.append(len(query))
        return search(self, query, *rest)

    monkeypatch.setattr(LatentMemory, "search", counted)
    with injected(backbone, memories):
        backbone.generate(queries, max_new_tokens=4)
        assert calls == [3, 3]
        forward(backbone, *queries)
        assert calls == [3, 3, 3, 3]


@SITES
def test_teacher_forcing_equals_generation_with_a_cache(
    backbone: Backbone, queries: list[Query], memories: Memories, site: str
) -> None:
    query, steps = queries[0], 5
    with in_words(backbone), injected(backbone, own_of(memories, 0), site=site):
        with trace(backbone.head, keep_all=True) as record:
            backbone.generate([query], max_new_tokens=steps)
        logits = backbone.read_out(torch.cat([call.input[:, -1] for call in record.calls]))
        batch = backbone.encode([Query(query.prompt, query.image)])
        forced = backbone.forward(backbone.extended(batch, logits.argmax(dim=-1)[None, :-1]))
    assert len(logits) > 1, "the model stopped at once; take another seed"
    assert torch.allclose(forced[0, batch.prompt_last[0] :], logits, atol=1e-4)


@SITES
def test_generation_equals_decoding_without_a_cache(
    backbone: Backbone, queries: list[Query], shared: Memories, site: str
) -> None:
    asked = [*queries[:2], Query("Who wrote it?")]
    plain = backbone.generate(asked, max_new_tokens=6)
    with in_words(backbone), injected(backbone, shared, site=site):
        hooked = backbone.generate(asked, max_new_tokens=6)
        assert hooked == [greedy_without_cache(backbone, query, 6) for query in asked]
    assert hooked != plain


# ---------------------------------------------------------------------- rows


@SITES
def test_a_batch_of_edits_equals_single_ones(
    backbone: Backbone, queries: list[Query], memories: Memories, site: str
) -> None:
    with injected(backbone, memories, site=site) as acting:
        batch = backbone.encode(queries)
        together = backbone.forward(batch)
        answers = backbone.generate(queries, max_new_tokens=4)
        assert acting.logs[0].latest is not None
        assert (acting.logs[0].latest.indices == 12).any(dim=1).all(), "every row finds its own entry"
    for row, query in enumerate(queries):
        length = int(batch.inputs["attention_mask"][row].sum())
        with injected(backbone, own_of(memories, row), site=site):
            assert torch.allclose(forward(backbone, query)[0], together[row, :length], atol=1e-4)
            assert backbone.generate([query], max_new_tokens=4) == answers[row : row + 1]


def test_beams_share_what_their_prompt_recalls(
    backbone: Backbone, queries: list[Query], memories: Memories, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_words(backbone), injected(backbone, memories) as acting:
        backbone.generate(queries, max_new_tokens=2)
        greedy = [log.latest for log in acting.logs]
        answers = backbone.generate(queries, max_new_tokens=4, num_beams=3)
        for a, b in zip(greedy, [log.latest for log in acting.logs], strict=True):
            assert a is not None and b is not None
            assert torch.equal(b.indices, a.indices.repeat_interleave(3, dim=0))
            assert torch.allclose(b.weight, a.weight.repeat_interleave(3), atol=1e-5)
        with monkeypatch.context() as patched:  # BLIP-2 keeps its cache whatever it is told
            without_cache = functools.partial(transformers.GenerationConfig, use_cache=False)
            patched.setattr(transformers, "GenerationConfig", without_cache)
            assert backbone.generate(queries, max_new_tokens=4, num_beams=3) == answers
    for row, query in enumerate(queries):
        with in_words(backbone), injected(backbone, own_of(memories, row)):
            assert backbone.generate([query], max_new_tokens=4, num_beams=3) == answers[row : row + 1]
