"""The latent memory against numpy: what is found, and who may find it."""

from typing import Any

import numpy as np
import pytest
import torch
from unike_parts import draw, numpy_search

from unike.core.errors import UnikeError
from unike.editors.unike import nearest
from unike.editors.unike.memory import LatentMemory

D = 32


def some_memory(entries: int = 9, own: int = 0, rows: int = 3, **kwargs: Any) -> LatentMemory:
    memory = LatentMemory(draw(entries, D, seed=1), draw(entries, D, seed=2), **kwargs)
    return memory.with_own(draw(rows, own, D, seed=3), draw(rows, own, D, seed=4)) if own else memory


# ---------------------------------------------------------------------- retrieval


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
    search = nearest.Nearest(D)
    search.append(keys[:25])
    assert search.units is not None
    search.append(keys[25:])
    assert search.units is None
    memory = LatentMemory(keys[:25], keys[:25])
    memory.append(keys[25:], keys[25:])
    assert len(memory) == len(search) == 50
    assert torch.equal(memory.search(query, 9)[0], search.search(query, 9)[0])
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


def test_entries_that_are_not_eligible_are_not_found() -> None:
    memory = LatentMemory(draw(3, D), draw(3, D, seed=1)).with_own(draw(1, 2, D, seed=2), draw(1, 2, D, seed=3))
    query = memory.own_keys[0]  # each own entry is the nearest to one row
    assert memory.search(query, 1)[0].tolist() == [[3], [4]]
    eligible = torch.tensor([[True, False], [True, False]])
    indices, scores = memory.search(query, 4, eligible)
    assert indices[0, 0] == 3 and 4 not in indices and scores.isfinite().all()
    indices, scores = memory.search(query, 5, eligible)
    assert indices[:, -1].tolist() == [4, 4] and scores[:, -1].tolist() == [-torch.inf] * 2, "last, if all are wanted"
