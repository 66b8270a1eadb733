"""Where an edit starts: zeta, its own entries, the keys of its gate and of its pairs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from unike_parts import LAYERS, cosine, random_edit

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.data.queries import Query
from unike.editors.common.pairs import wrong_positions
from unike.editors.unike.config import merged
from unike.editors.unike.knowledge import knowledge_of
from unike.editors.unike.words import read_words
from unike.edits.stack import attached


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_zeta_is_as_long_as_beta_says_and_points_where_it_should(
    llava: Backbone, editor: Any, knowledge: Any, facts: list[Query], beta: float
) -> None:
    """Eq. 6: ``beta zeta'``, ``zeta' = W_zeta zeta``, in units of what the network usually writes."""
    make, known = editor(llava), knowledge_of(llava, knowledge(llava))
    shifts = {
        kind: make(collaboration={"zeta": kind, "beta": beta}, steps=0).edit(llava, facts[:2]).tensors
        for kind in ("truthful", "semantic", "random", "learned")
    }
    for layer in LAYERS:
        kept = known.layer(layer)
        for kind in ("truthful", "semantic", "random"):
            shift = shifts[kind][f"{layer}.shift"]
            assert shift.shape == (2, 1, 32) and torch.equal(shift[0], shift[1])
            assert shift[0].norm().item() == pytest.approx(beta * 2.5, rel=1e-4)
        truthful, semantic, random = (
            shifts[kind][f"{layer}.shift"][0, 0] for kind in ("truthful", "semantic", "random")
        )
        assert cosine(truthful, kept.w_zeta @ kept.zeta) == pytest.approx(1, abs=1e-5)
        assert cosine(semantic, kept.w_semantic @ kept.semantic_zeta) == pytest.approx(1, abs=1e-5)
        assert abs(cosine(random, truthful)) < 0.999
        into = torch.linalg.lstsq(kept.w_zeta, random.unsqueeze(1)).solution
        assert torch.allclose(kept.w_zeta @ into, random.unsqueeze(1), atol=1e-4), "through the same W_zeta"
        assert not shifts["learned"][f"{layer}.shift"].any()


def test_a_random_zeta_depends_on_the_seed_alone(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    make = editor(llava)

    def shifts(facts: list[Query], **settings: Any) -> list[Tensor]:
        tensors = make(**merged({"collaboration": {"zeta": "random"}, "steps": 0}, settings)).edit(llava, facts).tensors
        return [tensors[f"{layer}.shift"][0] for layer in LAYERS]

    first = shifts(facts[:1])
    torch.manual_seed(123)
    for same in (
        shifts(facts[1:]),
        shifts(facts[:1], pairs={"n": 2}, gate={"on": False}, memory={"site": "raw"}, lr=0.1),
    ):
        assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, shifts(facts[:1], seed=1), strict=True))
    assert abs(cosine(first[0][0], first[1][0])) < 0.99, "another one in each layer"


def test_beta_of_0_is_no_zeta(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """Not bit for bit: adding nothing is another sum."""
    batch, logits = llava.encode(facts), []
    for settings in ({"beta": 0.0}, {"zeta": "off"}, {"beta": 0.5}):
        with editor(llava)(steps=3, collaboration=settings).edit(llava, facts).attached(llava):
            logits.append(llava.forward(batch))
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not torch.allclose(logits[2], logits[1], atol=1e-2)


def test_own_entries_are_states_of_the_answer(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """``"last"``: at its last token; ``"every"``: where its tokens are predicted, in turn."""
    batch = llava.encode(facts[:2])
    for site in ("projected", "raw"):
        edits = {
            entry: editor(llava)(memory={"entry": entry, "site": site}, steps=0).edit(llava, facts[:2])
            for entry in ENTRIES
        }
        for layer in LAYERS:
            with trace(llava.attention(layer).module) as record:
                llava.forward(batch)
            content = record.input if site == "projected" else record.output[0]
            for row in range(2):
                answer = (batch.labels[row] != -100).nonzero()[:, 0].tolist()
                positions = {"last": [answer[-2]], "every": [answer[i % len(answer)] - 1 for i in range(4)]}
                for entry, edit in edits.items():
                    keys, values = (edit.tensors[f"{layer}.{part}"][row] for part in ("own_key", "own_values"))
                    assert torch.allclose(values, content[row, positions[entry]], atol=1e-4)
                    at_p = record.input[row, batch.prompt_last[row]]
                    assert torch.allclose(keys, at_p.expand_as(keys), atol=1e-4)


ENTRIES = ("last", "every")


def test_the_gate_keeps_what_a_question_shows_and_asks(
    llava: Backbone, editor: Any, knowledge: Any, facts: list[Query]
) -> None:
    """And not what its answer is; words of questions without a picture alone: others are not compared by them."""
    gate = knowledge_of(llava, knowledge(llava)).gate
    assert gate is not None
    for some, shown in (([facts[0], facts[2]], True), ([replace(facts[1], image=None)], False)):
        edit, words = editor(llava)(steps=1).edit(llava, some), read_words([fact.prompt for fact in some])
        batch = llava.encode([replace(fact, target=None) for fact in some])
        picture, usual = gate.pictured(llava.run_to_split(batch, 0).pictures, len(some))
        expected = {"picture": picture, "usual": usual, "asked": words.asked, "said": words.said, "rare": words.rare}
        for name, tensor in expected.items():
            if shown and name in ("said", "rare"):
                assert f"gate.{name}" not in edit.tensors
            else:
                assert torch.allclose(edit.tensors[f"gate.{name}"][:, 0], tensor, atol=1e-5), name
        assert bool(edit.tensors["gate.picture"].any()) is shown


def test_keys_start_where_the_edited_model_is_wrong(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """``q_e`` are inputs of the plain model: what its own memory shifts comes later, and older edits count."""
    chosen = editor(llava)(steps=0, pairs={"noise": 0.0, "key_init": "raw", "threshold": 0.0})
    older = random_edit(chosen, llava, facts[1:2])
    for stack in ([], [older]):
        with attached(llava, stack):
            batch = llava.encode(facts[:1])
            wrong = wrong_positions(llava, llava.run_to_split(batch, 1))
            with trace(llava.ffn(-1).inputs) as record:
                llava.forward(batch)
            keys = chosen.edit(llava, facts[0]).tensors["-1.keys"][0]
        q = record.input[wrong]
        expected = q / q.square().sum(dim=1, keepdim=True)
        assert torch.allclose(keys, expected[torch.arange(4) % len(expected)], atol=1e-4)
