"""UniKE's settings: which parts each has, and what they are called."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor
from unike_parts import LAYERS, named

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import token_nll
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.editors.unike.collaboration import PLAIN_ALPHA
from unike.editors.unike.config import PAPER, UniKEConfig
from unike.editors.unike.editor import UniKE
from unike.editors.unike.knowledge import Knowledge

# ---------------------------------------------------------------------- settings: which parts there are


PAIRS, OWN = {"keys", "bias", "values"}, {"own_keys", "own_values"}
OF_GATE = {"gate.keys", "gate.whole", "gate.at_prompt"}
TRAINED = PAIRS | {"own_values"}

PARTS: list[tuple[dict[str, Any], set[str], set[str]]] = [
    ({}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"only_intrinsic": True}, PAIRS, PAIRS),
    ({"only_latent": True, "train_entry": False}, OWN, set()),
    ({"only_latent": True}, OWN, {"own_values"}),
    ({"only_latent": True, "own_entry": False}, set(), set()),
    ({"no_collaboration": True}, PAIRS | OWN, TRAINED),
    ({"fixed_alpha": 0.3}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"fixed_alpha": 0}, PAIRS | {"shift"} | OF_GATE, PAIRS),
    ({"zeta": "off"}, PAIRS | OWN | OF_GATE, TRAINED),
    ({"zeta": "semantic"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"zeta": "random"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"zeta": "learned"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED | {"shift"}),
    ({"gate": False}, PAIRS | OWN | {"shift"}, TRAINED),
    ({"own_entry": False}, PAIRS | {"shift"} | OF_GATE, PAIRS),
    ({"train_entry": False}, PAIRS | OWN | {"shift"} | OF_GATE, PAIRS),
    ({"entry": "every"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"train_keys": False}, PAIRS | OWN | {"shift"} | OF_GATE, {"values", "own_values"}),
    ({"site": "raw"}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"literal_eq7": True}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"paper": True}, PAIRS | OWN | {"shift"}, PAIRS),
]


@pytest.mark.parametrize(("settings", "parts", "trained"), PARTS, ids=[named(settings) for settings, *_ in PARTS])
def test_each_setting_has_its_parts_and_trains_its_own(
    llava: Backbone,
    editor: Any,
    facts: list[Query],
    anchors: Anchors,
    settings: dict[str, Any],
    parts: set[str],
    trained: set[str],
) -> None:
    make = editor(llava)
    start = make(anchors, steps=0, **settings).edit(llava, facts[:2])
    edit = make(anchors, steps=4, lr=1e-2, **settings).edit(llava, facts[:2])
    expected = {f"{layer}.{part}" for layer in LAYERS for part in parts - OF_GATE} | (parts & OF_GATE)
    if not settings.get("only_intrinsic"):
        expected.add("knowledge")
    assert start.tensors.keys() == edit.tensors.keys() == expected
    for name in expected:
        in_rows = (start.tensors[name] != edit.tensors[name]).flatten(1).any(dim=1).tolist()
        assert in_rows == [name not in OF_GATE and name.rpartition(".")[2] in trained] * 2, name
    batch = llava.encode(facts[:2])
    with start.attached(llava):
        before = token_nll(llava.forward(batch), batch.labels)
    with edit.attached(llava):
        after = token_nll(llava.forward(batch), batch.labels)
    assert (after < before).all() if trained else torch.equal(after, before)


def test_without_both_kinds_of_collaboration_and_alpha_it_is_the_intrinsic_half(
    tiny: Backbone, editor: Any, facts: list[Query], anchors: Anchors
) -> None:
    alone = editor(tiny)(anchors, only_intrinsic=True, steps=5).edit(tiny, facts)
    other = editor(tiny)(anchors, fixed_alpha=0, zeta="off", gate=False, steps=5).edit(tiny, facts)
    assert alone.tensors.keys() == other.tensors.keys() - {"knowledge"}
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in alone.tensors.items())
    batch = tiny.encode(facts)
    with alone.attached(tiny):
        expected, answers = tiny.forward(batch), tiny.generate(facts, max_new_tokens=3)
    with other.attached(tiny):
        assert torch.equal(tiny.forward(batch), expected)
        assert tiny.generate(facts, max_new_tokens=3) == answers


def test_the_rows_of_table_4_are_the_method_with_switches_off(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    """``no_collaboration`` is a fixed alpha, no zeta, no gate; ``only_latent`` is that without pairs."""
    batch = llava.encode(facts[:2])

    def logits(**settings: Any) -> Tensor:
        with editor(llava)(**settings).edit(llava, facts[:2]).attached(llava):
            return llava.forward(batch)

    plain = {"fixed_alpha": PLAIN_ALPHA, "zeta": "off", "gate": False}
    assert torch.equal(logits(no_collaboration=True, steps=3), logits(**plain, steps=3))
    untrained = {"only_latent": True, "train_entry": False}
    assert torch.equal(logits(**untrained), logits(**plain, steps=0))
    assert torch.equal(logits(**untrained, fixed_alpha=0.4), logits(**plain | {"fixed_alpha": 0.4}, steps=0))
    assert not torch.equal(logits(no_collaboration=True, steps=3), logits(only_latent=True))
    assert torch.equal(logits(only_latent=True, fixed_alpha=0), llava.forward(batch))


def test_settings_without_knowledge_need_none(
    llava: Backbone, facts: list[Query], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    bare = tiny_backbone("llava")
    UniKE(layers=LAYERS, steps=1, only_intrinsic=True).edit(bare, facts[0])
    for settings in ({}, {"only_latent": True}, {"no_collaboration": True}, {"fixed_alpha": 0.0}):
        editor = UniKE(layers=LAYERS, steps=1, **settings)
        for fails in (partial(editor.edit, bare, facts[0]), partial(editor.prepare, bare)):
            with pytest.raises(UnikeError, match=r"run: unike prepare --model .* or edit with only_intrinsic=true"):
                fails()
        assert not bare.edits


def test_knowledge_without_a_gate(
    llava: Backbone, facts: list[Query], make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    replace(make_knowledge(llava), gate=None).save_pretrained(tmp_path)
    settings = {"layers": LAYERS, "steps": 1, "knowledge": str(tmp_path)}
    with pytest.raises(UnikeError, match=r"has no gate; run unike prepare anew, or set gate=false"):
        UniKE(**settings).edit(llava, facts[0])
    UniKE(**settings, gate=False).edit(llava, facts[0])


# ---------------------------------------------------------------------- what they mean


def test_paper_is_what_the_paper_says_and_can_be_overridden() -> None:
    assert UniKEConfig(paper=True) == UniKEConfig(
        paper=True,
        gate=False,
        centred_retrieval=False,
        k=40,
        entry="last",
        train_entry=False,
        key_init="raw",
        threshold=0.0,
    )
    assert UniKEConfig(paper=True).model_dump() == UniKEConfig().model_dump() | PAPER | {"paper": True}
    assert UniKEConfig(paper=True, gate=True, threshold=0.2).gate
    assert UniKEConfig(paper=True, gate=True, threshold=0.2).threshold == 0.2
    assert UniKEConfig(paper=False) == UniKEConfig()
    for config in (UniKEConfig(paper=True, gate=True, k=3), UniKEConfig(paper=True)):
        assert UniKEConfig.parse(config.model_dump(mode="json")) == config


def test_settings_that_exclude_each_other_are_refused_in_one_line() -> None:
    rows = ("only_intrinsic", "only_latent", "no_collaboration")
    for first in rows:
        UniKEConfig.parse({first: True})
        for second in set(rows) - {first}:
            with pytest.raises(UnikeError, match=r"^settings do not go together: choose one of only_intrinsic, .*"):
                UniKEConfig.parse({first: True, second: True})
    for wrong in ({"fixed_alpha": 1.5}, {"k": 0}, {"zeta": "true"}, {"layers": []}, {"beta": -1}, {"site": "both"}):
        with pytest.raises(UnikeError, match=f"setting {next(iter(wrong))}="):
            UniKEConfig.parse(wrong)
