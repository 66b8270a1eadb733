"""What training minimises, by which gradients, and what it leaves alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import ramps
import torch
from tinies import tiny_backbone
from torch import Tensor
from unike_parts import LAYERS, made_for, named, random_edit

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions, token_nll
from unike.data.queries import Query
from unike.editors.unike import editor as method
from unike.editors.unike import training as trainer
from unike.editors.unike.config import merged
from unike.editors.unike.editor import UniKE, UniKEEdit
from unike.editors.unike.gate import Gate, Ramp
from unike.editors.unike.knowledge import Knowledge, LayerKnowledge, knowledge_of
from unike.edits.edit import Edit
from unike.edits.stack import attached

pytestmark = pytest.mark.usefixtures("wide_words")

# ---------------------------------------------------------------------- gradients


def test_gradients_are_those_of_finite_differences(
    tiny: Backbone, editor: Any, facts: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is cast to fp32 stays in fp64 for once; LLaMA's norms do not, hence a larger step there."""
    backbone = tiny_backbone({"tiny-llava": "llava", "tiny-qwen3-vl": "qwen3_vl"}.get(tiny.source, "blip2-opt"))
    chosen = editor(tiny)(memory={"entry": "every"})
    edit = random_edit(chosen, tiny, facts[:2])
    known = knowledge_of(tiny, chosen.config.knowledge)
    backbone.model.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    layers = {i: LayerKnowledge.from_tensors(layer.tensors()) for i, layer in known.layers.items()}
    for layer in layers.values():
        layer.semantic.double()
    assert known.gate is not None
    gate = Gate.of(known.gate.settings(), {name: tensor.double() for name, tensor in known.gate.tensors().items()})
    exact_knowledge = Knowledge(layers, known.triplets, known.description, gate)
    monkeypatch.setattr(method, "checked_knowledge", lambda group: exact_knowledge)

    names = [f"{layer}.{part}" for layer in LAYERS for part in ("keys", "bias", "values", "shift", "own_values")]
    tensors = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in edit.tensors.items()}
    trained = [tensors[name].requires_grad_() for name in names]
    assert chosen.config.memory.train_entry
    live = edit.like(tensors, edit.facts)
    batch, exact = backbone.encode(facts[:2]), "opt" in tiny.source
    width, rel, floor = (1e-5, 1e-5, 1e-8) if exact else (1e-3, 2e-3, 5e-4)
    with live.attached(backbone):
        state = backbone.run_to_split(batch, -2)

        def loss(*_: Tensor) -> Tensor:
            return token_nll(backbone.run_from_split(state, target_positions(state.labels)), state.labels)

        assert loss().dtype == torch.float64
        for name, gradient in zip(names, torch.autograd.grad(loss().sum(), trained), strict=True):
            flat, slopes = tensors[name].detach().view(-1), gradient.flatten()
            assert slopes.abs().max() > 2e-3, name
            for index in {int(slopes.abs().argmax()), 0, len(flat) // 2, len(flat) - 1}:
                value, ends = flat[index].item(), []
                for step in (width, -width):
                    flat[index] = value + step
                    with torch.no_grad():
                        ends.append(loss().sum().item())
                flat[index] = value
                slope = (ends[0] - ends[1]) / 2 / width
                assert slopes[index].item() == pytest.approx(slope, rel=rel, abs=floor), name


# ---------------------------------------------------------------------- training


@contextmanager
def training(seen: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """The loss that is minimised, before and after."""
    optimise = trainer.optimise

    def watched(parameters: Sequence[Tensor], loss: Callable[[], Tensor], **settings: Any) -> Tensor:
        before = loss().detach()
        history = optimise(parameters, loss, **settings)
        seen.append((before, loss().detach()))
        return history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "optimise", watched)
        yield


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"memory": {"train_entry": False}},
        {"collaboration": {"zeta": "learned"}},
        {"ablation": "only_latent"},
        {"gate": {"on": False}},
    ],
    ids=named,
)
@pytest.mark.parametrize("older", [False, True])
def test_what_is_minimised_is_the_loss_under_the_installed_edit(
    tiny: Backbone, editor: Any, facts: list[Query], settings: dict[str, Any], older: bool
) -> None:
    """So the memory, alpha, zeta and the gate are active while training, and so are older edits; and the hooks see
    the parameters as they are now, not copies that were made when they were installed."""
    chosen = editor(tiny)(steps=4, lr=2e-2, any_wording=False, **merged({"gate": {"rivalry": 8.0}}, settings))
    assert not chosen.config.pairs.locality
    stack: list[Edit] = [random_edit(chosen, tiny, facts[2:])] if older else []
    batch, seen = tiny.encode(facts[:2]), []
    before = [{name: t.clone() for name, t in edit.tensors.items()} for edit in stack]
    with attached(tiny, stack):
        start = UniKE(chosen.config.model_copy(update={"steps": 0})).edit(tiny, facts[:2])
        with training(seen):
            edit = chosen.edit(tiny, facts[:2])
    for old, was in zip(stack, before, strict=True):
        assert all(torch.equal(old.tensors[name], tensor) for name, tensor in was.items()), "older edits are frozen"
        assert not any(tensor.requires_grad or tensor.grad is not None for tensor in old.tensors.values())
    for new, minimised in zip((start, edit), seen[0], strict=True):
        with attached(tiny, [*stack, UniKEEdit(chosen.config, new.tensors, new.facts, **made_for(new))]):
            assert torch.allclose(token_nll(tiny.forward(batch), batch.labels), minimised, atol=1e-3)
    assert (seen[0][1] < seen[0][0]).all()
    if older:
        with edit.attached(tiny):
            assert not torch.allclose(token_nll(tiny.forward(batch), batch.labels), seen[0][1], atol=1e-3)


def test_the_target_is_trained_behind_other_questions_as_behind_its_own(
    tiny: Backbone, editor: Any, facts: list[Query]
) -> None:
    """The gate is as open there as behind the edit's own question; behind the others alone it would not be."""
    chosen, seen = editor(tiny)(steps=4, lr=2e-2), []
    start = editor(tiny)(steps=0).edit(tiny, facts[:2])
    with training(seen):
        edit = chosen.edit(tiny, facts[:2])
    asked = trainer.asked_otherwise(facts[:2], chosen.config)
    each = 1 + len(trainer.OTHERS)
    assert [query.prompt for query in asked[:each]] == [facts[0].prompt, *trainer.OTHERS]
    assert {(query.image, query.target) for query in asked[each:]} == {(facts[1].image, facts[1].target)}
    batch = tiny.encode(asked)
    with ramps.words(ASKED=Ramp(-9, -8), ASKED_OF_NAMED=Ramp(-9, -8), NAMED=Ramp(-9, -8)):  # whatever is asked
        for new, minimised in zip((start, edit), seen[0], strict=True):
            with new.attached(tiny):
                nll = token_nll(tiny.forward(batch), batch.labels)
            assert torch.allclose(nll.reshape(2, each).mean(dim=1), minimised, atol=1e-3)
    alone = editor(tiny)(steps=4, lr=2e-2, any_wording=False).edit(tiny, facts[:2])
    assert not torch.equal(alone.tensors["-1.values"], edit.tensors["-1.values"])


@pytest.mark.parametrize("behind", range(4), ids=["its own", "the first", "the second", "the last"])
def test_it_is_trained_until_the_target_holds_behind_every_question(
    tiny: Backbone, editor: Any, facts: list[Query], behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two facts the one that is behind in a single question has another round; the other has its loss silenced."""
    found, wanted = iter([True, False]), []
    optimise = trainer.optimise

    def noted(tensors: Any, loss: Any, **options: Any) -> Any:
        wanted.append(loss.args[0].tolist())
        return optimise(tensors, loss, **options)

    def margins(*_: Any) -> torch.Tensor:
        ahead = torch.full((2, 1 + len(trainer.OTHERS)), 2.0)
        ahead[0, 1:] = 0.1  # enough, but for its own question
        ahead[1, behind] = (0.5 if behind == 0 else 0.0) if next(found) else 2.0
        return ahead.flatten()

    monkeypatch.setattr(trainer, "optimise", noted)
    monkeypatch.setattr(trainer, "margins", margins)
    editor(tiny)(steps=1, rounds=5, lead=1.0).edit(tiny, facts[:2])
    assert wanted == [[1, 1], [0, 1]]


def test_without_a_gate_the_target_is_trained_behind_its_own_question_alone(editor: Any, llava: Backbone) -> None:
    fact = Query("Who?", target="nobody")
    for settings in ({"gate": {"on": False}}, {"any_wording": False}, {"paper": True}):
        assert trainer.asked_otherwise([fact], editor(llava)(**settings).config) == [fact]


def with_alpha(alpha: float) -> dict[str, Any]:
    """And nothing but that: without zeta and gate."""
    return {"collaboration": {"zeta": "off", "fixed_alpha": alpha}, "gate": {"on": False}}


def test_the_memory_shapes_what_is_learned(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    alone, beside = (editor(llava)(steps=3, **with_alpha(alpha)).edit(llava, facts[0]) for alpha in (0, 0.4))
    start = editor(llava)(steps=0, **with_alpha(0.4)).edit(llava, facts[0])
    assert not torch.allclose(alone.tensors["-2.values"], beside.tensors["-2.values"], atol=1e-3)
    assert not start.tensors["-2.values"].any()


def test_hooks_see_live_parameters(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """A regression: parts put side by side when hooks were installed are copies, which go stale while training."""
    chosen = editor(llava)(collaboration={"zeta": "learned"})
    older, edit = random_edit(chosen, llava, facts[1:2], 1), random_edit(chosen, llava, facts[:1])
    names = [f"{layer}.{part}" for layer in LAYERS for part in ("keys", "bias", "values", "shift", "own_values")]
    batch = llava.encode(facts[:1])
    for name in names:
        edit.tensors[name].requires_grad_()
    with attached(llava, [older, edit]):
        for name in names:
            old = llava.forward(batch).detach()
            with torch.no_grad():
                edit.tensors[name] += 0.5
            live = llava.forward(batch)
            assert not torch.allclose(live, old, atol=1e-3), name
            frozen = UniKEEdit(
                chosen.config, {n: t.detach().clone() for n, t in edit.tensors.items()}, edit.facts, **made_for(edit)
            )
            again = tiny_backbone("llava")
            with attached(again, [older, frozen]):
                assert torch.equal(again.forward(batch), live), name


def test_only_the_new_edit_is_trained_on_top_of_older_ones(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """The shape of its tensors, and that an edit of another config or method may lie below."""
    below = [
        editor(llava)(steps=2).edit(llava, facts[0]),
        editor(llava)(steps=2, memory={"k": 3}, gate={"on": False}).edit(llava, facts[1]),
        editor(llava)(steps=2, ablation="only_intrinsic", layers=(0, 1)).edit(llava, facts[2]),
    ]
    for settings in (
        {},
        {"gate": {"on": False}},
        {"ablation": "only_intrinsic", "layers": (-1,)},
        {"ablation": "only_latent"},
    ):
        chosen = editor(llava)(steps=2, **settings)
        alone = chosen.edit(llava, facts[0])
        with attached(llava, below):
            edit = chosen.edit(llava, facts[0])
            with edit.attached(llava):
                llava.forward(llava.encode(facts[:1]))
        assert {name: t.shape for name, t in edit.tensors.items()} == {n: t.shape for n, t in alone.tensors.items()}
        assert not all(torch.equal(edit.tensors[name], tensor) for name, tensor in alone.tensors.items())
