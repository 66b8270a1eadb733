"""Models and editors for the tests of UniKE."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ramps
from tinies import tiny_backbone
from unike_parts import Make, editors_of, keys_of

from unike.backbones.adapter import Backbone
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.editors.unike.gate import Gate
from unike.editors.unike.knowledge import Knowledge
from unike.editors.unike.likeness import Reading


@pytest.fixture(scope="module", params=["llava", "qwen3_vl", "blip2-opt"])
def tiny(request: pytest.FixtureRequest) -> Backbone:
    """Grouped queries; with head norms; with biases, a flat network and a head for each key."""
    return tiny_backbone(request.param)


@pytest.fixture(scope="module")
def llava() -> Backbone:
    """One of them, for what does not depend on the family."""
    return tiny_backbone("llava")


@pytest.fixture(scope="module")
def knowledge(
    make_knowledge: Callable[..., Knowledge], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Backbone], str]:
    """``knowledge(backbone)``: a folder with a gate that is half open for other pictures."""
    folder = tmp_path_factory.mktemp("knowledge")

    def make(backbone: Backbone) -> str:
        there = folder / backbone.fingerprint()
        if not there.exists():
            make_knowledge(backbone).save_pretrained(there)
        return str(there)

    return make


@pytest.fixture
def wide_words() -> Iterator[None]:
    """Other questions are half asked, and other names half named."""
    with ramps.words(**ramps.WIDE):
        yield


@pytest.fixture(scope="module")
def relevance(backbone: Backbone, make_knowledge: Callable[..., Knowledge]) -> Gate:
    """Wide enough to be something between 0 and 1 for every input but its own."""
    gate = make_knowledge(backbone).gate
    assert gate is not None
    return gate


@pytest.fixture(scope="module")
def keys(backbone: Backbone, relevance: Gate, facts: list[Query]) -> Reading:
    """``[3, 1, n]``, one for each fact."""
    return keys_of(backbone, relevance, facts)


@pytest.fixture(scope="module")
def editor(knowledge: Any) -> Callable[[Backbone], Make]:
    """``editor(backbone)(**settings)``."""
    return lambda backbone: editors_of(knowledge(backbone))


@pytest.fixture(scope="module")
def anchors(pictures: list[Path]) -> Anchors:
    """Three questions, one with a picture."""
    return Anchors([Query("Is it near?", pictures[1]), Query("Who wrote it?"), Query("1 + 1?")])


@pytest.fixture(autouse=True)
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The equations are held to more digits than edits keep; `test_unike_rounding` is about these."""
    monkeypatch.setattr("unike.editors.unike.editor.rounded", lambda tensor: tensor)
