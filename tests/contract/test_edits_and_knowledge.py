"""An edit and the knowledge that it was made with: without that it is refused, and changes nothing."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from patches import hooks_on
from tinies import TINIES
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.unike.editor import UniKE
from unike.editors.unike.knowledge import Knowledge, knowledge_of
from unike.edits.stack import attached, edits_on

QUICK = {"lr": 2e-2, "steps": 2, "rounds": 1, "n_pairs": 3, "layers": (-2, -1), "k": 6}


def fact(number: int) -> Query:
    return Query(f"What is Corvane {number}?", target=("a cat", "red", "bob", "7")[number])


def logits_of(backbone: Backbone) -> Tensor:
    return backbone.forward(backbone.encode([fact(number) for number in range(3)]))


def test_an_edit_without_its_knowledge_is_refused_in_one_line(
    make_knowledge: Callable[..., Knowledge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody has it; it is another one; it is damaged. The model is left as it was, below it other edits act on."""
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    make = TINIES["llava"]
    place = tmp_path / "knowledge" / make().fingerprint()
    make_knowledge(make()).save_pretrained(place)
    edit = UniKE(**QUICK).edit(make(), [fact(0), fact(1)])
    below = registry.editors.get("ft")(lr=1e-2, steps=2).edit(make(), fact(2))
    free = UniKE(**QUICK, only_intrinsic=True).edit(make(), fact(3))

    def refused(match: str) -> None:
        backbone = make()
        with attached(backbone, [below, free]):
            expected, hooks = logits_of(backbone), hooks_on(backbone)
            with pytest.raises(UnikeError, match=match) as caught, edit.attached(backbone):
                pytest.fail("attached")
            assert "\n" not in str(caught.value)
            assert hooks_on(backbone) == hooks and list(edits_on(backbone)) == [below, free]
            assert torch.equal(logits_of(backbone), expected)

    with edit.attached(make()):
        pass
    make_knowledge(make(), seed=1).save_pretrained(place)
    refused(
        r"^the edit 'What is Corvane 0\?' was made with other knowledge of 'tiny-llava' than there is now "
        r".*make the edit anew$"
    )
    (place / "knowledge.safetensors").write_bytes(b"")
    refused(r"knowledge in .* is damaged")
    shutil.rmtree(place)
    refused(r"there is no in-context knowledge of 'tiny-llava' yet; run: unike prepare --model tiny-llava")
    make_knowledge(make()).save_pretrained(place)
    known = knowledge_of(make())
    for tensors in ({n: t for n, t in edit.tensors.items() if n != "knowledge"}, {**edit.tensors, "knowledge": OTHER}):
        forged = type(edit)(edit.config, tensors, edit.facts, fingerprint=edit.fingerprint, source=edit.source)
        with pytest.raises(UnikeError, match=f"was made with other knowledge .*{known.fingerprint}"):
            forged.attached(make()).__enter__()
    replaced = replace(known, description={**known.description, "notes": "another run"})
    replaced.save_pretrained(place)
    refused("was made with other knowledge")


OTHER = torch.zeros(2, 8, dtype=torch.uint8)
