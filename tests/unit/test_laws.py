"""Laws are found broken where they are, and ``unike models check`` says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone
from typer.testing import CliRunner

from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import running
from unike.backbones.forward.split import SplitState
from unike.cli import app
from unike.core import registry
from unike.editors import checks as laws


@pytest.fixture
def llava() -> Backbone:
    tiny: Backbone = tiny_backbone("llava")
    return tiny


def broken(findings: list[laws.Finding]) -> list[str]:
    return [finding.law.name for finding in findings if not finding.holds]


def forgetful(method: Callable[..., Any]) -> Callable[..., Any]:
    """The result of a method, with noise where it is a tensor."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        return result + 0.1 * torch.randn_like(result)

    return changed


def test_a_sound_model_breaks_none(llava: Backbone, tmp_path: Path) -> None:
    reported: list[str] = []
    findings = laws.check(llava, laws.some_questions(tmp_path), reported.append)
    assert not broken(findings)
    assert [finding.law for finding in findings] == list(laws.LAWS)
    assert reported == [law.promise for law in laws.LAWS]


def test_a_pass_that_is_resumed_wrongly_is_found(llava: Backbone, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(llava, "run_from_split", forgetful(llava.run_from_split))
    assert {"split", "shortened"} <= set(broken(laws.check(llava, laws.some_questions(tmp_path))))


def test_a_model_that_sees_padding_is_found(llava: Backbone, tmp_path: Path, monkeypatch: Any) -> None:
    forward = llava.model.forward

    def unmasked(*args: Any, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        return forward(*args, attention_mask=torch.ones_like(attention_mask), **kwargs)

    monkeypatch.setattr(llava.model, "forward", unmasked)
    assert "rows" in broken(laws.check(llava, laws.some_questions(tmp_path)))


def test_a_network_that_is_elsewhere_is_found(llava: Backbone, tmp_path: Path, monkeypatch: Any) -> None:
    """What is called its output is not added to the residual stream: nothing is learned there."""
    ffn, stray = llava.ffn, torch.nn.Linear(llava.width, llava.width)

    def wrong(i: int) -> Any:
        return type(ffn(i))(ffn(i).inputs, stray, ffn(i).matrices, gated=True)

    monkeypatch.setattr(llava, "ffn", wrong)
    findings = {finding.law.name: finding for finding in laws.check(llava, laws.some_questions(tmp_path))}
    assert not findings["hooks"].holds and findings["hooks"].measured is None
    assert findings["hooks"].error == "RuntimeError: the traced module was never called"
    assert not findings["learning"].holds and not findings["detaching"].holds


def test_prompts_that_are_read_both_ways_cannot_be_shortened(tmp_path: Path, monkeypatch: Any) -> None:
    """PaliGemma's: the law of shortening would hold of the bare model, but not of one that is edited at ``p``."""
    tiny = tiny_backbone("paligemma")
    state = tiny.run_to_split(tiny.encode(laws.some_questions(tmp_path)), -3)
    monkeypatch.setattr(tiny, "reads_prompts_both_ways", False)
    short = tiny.shorten(state)

    def logits(state: SplitState) -> torch.Tensor:
        def push(module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            prefill = running()
            assert prefill is not None
            return output + prefill.from_prompt_last(output) * 1.0

        with laws.Hooks() as hooks:
            hooks.add(tiny.layers[-3], push)
            return tiny.run_from_split(state)[:, short.start - state.start :]

    assert not torch.allclose(logits(state)[0], logits(short)[0], atol=1e-2)


# ---------------------------------------------------------------------- half precision


def test_laws_and_patches_in_half_precision(llava: Backbone, tmp_path: Path) -> None:
    llava.save_pretrained(tmp_path / "model")
    half = load_backbone(tmp_path / "model", device="cpu", dtype="bfloat16")
    questions = laws.some_questions(tmp_path)
    assert half.dtype == torch.bfloat16
    assert not broken(laws.check(half, questions))
    for editor in ("ft", "t_patcher"):
        edit = registry.editors.get(editor)(steps=2).edit(half, questions)
        assert {tensor.dtype for tensor in edit.tensors.values() if tensor.is_floating_point()} == {torch.float32}


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("model")
    tiny_backbone("llava").save_pretrained(place)
    return str(place)


def test_the_command_says_which_laws_hold(folder: str) -> None:
    result = CliRunner().invoke(app, ["models", "check", folder, "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["adapter"], said["holds"], said["layers"]) == ("llava", True, 4)
    assert [law["law"] for law in said["laws"]] == [law.name for law in laws.LAWS]
    assert all(law["holds"] and law["error"] == "" for law in said["laws"])
    table = CliRunner().invoke(app, ["models", "check", folder, "--device", "cpu"])
    assert table.exit_code == 0
    assert table.stdout.count("holds") >= len(laws.LAWS) and "does not hold" not in table.stdout


def test_the_command_fails_where_a_law_does(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "run_from_split", forgetful(Backbone.run_from_split))
    result = CliRunner().invoke(app, ["models", "check", folder, "--device", "cpu", "--json"])
    assert result.exit_code == 1
    assert not json.loads(result.stdout)["holds"]


def test_the_command_refuses_what_is_no_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["models", "check", str(tmp_path), "--device", "cpu"])
    assert result.exit_code == 2
    assert "cannot load the folder" in result.stderr
