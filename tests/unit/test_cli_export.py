"""``unike export``: an export that is used, what is told of it, and mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unike.cli import _shared

Cli = Callable[..., Any]


@pytest.fixture
def saved(cli: Cli, tiny_folder: Path, pictures: list[Path]) -> str:
    """An edit of the model in `tiny_folder`."""
    asked = ("--model", tiny_folder, "--image", pictures[0], "--prompt", "What is this?", "--target", "a cat")
    made = cli("edit", *asked, "--editor", "ft", "--set", "lr=0.01", "--set", "steps=30")
    assert made.code == 0, made.err
    return "edits/a-cat"


def test_export_then_ask_the_model(cli: Cli, tiny_folder: Path, pictures: list[Path], saved: str) -> None:
    result = cli("export", "--edit", saved, "--model", tiny_folder, "--format", "merged", "--out", "out", "--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    assert (told["how"], told["out"], told["edits_from"]) == ("exact", "out", [saved])
    assert told["scores"]["own"]["exported"] == 1
    asked = cli("ask", "--model", "out", "--image", pictures[0], "--prompt", "What is this?")
    assert asked.out == "a cat\n"


def test_export_says_what_was_kept(cli: Cli, tiny_folder: Path, saved: str) -> None:
    result = cli("export", "--edit", saved, "--model", tiny_folder, "--rank", 4, "--out", "out")
    assert result.code == 0, result.err
    for told in (
        "the edit's own question",
        "what is unrelated",
        "cut down to the rank",
        "no edit can be taken out alone",
    ):
        assert told in result.out, told


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "there is no edit to export"),
        (("--edit", "missing"), "no edit in missing"),
        (("--edit", "EDIT", "--format", "gguf"), "--format 'gguf' is none of lora, merged"),
        (("--edit", "EDIT", "--lr", "0"), "setting lr=0.0"),
        (("--edit", "EDIT", "--out", "edits/a-cat"), "exists and is something else"),
        (("--edit", "EDIT"), "if you trust that model, name it: --model"),
    ],
)
def test_mistakes_are_known_before_the_model_is_loaded(
    cli: Cli, saved: str, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(_shared, "load", lambda *args: pytest.fail("the model was loaded before the mistake was found"))
    given = [saved if part == "EDIT" else part for part in args]
    result = cli("export", *given, *(() if "--out" in given else ("--out", "out")))
    assert result.is_error(told), result
