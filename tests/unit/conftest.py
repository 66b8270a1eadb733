"""A command line to call, with a tiny model in a folder and a cache folder of its own."""

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from unike import api
from unike.backbones import tinies
from unike.backbones.base import Backbone
from unike.cli import _shared, main
from unike.editors.base import Edit, Editor, EditorConfig
from unike.editors.ft import FTConfig, FTEdit
from unike.functional import token_nll
from unike.hooks import Hooks
from unike.modules.anchors import Anchors
from unike.modules.optimise import optimise
from unike.types import EditCase, Probe, Query, SplitState


@dataclass(frozen=True)
class Result:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str

    def is_error(self, *parts: str) -> bool:
        """Whether it is one line for the user, without a traceback, that says all of this."""
        line = self.err.removesuffix("\n")
        told = line.startswith("error: ") and "\n" not in line and all(part in line for part in parts)
        return self.code == 2 and not self.out and told


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, for ``--model``."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tinies()["llava"]().save_pretrained(folder)
    return folder


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Result]:
    """``cli("ask", "--prompt", "x")``: `main` in this process, in an empty folder, with two anchors instead of 96."""
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(_shared.OUT, "width", 160)
    monkeypatch.setattr(api, "default_anchors", lambda: Anchors([Query("What is the capital of Peru?"), Query("Why?")]))

    def call(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["unike", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    return call


# ---------------------------------------------------------------------- a benchmark in miniature


def case(number: int, pictures: list[Path]) -> EditCase:
    """A case with every kind of probe; several have no picture or no gold answer."""
    picture, other = pictures[number % 3], pictures[(number + 1) % 3]
    target = ("a cat", "red", "bob")[number % 3]
    probes = [
        Probe("t_generality", Query(f"So, what is number {number}?", picture, target)),
        Probe("m_generality", Query(f"What is {number}?", other, target)),
        Probe("t_locality", Query(f"{number} + 1?", None, str(number + 1))),
        Probe("m_locality", Query("How big?", other, "tiny")),
        Probe("portability", Query(f"And who is {number}?", picture, "not that")),
        Probe("specificity", Query("Where is it?", picture, None)),
    ]
    return EditCase(f"case-{number}", Query(f"What is {number}?", picture, target), tuple(probes), domain="photo")


class Scatter(Editor[FTConfig]):
    """Random changes of the last layer, as large as ``lr``: what an edit may do to a model, good or bad."""

    name = "scatter"
    config_class = FTConfig
    edit_class = FTEdit

    def split(self, backbone: Backbone) -> int:
        return backbone.layer_index(-1)

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for fact in facts:
            generator = torch.Generator().manual_seed(zlib.crc32(fact.prompt.encode()))
            for name, linear in backbone.ffn(-1).matrices.items():
                noise = torch.randn(linear.weight.shape, generator=generator)
                found.setdefault(name, []).append(self.config.lr * noise)
        return {name: torch.stack(rows) for name, rows in found.items()}


class Prefixed(Edit):
    """What a method does that rewrites questions: the edited fact is put in front of each."""

    editor = "prefix"
    config_class = EditorConfig
    asked: ClassVar[list[Query]] = []

    def install(self, backbone: Backbone, hooks: Hooks) -> None:
        pass

    @classmethod
    def rewritten(cls, edits: Sequence[Edit], queries: Sequence[Query]) -> list[Query]:
        facts = "".join(f"New fact: {fact.prompt} {fact.target}\n" for edit in edits for fact in edit.facts)
        return [replace(query, prompt=facts + query.prompt) for query in queries]

    @classmethod
    def answer(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        cls.asked += queries
        return backbone.generate(cls.rewritten(edits, queries), **kwargs)

    @classmethod
    def target_logits(
        cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query], state: SplitState | None = None
    ) -> Tensor:
        assert state is None, "a rewritten question has another state"
        return Edit.target_logits([], backbone, cls.rewritten(edits, queries))


class Prefix(Editor[EditorConfig]):
    """Makes `Prefixed`."""

    name = "prefix"
    config_class = EditorConfig
    edit_class = Prefixed

    def split(self, backbone: Backbone) -> None:
        return None

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        return {}


@pytest.fixture(scope="session")
def cases(pictures: list[Path]) -> list[EditCase]:
    """Four of them."""
    return [case(number, pictures) for number in range(4)]


@pytest.fixture(scope="session")
def taught(cases: list[EditCase]) -> Backbone:
    """A tiny model that has learnt to answer some of the cases' questions, and to stop.

    Random models babble up to the limit, so nothing would tell an answer that ends from one that is cut off.
    """
    backbone = tinies()["llava"]()
    said = {"How big?": "tiny", "Where is it?": "a\nb"} | {f"{number} + 1?": "six" for number in range(4)}
    asked = [query for c in cases for query in [c.edit, *(probe.query for probe in c.probes)]]
    lines = [replace(query, target=said.get(query.prompt, "tin bat")) for query in dict.fromkeys(asked)]
    batch = backbone.encode(lines)
    weights = [w for layer in (-1, -2) for m in backbone.ffn(layer).matrices.values() for w in m.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    with torch.enable_grad():
        optimise(weights, lambda: token_nll(backbone.forward(batch), batch.labels), steps=50, lr=1e-2)
    for weight in weights:
        weight.requires_grad_(False).grad = None
    return backbone
