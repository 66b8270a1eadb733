"""What a network learns from: cases the model gets wrong, none that is evaluated, and the objective on them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import kl, target_positions, token_nll
from unike.backbones.forward.hooks import Hooks
from unike.core.errors import UnikeError
from unike.data.leaks import Trace, read_hashes
from unike.data.queries import EditCase, Probe, Query
from unike.editors.common.low_rank import install_low_rank
from unike.editors.mend.editor import MEND, MENDNetworkSettings
from unike.editors.trained import meta_objective
from unike.editors.trained.base import matrix
from unike.editors.trained.cases import FrozenBatches, batches_of, choose
from unike.editors.trained.config import TrainConfig
from unike.editors.trained.loop import train
from unike.editors.trained.meta_objective import UNRELATED, probes_of
from unike.editors.trained.token_gradients import token_gradients

NETWORK = MENDNetworkSettings(layers=(-2, -1), rank=4, step_size=1e-2, lr=1e-3, lr_step_size=1e-2)


def test_only_what_the_model_gets_wrong_and_has_every_probe(model: Backbone, learned: list[EditCase]) -> None:
    right = replace(learned[0], case_id="right", edit=replace(learned[0].edit, target="tin bat"))
    bare = replace(learned[1], case_id="bare", probes=learned[1].probes[:3])
    no_answer = Probe("t_locality", Query("?", None, None))
    mute = replace(learned[2], case_id="mute", probes=(*learned[2].probes[:2], no_answer, learned[2].probes[3]))
    assert model.generate([right.edit]) == ["tin bat"]
    wrong = [case for case in learned if model.generate([case.edit]) != [case.edit.target]]
    found = choose(model, [right, bare, mute, *learned], 100, 0)
    assert {case.case_id for case in found} == {case.case_id for case in wrong}
    assert choose(model, learned, 2, 0) == found[:0] + choose(model, learned, 100, 0)[:2]
    assert choose(model, learned, 100, 1) != choose(model, learned, 100, 0)
    with pytest.raises(UnikeError, match="none of 3 cases can be trained with: 1 have"):
        choose(model, [right, bare, mute], 5, 0)


def test_nothing_of_the_evaluation_is_learned_from(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], gallery: list[Path], tmp_path: Path
) -> None:
    """Not its pictures either, nor those of validation; what was learned from can be looked up."""
    secret = gallery[3]
    against = [EditCase("e", Query("??", secret, "x"), ())]
    config = TrainConfig(steps=0, batch=2)
    found = train(
        model,
        MEND(),
        [*learned, *[replace(case, case_id=f"again-{case.case_id}") for case in judged]],
        judged,
        tmp_path / "out",
        network_settings=NETWORK,
        config=config,
        against=against,
    )
    clean = [c for c in learned if secret not in {q.image for q in (c.edit, *(p.query for p in c.probes))}]
    assert found.description["report"]["without leaks"] == len(clean) < len(learned)
    asked = {query for case in clean for query in (probes_of(case) or {}).values()}
    hashes = read_hashes([q.image for q in asked if q.image is not None])
    expected = {Trace(q.prompt, None if q.image is None else hashes[q.image]) for q in asked}
    assert len(found.sources) == len(expected) and {*found.sources} == expected


def test_batches_do_not_mix_questions_with_and_without_a_picture(learned: list[EditCase]) -> None:
    bare = [replace(case, edit=replace(case.edit, image=None)) for case in learned[:3]]
    mixed = [learned[0], bare[0], *learned[1:4], *bare[1:]]
    batches = batches_of(mixed, 2)
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
    assert sorted(case.case_id for batch in batches for case in batch) == sorted(case.case_id for case in mixed)
    for batch in batches:
        assert len({case.edit.image is None for case in batch}) == 1


def test_readings_are_kept_as_long_as_they_fit() -> None:
    class Ten:
        nbytes = 10

    asked: list[int] = []
    batches = FrozenBatches(lambda cases: asked.append(len(cases)) or Ten(), [[None] * n for n in range(4)], 25)  # type: ignore[list-item, func-returns-value]
    for _ in range(2):
        for number in range(4):
            assert batches[number].nbytes == 10
    assert asked == [0, 1, 2, 3, 2, 3]


# ---------------------------------------------------------------------- the objective


def test_the_objective_is_nll_and_divergence(model: Backbone, learned: list[EditCase]) -> None:
    """Against each question asked by itself, under an edit of its own."""
    network = MEND().build(model, NETWORK.model_copy(update={"step_size": 1.0})).eval()
    objective = MEND().objective(model, network, MEND().read(model, network, learned[:3]))
    for row, case in enumerate(learned[:3]):
        alone = MEND().read(model, network, [case])
        edit = {name: (u, d) for name, (u, d) in edits_of(model, network, case).items()}
        for kind, query in (probes_of(case) or {}).items():
            batch = model.encode([query])
            plain, edited = model.forward(batch), under(model, edit, query)
            positions = target_positions(batch.labels)
            if kind in UNRELATED:
                expected = kl(plain[positions], edited[positions]).mean()
                unchanged = (plain[positions].argmax(-1) == edited[positions].argmax(-1)).all()
                assert objective.scores[kind][row] == float(unchanged)
            else:
                expected = token_nll(edited, batch.labels)[0]
            assert objective.losses[kind][row].item() == pytest.approx(expected.item(), abs=1e-3), kind
            assert meta_objective.ask(model, alone.questions, [kind]).losses.keys() == {kind}


def edits_of(model: Backbone, network: Any, case: EditCase) -> dict[str, tuple[Tensor, Tensor]]:
    state = model.run_to_split(model.encode([case.edit]), -2)
    found: dict[str, tuple[Tensor, Tensor]] = network(token_gradients(model, state, network.layers))
    return found


def under(model: Backbone, factors: dict[str, tuple[Tensor, Tensor]], query: Query) -> Tensor:
    with Hooks() as hooks:
        for name, pair in factors.items():
            install_low_rank(matrix(model, name), *pair, hooks)
        return model.forward(model.encode([query]))
