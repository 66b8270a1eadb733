"""Variants of studies are the methods that they are called, and runs that differ."""

import pytest

from unike.cli.study import NAMES
from unike.core import registry
from unike.core.errors import UnikeError
from unike.editors.unike.collaboration import FixedAlpha
from unike.editors.unike.config import UniKEConfig
from unike.studies import ablation, context_size
from unike.studies.base import VariantStudy, study_named, whole
from unike.studies.lab import Variant
from unike.studies.request import Request


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(type(study_named(name)), VariantStudy)])
def test_variants_are_different_runs_of_methods_that_exist(name: str) -> None:
    study = study_named(name)
    assert isinstance(study, VariantStudy)
    variants = study.variants(Request())
    assert len({variant.folder for variant in variants}) == len(variants)
    configs = {
        (
            v.editor,
            registry.editors.get(v.editor).config_class.parse(v.with_base({"steps": 7} if v.editor != "ft" else {})),
        )
        for v in variants
    }
    assert len(configs) == len(variants)


def is_dynamic(config: UniKEConfig) -> bool:
    return config.collaborates and config.collaboration.fixed_alpha is None


def test_rows_of_table_4_are_what_they_are_called() -> None:
    made = {v.name: UniKEConfig.parse(dict(v.settings)) for v in ablation.ROWS if v.editor == "unike"}
    parts = {
        name: (
            c.has_pairs,
            c.has_memory,
            c.has_zeta,
            is_dynamic(c),
            c.has_gate,
        )
        for name, c in made.items()
    }
    assert parts["only Intrin"] == (True, False, False, False, False)
    assert parts["only Latent-IKE"][:2] == parts["only Latent-IKE, as in the paper"][:2] == (False, True)
    assert parts["Intrin + Latent-IKE"] == (True, True, False, False, False)
    assert parts["+ zeta"] == (True, True, True, False, False)
    assert parts["+ alpha"] == (True, True, False, True, False)
    assert parts["+ gate"] == (True, True, False, False, True)
    assert parts["+ zeta + alpha (no gate)"] == (True, True, True, True, False)
    assert parts["UniKE"] == (True, True, True, True, True)
    assert made["UniKE as in the paper"].memory.k == made["only Latent-IKE, as in the paper"].memory.k == 40
    assert FixedAlpha(ablation.CONSTANT_ALPHA)


def test_demonstrations_are_as_many_as_are_asked_for_in_ikes_proportions() -> None:
    for count in (0, 1, 2, 3, 4, 8, 16, 64):
        assert sum(context_size.demonstrations(count).values()) == count
    assert context_size.demonstrations(32) == {"n_copy": 3, "n_update": 12, "n_retain": 17}
    assert context_size.demonstrations(64) == {"n_copy": 6, "n_update": 24, "n_retain": 34}


def test_all_states_of_a_size_are_retrieved_beside_the_edits_own() -> None:
    own = UniKEConfig.parse({}).pairs.n
    assert context_size.states(8, {}) == {
        "ablation": "no_collaboration",
        "memory.size": 8,
        "memory.k": 8 + own,
    }
    assert context_size.states(8, {"memory.entry": "last"})["memory.k"] == 9
    assert context_size.states(0, {"memory.own_entry": False})["memory.k"] == 1


def test_base_settings_reach_the_half_they_are_of() -> None:
    base = {"steps": 3}
    assert Variant("x", {"gate": False}).with_base(base) == {"steps": 3, "gate": False}
    assert Variant("x", {"ike": {"n_copy": 1}}, "intrinsic_ike").with_base(base) == {
        "intrinsic": {"steps": 3},
        "ike": {"n_copy": 1},
    }
    assert Variant("x", editor="ft").with_base(base) == {}
    assert Variant("x", {"ike": {"n_copy": 1}}, "intrinsic_ike").folder == "intrinsic_ike-n_copy=1"


def test_only_whole_numbers() -> None:
    assert whole((1.0, 10.0), "a number of edits", least=1) == (1, 10)
    with pytest.raises(UnikeError, match="--at 0 is not a number of edits; give whole numbers from 1 on"):
        whole((0.0,), "a number of edits", least=1)
