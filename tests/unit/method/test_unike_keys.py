"""Where the keys of UniKE's pairs start, and what trains them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from unike_parts import draw

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import cycle
from unike.backbones.forward.hooks import trace
from unike.backbones.forward.split import IGNORE
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.editors.common.covariance import precision
from unike.editors.common.pairs import FFNPatch, wrong_positions
from unike.editors.unike.config import PairSettings
from unike.editors.unike.editor import UniKE
from unike.editors.unike.pairs import as_one, blurred, keys_firing_at

pytestmark = pytest.mark.usefixtures("at_home")

D, M = 8, 40


def memory(seed: int = 0) -> Tensor:
    """States as a layer has them: a large shared mean, and directions of very different size."""
    return draw(M, D, seed=seed) * torch.logspace(-1, 1, D) + 5 * draw(D, seed=seed + 1)


def fires(keys: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Each pair's pre-activation at its own input: ``[B, N]``."""
    return (keys * x).sum(dim=-1) + bias


@pytest.fixture(scope="module")
def facts(pictures: list[Path]) -> list[Query]:
    return [Query("What is this?", pictures[0], "a cat"), Query("Which colour has it?", pictures[1], "bright red")]


def pair_settings(**chosen: Any) -> PairSettings:
    return PairSettings.parse(chosen)


def patches(editor: UniKE, backbone: Backbone, facts: list[Query]) -> dict[int, FFNPatch]:
    tensors = editor.make(backbone, facts)
    parts = ("keys", "bias", "values")
    return {i: FFNPatch(*(tensors[f"{i}.{part}"].detach() for part in parts)) for i in editor.config.layers}


# ---------------------------------------------------------------------- keys


@settings(max_examples=60, deadline=None)
@given(
    key_init=st.sampled_from(["raw", "centred", "whitened"]),
    threshold=st.floats(0, 0.95),
    shrinkage=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
    with_memory=st.booleans(),
)
def test_a_key_fires_with_1_at_its_input_and_begins_at_the_threshold(
    key_init: Any, threshold: float, shrinkage: float, seed: int, with_memory: bool
) -> None:
    stored = memory(seed).double() if with_memory else None
    q = 3 * draw(2, 4, D, seed=seed + 7).double() + (0 if stored is None else stored.mean(dim=0))
    chosen = pair_settings(key_init=key_init, threshold=threshold, shrinkage=shrinkage)
    keys, bias = keys_firing_at(q, stored, chosen)
    start = torch.zeros(D) if stored is None or key_init == "raw" else stored.mean(dim=0)
    assert torch.allclose(fires(keys, bias, q), torch.ones(2, 4).double(), atol=1e-6)
    on_the_way = start + threshold * (q - start)
    assert torch.allclose(fires(keys, bias, on_the_way), torch.zeros(2, 4).double(), atol=1e-6)
    assert (fires(keys, bias, start + (threshold - 0.1) * (q - start)) < 0).all()


def test_keys_without_a_threshold_are_those_of_t_patcher() -> None:
    q = draw(2, 4, D)
    keys, bias = keys_firing_at(q, memory(), pair_settings(key_init="raw", threshold=0))
    assert torch.allclose(keys, q / q.square().sum(dim=-1, keepdim=True))
    assert torch.equal(bias, torch.zeros(2, 4))


def test_full_shrinkage_is_centring_alone() -> None:
    q = draw(2, 4, D) + memory().mean(dim=0)
    centred = keys_firing_at(q, memory(), pair_settings(key_init="centred"))
    whitened = keys_firing_at(q, memory(), pair_settings(key_init="whitened", shrinkage=1))
    for a, b in zip(centred, whitened, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_whitened_keys_tell_the_edit_from_the_anchors_best() -> None:
    """Fisher: no direction has a larger ratio of the distance from the mean to the spread of the anchors."""
    stored = memory()
    q = draw(1, 4, D, seed=3) * torch.logspace(-1, 1, D) + stored.mean(dim=0)
    spread = {}
    for key_init in ("raw", "centred", "whitened"):
        keys, _ = keys_firing_at(q, stored, pair_settings(key_init=key_init, shrinkage=1e-4, threshold=0))
        spread[key_init] = (stored @ keys[0].T).std(dim=0) / ((q - stored.mean(dim=0)) * keys).sum(dim=-1)[0].abs()
    assert (spread["whitened"] < spread["centred"]).all()
    assert (spread["whitened"] < spread["raw"]).all()


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_precision_is_the_inverse_of_the_shrunken_covariance(shrinkage: float) -> None:
    stored = memory().double()
    covariance = np.cov(stored.numpy().T, bias=True)
    shrunken = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / D * np.eye(D)
    assert np.allclose(precision(memory(), shrinkage).numpy(), np.linalg.inv(shrunken), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------- positions


def test_cycle_takes_the_true_positions_in_turn() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0]]).bool()
    rows, columns = cycle(mask, 4)
    assert rows.tolist() == [[0] * 4, [1] * 4]
    assert columns.tolist() == [[1, 3, 4, 1], [2, 2, 2, 2]]
    assert cycle(mask, 2)[1].tolist() == [[1, 3], [2, 2]]


def test_wrong_positions_are_where_the_argmax_is_not_the_target(backbone: Backbone, facts: list[Query]) -> None:
    batch = backbone.encode(facts)
    guesses = backbone.forward(batch).argmax(dim=-1)
    labels = batch.labels.clone()
    target = (labels[0] != IGNORE).nonzero()[:, 0]
    labels[0, target[0]] = guesses[0, target[0] - 1]  # the first token of the first row is right
    target = (labels[1] != IGNORE).nonzero()[:, 0]
    labels[1, target] = guesses[1, target - 1]  # all of the second row are
    state = replace(backbone.run_to_split(batch, -2), labels=labels)
    expected = torch.zeros_like(labels, dtype=torch.bool)
    for row in range(2):
        for s in range(labels.shape[1] - 1):
            if labels[row, s + 1] != IGNORE:
                expected[row, s] = row == 1 or guesses[row, s] != labels[row, s + 1]
    found = wrong_positions(backbone, state)
    assert torch.equal(found, expected)
    assert 0 < found[0].sum() < (labels[0] != IGNORE).sum()


def test_keys_start_at_what_the_network_reads_there(llava: Backbone, facts: list[Query], anchors: Anchors) -> None:
    editor = UniKE(steps=0, pairs={"noise": 0, "n": 5}, anchors=anchors)
    batch = llava.encode(facts)
    rows, columns = cycle(wrong_positions(llava, llava.run_to_split(batch, 0)), 5)
    for layer, patch in patches(editor, llava, facts).items():
        with trace(llava.ffn(layer).inputs) as record:
            llava.forward(batch)
        q = record.input[rows, columns]
        # keys are as fine as bfloat16
        assert torch.allclose(fires(patch.keys, patch.bias, q), torch.ones(2, 5), atol=1e-2)
        assert not patch.values.any()


# ---------------------------------------------------------------------- settings


def test_noise_is_relative_to_each_input_and_the_same_for_all_rows() -> None:
    q, generator = 5 * draw(3, 4, 512), torch.Generator()
    assert torch.equal(blurred(q, 0.0, generator), q)
    moved = [
        (blurred(part, 0.05, generator.manual_seed(3)) - part) / part.norm(dim=-1, keepdim=True) for part in (q, q[1:2])
    ]
    assert torch.allclose(moved[0][1:2], moved[1], atol=1e-6), "a batch equals single edits"
    assert torch.allclose(moved[0].norm(dim=-1), torch.full((3, 4), 0.05), rtol=0.15)
    assert not torch.allclose(moved[0][:, 0], moved[0][:, 1], atol=1e-3)


def test_pairs_of_one_position_are_copies_whatever_noise_they_start_with(llava: Backbone, facts: list[Query]) -> None:
    tokens = len(llava.tokenizer(" a cat", add_special_tokens=False)["input_ids"]) + 1
    n_pairs = 2 * tokens + 1  # more than there are positions
    for steps, noise in ((0, 0.0), (0, 0.05), (3, 0.05)):
        editor = UniKE(steps=steps, pairs={"noise": noise, "n": n_pairs})
        alone, both = patches(editor, llava, facts[:1]), patches(editor, llava, facts)
        for layer in editor.config.layers:
            keys, bias = alone[layer].keys[0], alone[layer].bias[0]
            assert len(torch.unique(keys, dim=0)) == tokens
            assert all(torch.equal(part[:tokens], part[tokens:-1]) for part in (keys, bias))
            assert torch.allclose(both[layer].keys[0], keys, atol=1e-2 if steps else 1e-5)
    other = patches(UniKE(steps=0, pairs={"noise": 0.05, "n": n_pairs}, seed=1), llava, facts[:1])
    first = patches(UniKE(steps=0, pairs={"noise": 0.05, "n": n_pairs}), llava, facts[:1])
    assert not torch.equal(other[-1].keys, first[-1].keys)


def test_copies_are_their_mean() -> None:
    part, where = torch.tensor([[[1.0], [2.0], [5.0]], [[1.0], [2.0], [6.0]]]), torch.tensor([[4, 7, 4], [3, 3, 3]])
    assert as_one(part, where).tolist() == [[[3.0], [2.0], [3.0]], [[3.0], [3.0], [3.0]]]
    assert as_one(part[:, :, 0], where).tolist() == [[3.0, 2.0, 3.0], [3.0, 3.0, 3.0]]


@pytest.mark.slow
def test_the_locality_term_silences_anchors(llava: Backbone, facts: list[Query], anchors: Anchors) -> None:
    stored = anchors.ffn_inputs(llava, (-2, -1))
    activity = {}
    for locality in (0.0, 30.0):
        editor = UniKE(
            anchors=anchors,
            pairs={"locality": locality, "key_init": "raw", "threshold": 0},
            layers=(-2, -1),
            lr=2e-2,
            steps=30,
        )
        found = patches(editor, llava, facts)
        activity[locality] = [
            torch.relu(found[i].pre_activations(stored[i].unsqueeze(0)) + 0.1).mean().item() for i in (-2, -1)
        ]
    assert all(quiet < 0.5 * loud for quiet, loud in zip(activity[30.0], activity[0.0], strict=True)), activity


def test_values_alone_can_be_trained(llava: Backbone, facts: list[Query]) -> None:
    start = patches(UniKE(steps=0), llava, facts)
    trained = patches(UniKE(steps=3, pairs={"train_keys": False}), llava, facts)
    both = patches(UniKE(steps=3), llava, facts)
    for layer in start:
        assert torch.equal(trained[layer].keys, start[layer].keys)
        assert torch.equal(trained[layer].bias, start[layer].bias)
        assert trained[layer].values.any()
        assert not torch.equal(both[layer].keys, start[layer].keys)
