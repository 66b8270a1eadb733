"""UniKE in passes: only the prompt decides, what an edit is not about stays, and cutting a pass in two is no matter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from unike_parts import LAYERS, editors_of, named, random_edit

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions
from unike.data.queries import Query
from unike.editors.unike.editor import UniKE
from unike.editors.unike.injection import LatentInjection, RecallLog
from unike.editors.unike.knowledge import Knowledge
from unike.editors.unike.likeness import KEPT, Reading, alike
from unike.edits.edited import EditedModel
from unike.edits.stack import attached

# ---------------------------------------------------------------------- the prompt alone decides


@contextmanager
def recalled() -> Iterator[list[RecallLog]]:
    """The logs of every injection that is put on within the block: for each pass, in the order of the layers."""
    logs: list[RecallLog] = []
    install = LatentInjection.install
    with pytest.MonkeyPatch.context() as patch:

        def logged(self: LatentInjection, *args: Any) -> RecallLog:
            logs.append(install(self, *args))
            return logs[-1]

        patch.setattr(LatentInjection, "install", logged)
        yield logs


def test_answers_change_neither_alpha_nor_what_is_retrieved(tiny: Backbone, editor: Any, facts: list[Query]) -> None:
    edit = random_edit(editor(tiny)(), tiny, facts)
    asked = [facts[1], facts[0], facts[2]]
    seen, logits = [], []
    with recalled() as logs, edit.attached(tiny):
        for targets in [("a cat", "red", "bob"), ("xq!", "a very long answer that is quite another", "5")]:
            batch = tiny.encode([replace(query, target=t) for query, t in zip(asked, targets, strict=True)])
            logits.append(tiny.forward(batch)[torch.arange(3), batch.prompt_last])
            seen.append([log.latest for log in logs[-len(LAYERS) :]])
            tiny.run_from_split(tiny.run_to_split(batch, 1))
            seen.append([log.latest for log in logs[-len(LAYERS) :]])
        for beams in (1, 2):
            tiny.generate(asked, max_new_tokens=4, num_beams=beams)
            seen.append([log.latest for log in logs[-len(LAYERS) :]])
    assert len(logs) == 8 * len(LAYERS), "each pass has its own"
    assert torch.allclose(*logits, atol=1e-4), "nor what is computed up to the prompt's end"
    for recalls in seen:
        for first, other in zip(seen[0], recalls, strict=True):
            assert first is not None and other is not None
            beams = len(other.alpha) // 3
            assert torch.equal(other.indices, first.indices.repeat_interleave(beams, dim=0))
            assert torch.allclose(other.alpha, first.alpha.repeat_interleave(beams), atol=1e-4)
            assert torch.allclose(other.weight, first.weight.repeat_interleave(beams), atol=1e-4)
    alphas = torch.stack([recall.alpha for recall in seen[0] if recall is not None])
    assert (alphas > 0).all() and (alphas < 1).all() and len(set(alphas.flatten().tolist())) == 6
    assert len({tuple(sorted(row.tolist())) for recall in seen[0] if recall for row in recall.indices}) > 1


# ---------------------------------------------------------------------- cut in two


def test_edits_are_cut_in_two_below_the_lowest_edited_layer(llava: Backbone, editor: Any) -> None:
    for settings in ({}, {"gate": {"on": False}}, {"ablation": "only_intrinsic"}):
        assert editor(llava)(**settings).lowest_layer(llava) == 2
    assert editor(llava)(layers=(-1, -3)).lowest_layer(llava) == 1


def test_the_lowest_layer_of_all_can_be_edited(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """The gate needs no layer below the edit."""
    edit = editor(llava)(layers=(0, -1), steps=2).edit(llava, facts)
    model = EditedModel(llava, [edit])
    state = llava.run_to_split(llava.encode(facts), 0)
    assert torch.allclose(model.target_logits(facts, state), model.target_logits(facts), atol=1e-5)
    assert not torch.allclose(model.target_logits(facts), EditedModel(llava).target_logits(facts), atol=1e-3)


@pytest.mark.parametrize(
    "settings", [{}, {"memory": {"train_entry": False}}, {"paper": True}, {"ablation": "only_latent"}], ids=named
)
def test_the_same_without_a_split(llava: Backbone, editor: Any, facts: list[Query], settings: dict[str, Any]) -> None:
    """A state that was run to the editor's split is finished as a whole pass would be."""
    chosen = editor(llava)(steps=2, **settings)
    edit, state = chosen.edit(llava, facts), llava.run_to_split(llava.encode(facts), chosen.lowest_layer(llava))
    model = EditedModel(llava, [edit])
    assert torch.allclose(model.target_logits(facts, state), model.target_logits(facts), atol=1e-5)


def test_what_is_read_before_the_end_of_the_prompt_stays(tiny: Backbone, editor: Any, facts: list[Query]) -> None:
    batch = tiny.encode(facts)
    before = batch.inputs["attention_mask"].bool() & (
        torch.arange(batch.labels.shape[1]) < batch.prompt_last.unsqueeze(1)
    )
    for everywhere in (False, True):
        edit = random_edit(editor(tiny)(everywhere=everywhere), tiny, facts)
        plain = tiny.forward(batch)
        with edit.attached(tiny):
            found = tiny.forward(batch)
        assert torch.equal(found[before], plain[before]) is not everywhere
        rows = torch.arange(len(facts))
        assert not torch.isclose(found[rows, batch.prompt_last], plain[rows, batch.prompt_last]).all()


def test_what_the_method_says_about_each_row(tiny: Backbone, editor: Any, facts: list[Query]) -> None:
    """Alpha and activations are means over the layers; the gate is open for an edit's own question."""
    chosen = editor(tiny)()
    model, notes = EditedModel(tiny, [random_edit(chosen, tiny, facts)]), {}
    for kind, queries in (("own", facts), ("other", facts[1:] + facts[:1])):
        state = tiny.run_to_split(tiny.encode(queries), chosen.lowest_layer(tiny))
        notes[kind] = model.replay(state, target_positions(state.labels)).notes
    assert notes["own"].keys() == {"alpha", "gate", "fact", "activation"}
    assert torch.allclose(notes["own"]["gate"], torch.ones(3)) and (notes["other"]["gate"] < 1).all()
    assert (notes["own"]["fact"] >= notes["own"]["gate"]).all()
    assert all(((found["alpha"] >= 0) & (found["alpha"] <= 1)).all() for found in notes.values())
    plain = EditedModel(tiny).replay(state, target_positions(state.labels))
    assert plain.notes == {}, "nobody has anything to say about the plain model"


# ---------------------------------------------------------------------- what it is not about


def test_what_an_edit_is_not_about_keeps_its_answer_bit_for_bit(
    tiny: Backbone, facts: list[Query], make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    """The promise of the gate, with a real edit: closed for other prompts, open for its own."""
    gate = make_knowledge(tiny).gate
    assert gate is not None
    state = tiny.run_to_split(tiny.encode(facts), 0)
    keys, read = gate.keys(tiny, state.prefill()), gate.read(tiny, state.prefill())
    own = Reading(*(keys[name][:1].expand(3, -1, -1) for name in KEPT))
    low = max(alike(own, read)[1:, 0].tolist()) + 1e-3
    assert low < alike(own, read)[0, 0]
    make_knowledge(tiny, layers=LAYERS, about=(low, alike(own, read)[0, 0].item())).save_pretrained(tmp_path)
    edit = editors_of(str(tmp_path))(steps=3, lr=0.05).edit(tiny, facts[0])
    asked = [facts[0], *(replace(fact, prompt=facts[0].prompt) for fact in facts[1:]), replace(facts[0], prompt="Who?")]
    batch = tiny.encode(asked)
    plain, answers = tiny.forward(batch), tiny.generate(asked, max_new_tokens=3)
    with edit.attached(tiny):
        edited = tiny.forward(batch)
        assert torch.equal(edited[1:], plain[1:]), "another thing, or another question"
        assert not torch.allclose(edited[0], plain[0], atol=1e-2)
        assert tiny.generate(asked, max_new_tokens=3)[1:] == answers[1:]


def test_an_edit_that_is_not_called_upon_lends_no_entries(
    llava: Backbone, editor: Any, facts: list[Query], make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    """Under a stack, what is asked about one fact is answered as if the others were not there, memory included."""
    make_knowledge(llava, about=(0.4, 0.5)).save_pretrained(tmp_path / "knowledge")
    method = UniKE(knowledge=str(tmp_path / "knowledge"), steps=4, lr=0.1, layers=LAYERS, memory={"size": 0})
    edits = [method.edit(llava, fact) for fact in facts]
    for fact, own in zip(facts, edits, strict=True):
        with own.attached(llava):
            alone = llava.forward(llava.encode([fact]))
        with attached(llava, edits):
            together = llava.forward(llava.encode([fact]))
        assert torch.allclose(alone, together, atol=1e-4)
