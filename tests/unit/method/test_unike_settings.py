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
from unike.editors.unike.config import FLAT, PAPER, ROWS, UniKEConfig, merged
from unike.editors.unike.editor import UniKE
from unike.editors.unike.knowledge import Knowledge
from unike.edits.stack import edits_on

# ---------------------------------------------------------------------- settings: which parts there are


PAIRS, OWN = {"keys", "bias", "values"}, {"own_key", "own_values"}
OF_GATE = {"gate.picture", "gate.usual", "gate.asked"}
TRAINED = PAIRS | {"own_values"}

PARTS: list[tuple[dict[str, Any], set[str], set[str]]] = [
    ({}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"ablation": "only_intrinsic"}, PAIRS, PAIRS),
    ({"ablation": "only_latent", "memory": {"train_entry": False}}, OWN, set()),
    ({"ablation": "only_latent"}, OWN, {"own_values"}),
    ({"ablation": "only_latent", "memory": {"own_entry": False}}, set(), set()),
    ({"ablation": "no_collaboration"}, PAIRS | OWN, TRAINED),
    ({"collaboration": {"fixed_alpha": 0.3}}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"collaboration": {"fixed_alpha": 0}}, PAIRS | {"shift"} | OF_GATE, PAIRS),
    ({"collaboration": {"zeta": "off"}}, PAIRS | OWN | OF_GATE, TRAINED),
    ({"collaboration": {"zeta": "semantic"}}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"collaboration": {"zeta": "random"}}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"collaboration": {"zeta": "learned"}}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED | {"shift"}),
    ({"gate": {"on": False}}, PAIRS | OWN | {"shift"}, TRAINED),
    ({"memory": {"own_entry": False}}, PAIRS | {"shift"} | OF_GATE, PAIRS),
    ({"memory": {"train_entry": False}}, PAIRS | OWN | {"shift"} | OF_GATE, PAIRS),
    ({"memory": {"entry": "every"}}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"pairs": {"train_keys": False}}, PAIRS | OWN | {"shift"} | OF_GATE, {"values", "own_values"}),
    ({"memory": {"site": "raw"}}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
    ({"collaboration": {"literal_eq7": True}}, PAIRS | OWN | {"shift"} | OF_GATE, TRAINED),
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
    if settings.get("ablation") != "only_intrinsic":
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


def without_collaboration(alpha: float) -> dict[str, Any]:
    """A fixed alpha, no zeta, no gate."""
    return {"collaboration": {"fixed_alpha": alpha, "zeta": "off"}, "gate": {"on": False}}


def test_without_both_kinds_of_collaboration_and_alpha_it_is_the_intrinsic_half(
    tiny: Backbone, editor: Any, facts: list[Query], anchors: Anchors
) -> None:
    alone = editor(tiny)(anchors, ablation="only_intrinsic", steps=5).edit(tiny, facts)
    other = editor(tiny)(anchors, **without_collaboration(0), steps=5).edit(tiny, facts)
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

    fixed = {"collaboration": {"fixed_alpha": 0.4}}
    untrained = {"ablation": "only_latent", "memory": {"train_entry": False}}
    neither = logits(ablation="no_collaboration", steps=3)
    assert torch.equal(neither, logits(**without_collaboration(PLAIN_ALPHA), steps=3))
    assert torch.equal(logits(**untrained), logits(**without_collaboration(PLAIN_ALPHA), steps=0))
    assert torch.equal(logits(**untrained, **fixed), logits(**without_collaboration(0.4), steps=0))
    assert not torch.equal(neither, logits(ablation="only_latent"))
    silent = logits(ablation="only_latent", collaboration={"fixed_alpha": 0})
    assert torch.equal(silent, llava.forward(batch))


def test_settings_without_knowledge_need_none(
    llava: Backbone, facts: list[Query], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    bare = tiny_backbone("llava")
    UniKE(layers=LAYERS, steps=1, ablation="only_intrinsic").edit(bare, facts[0])
    for settings in (
        {},
        {"ablation": "only_latent"},
        {"ablation": "no_collaboration"},
        {"collaboration": {"fixed_alpha": 0.0}},
    ):
        editor = UniKE(layers=LAYERS, steps=1, **settings)
        for fails in (partial(editor.edit, bare, facts[0]), partial(editor.prepare, bare)):
            with pytest.raises(UnikeError, match=r"run: unike prepare --model .* or edit with ablation=only_intrinsic"):
                fails()
        assert not edits_on(bare)


def test_knowledge_without_a_gate(
    llava: Backbone, facts: list[Query], make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    replace(make_knowledge(llava), gate=None).save_pretrained(tmp_path)
    settings = {"layers": LAYERS, "steps": 1, "knowledge": str(tmp_path)}
    with pytest.raises(UnikeError, match=r"has no gate; run unike prepare anew, or set gate.on=false"):
        UniKE(**settings).edit(llava, facts[0])
    UniKE(**settings, gate={"on": False}).edit(llava, facts[0])


# ---------------------------------------------------------------------- what they mean


def test_paper_is_what_the_paper_says_and_can_be_overridden() -> None:
    assert UniKEConfig(paper=True) == UniKEConfig(
        paper=True,
        gate={"on": False},
        memory={"centred": False, "k": 40, "entry": "last", "train_entry": False},
        pairs={"key_init": "raw", "threshold": 0.0},
        everywhere=True,
    )
    changed = merged(UniKEConfig().model_dump(), {**PAPER, "paper": True})
    assert UniKEConfig(paper=True).model_dump() == changed
    overridden = UniKEConfig(paper=True, gate={"on": True}, pairs={"threshold": 0.2})
    assert overridden.gate.on and overridden.pairs.threshold == 0.2
    assert overridden.pairs.key_init == "raw", "what lies beside it is the paper's still"
    assert UniKEConfig(paper=False) == UniKEConfig()
    for config in (UniKEConfig(paper=True, gate={"on": True}, memory={"k": 3}), UniKEConfig(paper=True)):
        assert UniKEConfig.parse(config.model_dump(mode="json")) == config


def test_settings_that_are_impossible_are_refused_in_one_line() -> None:
    for wrong in ({"pairs": {"n": 0}}, {"memory": {"site": "both"}}, {"gate": {"rivalry": 0}}):
        ((room, given),) = wrong.items()
        with pytest.raises(UnikeError, match=rf"^setting {room}\.{next(iter(given))}="):
            UniKEConfig.parse(wrong)
    with pytest.raises(UnikeError, match=r"^setting gate\.on=3: "):
        UniKEConfig.parse({"gate": 3})
    for alone in ({"layers": []}, {"ablation": "nothing"}, {"steps": -1}):
        with pytest.raises(UnikeError, match=f"^setting {next(iter(alone))}="):
            UniKEConfig.parse(alone)
    for unknown in ({"pair": {}}, {"memory": {"sice": 3}}):
        with pytest.raises(UnikeError, match="setting"):
            UniKEConfig.parse(unknown)


# ---------------------------------------------------------------------- settings of version 0.1


OLD: dict[str, Any] = {
    "paper": False,
    "only_intrinsic": False,
    "only_latent": False,
    "no_collaboration": True,
    "layers": [-3, 1],
    "knowledge": "elsewhere",
    "n_pairs": 7,
    "steps": 3,
    "lr": 0.5,
    "clip": None,
    "key_init": "whitened",
    "shrinkage": 0.7,
    "threshold": 0.9,
    "noise": 0.25,
    "locality": 0.125,
    "margin": -2.5,
    "train_keys": False,
    "seed": 99,
    "k": 13,
    "site": "raw",
    "centred_retrieval": False,
    "memory_size": 0,
    "own_entry": False,
    "entry": "last",
    "train_entry": False,
    "fixed_alpha": 1,
    "alpha_slope": -0.5,
    "alpha_offset": 1.5,
    "literal_eq7": True,
    "zeta": "learned",
    "beta": 0.0,
    "gate": False,
    "slack": 0.75,
    "rivalry": None,
    "everywhere": True,
    "max_target_tokens": 5,
}
"""All of them; none that could be told by has the value it has by default."""

NEW: dict[str, Any] = {
    "paper": False,
    "ablation": "no_collaboration",
    "layers": [-3, 1],
    "knowledge": "elsewhere",
    "steps": 3,
    "lr": 0.5,
    "clip": None,
    "seed": 99,
    "everywhere": True,
    "max_target_tokens": 5,
    "pairs": {
        "n": 7,
        "key_init": "whitened",
        "shrinkage": 0.7,
        "threshold": 0.9,
        "noise": 0.25,
        "locality": 0.125,
        "margin": -2.5,
        "train_keys": False,
    },
    "memory": {
        "k": 13,
        "site": "raw",
        "centred": False,
        "size": 0,
        "own_entry": False,
        "entry": "last",
        "train_entry": False,
    },
    "collaboration": {
        "fixed_alpha": 1,
        "alpha_slope": -0.5,
        "alpha_offset": 1.5,
        "literal_eq7": True,
        "zeta": "learned",
        "beta": 0.0,
    },
    "gate": {"on": False, "slack": 0.75, "rivalry": None},
}


LATER = ("rounds", "lead", "any_wording", "tells")
"""Settings that version 0.1 did not have."""


def test_settings_of_version_0_1_mean_what_they_meant() -> None:
    config = UniKEConfig.parse(OLD)
    assert config == UniKEConfig.parse(NEW)
    assert UniKEConfig.parse(config.model_dump(mode="json")) == config
    dumped, usual = config.model_dump(), UniKEConfig().model_dump()
    for name, value in dumped.items():
        of_room = value if isinstance(value, dict) else {name: value}
        for own, each in of_room.items():
            default = usual[name][own] if isinstance(value, dict) else usual[name]
            assert each != default or own in ("paper", *LATER), f"{name} {own} would not be noticed"
    assert set(OLD) >= set(FLAT) | {"gate", *ROWS}


@pytest.mark.parametrize("name", sorted(set(OLD) - {"paper", "layers", "no_collaboration"}))
def test_each_setting_of_version_0_1_changes_that_one_alone(name: str) -> None:
    usual, config = (flattened(each.model_dump()) for each in (UniKEConfig(), UniKEConfig.parse({name: OLD[name]})))
    changed = {key for key in usual if usual[key] != config[key]}
    own = {"gate": "gate.on"}.get(name, FLAT.get(name, name))
    assert changed == (set() if name in ROWS else {own})


def flattened(settings: dict[str, Any]) -> dict[str, Any]:
    dotted = {}
    for name, value in settings.items():
        rooms = {f"{name}.{own}": each for own, each in value.items()} if isinstance(value, dict) else {name: value}
        dotted |= rooms
    return dotted


def test_the_paper_of_version_0_1_is_overridden_by_its_names() -> None:
    found = UniKEConfig.parse({"paper": True, "gate": True, "k": 3, "threshold": 0.2, "slack": 0.5})
    settings = {"gate": {"on": True, "slack": 0.5}, "memory": {"k": 3}, "pairs": {"threshold": 0.2}}
    assert found == UniKEConfig.parse({"paper": True, **settings})
    assert not found.memory.centred and found.everywhere
    both = UniKEConfig.parse({"gate": {"slack": 0.5}, "rivalry": None, "memory": {"k": 3}, "memory_size": 4})
    assert (both.gate.slack, both.gate.rivalry) == (0.5, None), "old and new names may stand side by side"
    assert (both.memory.k, both.memory.size) == (3, 4)


def test_rows_of_table_4_exclude_each_other() -> None:
    for first in ROWS:
        assert UniKEConfig.parse({first: True}) == UniKEConfig.parse({"ablation": first})
        for second in set(ROWS) - {first}:
            with pytest.raises(UnikeError, match=r"^settings do not go together: choose one of only_intrinsic, .*"):
                UniKEConfig.parse({first: True, second: True})
    for wrong in ({"fixed_alpha": 1.5}, {"k": 0}, {"zeta": "true"}, {"beta": -1}, {"site": "both"}):
        ((name, value),) = wrong.items()
        with pytest.raises(UnikeError, match=rf"^setting {FLAT[name]}={value!r}"):
            UniKEConfig.parse(wrong)


# ---------------------------------------------------------------------- facts


@pytest.mark.parametrize("prompt", ["?", "...", "&", "\u200b", "\ufeff", "\x01", "\U0001f71a"])
def test_a_question_without_a_word_needs_a_picture(
    llava: Backbone, editor: Any, facts: list[Query], prompt: str
) -> None:
    """There is nothing that the gate could be opened by, nor anything to be trained."""
    method = editor(llava)(steps=1)
    bare = replace(facts[0], prompt=prompt, image=None)
    with pytest.raises(UnikeError, match=r"has no word, and no picture, to tell what it is about; say it in words$"):
        method.check(llava, bare)
    method.check(llava, replace(bare, image=facts[0].image))
    method.check(llava, replace(bare, prompt="Кто?"))
    editor(llava)(steps=1, gate={"on": False}).check(llava, bare)
