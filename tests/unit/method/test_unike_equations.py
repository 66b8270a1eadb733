"""UniKE against the paper's equations, written out in loops."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from by_hand import by_hand, rows_of
from tinies import tiny_backbone
from unike_parts import named, random_edit

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import inject
from unike.data.queries import Query
from unike.editors.unike.config import UniKEConfig
from unike.edits.edit import Edit
from unike.edits.stack import attached

pytestmark = pytest.mark.usefixtures("wide_words")


def compare(backbone: Backbone, config: UniKEConfig, edits: Sequence[Edit], asked: list[Query]) -> None:
    """The logits of every position, under the library's hooks and by hand."""
    batch = backbone.encode(asked)
    plain = backbone.forward(batch)
    with attached(backbone, edits):
        found = backbone.forward(batch)
    with by_hand(backbone, config, rows_of(edits, len(asked)), batch):
        expected = backbone.forward(batch)
    assert torch.equal(backbone.forward(batch), plain), "both are off"
    real = batch.inputs["attention_mask"].bool()
    acted_on = real & (torch.arange(real.shape[1]) >= batch.prompt_last.unsqueeze(1))
    assert (expected - plain)[acted_on].abs().mean() > 0.05, "an edit that does nothing proves nothing"
    assert torch.allclose(found[real], expected[real], atol=1e-3, rtol=1e-3), (found - expected)[real].abs().max()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"collaboration": {"literal_eq7": True}},
        {"memory": {"site": "raw"}},
        {"memory": {"site": "raw"}, "collaboration": {"literal_eq7": True, "fixed_alpha": 0.6}},
        {"collaboration": {"fixed_alpha": 0.3}},
        {"collaboration": {"fixed_alpha": 0}},
        {"memory": {"own_entry": False}},
        {"memory": {"own_entry": False, "site": "raw"}},
        {"memory": {"entry": "every", "k": 16}},  # all, or it is chance which of those that are equally near
        {"memory": {"centred": False}},
        {"memory": {"size": 3, "k": 2}},
        {"memory": {"size": 0}},
        {"gate": {"on": False}},
        {"gate": {"on": False}, "collaboration": {"zeta": "off"}},
        {"ablation": "only_latent"},
        {"ablation": "no_collaboration"},
        {"ablation": "only_intrinsic"},
        {"paper": True},
        {"layers": (-1,)},
    ],
    ids=named,
)
def test_an_installed_edit_is_the_equations(
    tiny: Backbone, editor: Any, facts: list[Query], settings: dict[str, Any]
) -> None:
    """Two independent edits in one batch; row 0 is asked its own question, row 1 the other's."""
    chosen = editor(tiny)(**settings)
    edit = random_edit(chosen, tiny, facts[:2])
    compare(tiny, chosen.config, [edit], [facts[0], replace(facts[2], target="something else")])


def test_a_stack_is_the_equations(tiny: Backbone, editor: Any, facts: list[Query]) -> None:
    """A single edit that serves all rows, below a batch of two, above another single one."""
    chosen = editor(tiny)()
    edits = [
        random_edit(chosen, tiny, facts[:1]),
        random_edit(chosen, tiny, facts[1:], 1),
        random_edit(chosen, tiny, [replace(facts[2], prompt="Is it near?")], 2),
    ]
    compare(tiny, chosen.config, edits, [facts[1], facts[0]])
    compare(tiny, chosen.config, edits, [facts[1], facts[0], facts[2], facts[0]])


def test_batches_of_different_sizes_share_the_rows(llava: Backbone, editor: Any, facts: list[Query]) -> None:
    chosen = editor(llava)()
    edits = [random_edit(chosen, llava, facts[:2]), random_edit(chosen, llava, facts, 1)]
    compare(llava, chosen.config, edits, [*facts, *facts])


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_is_the_equations_without_a_cache(
    family: str, beams: int, editor: Any, facts: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recalled once from the prompt is what would be recalled anew for each token; each row its own edit."""
    backbone = tiny_backbone(family)
    chosen = editor(backbone)()
    edit, asked = random_edit(chosen, backbone, facts[:2]), facts[:2]
    generate = partial(backbone.generate, asked, max_new_tokens=4, num_beams=beams)
    placeholder = torch.tensor([backbone.image_token_id])
    with inject(backbone.head, output=lambda logits: logits.index_fill(-1, placeholder, -1e3)):
        plain = generate()
        with edit.attached(backbone):
            answers = generate()
        batch = backbone.encode([replace(query, target=None) for query in asked], padding_side="left")
        without_cache = partial(transformers.GenerationConfig, use_cache=False)
        monkeypatch.setattr(transformers, "GenerationConfig", without_cache)
        with by_hand(backbone, chosen.config, rows_of([edit], 2), batch):
            assert generate() == answers
    assert answers != plain
