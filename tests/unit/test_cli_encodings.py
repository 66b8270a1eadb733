"""What is printed where the output cannot hold every character."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unike.cli import main

TARGET = "café 猫 😀"


@pytest.fixture(params=["cp1252", "ascii", "utf-8"])
def call(request: pytest.FixtureRequest, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`main`, with an output of this encoding, in the folder and home of `cli`."""

    def run(*args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["unike", *map(str, args)])
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, request.param))
        with pytest.raises(SystemExit) as caught:
            main()
        sys.stdout.flush()
        assert caught.value.code in (0, None)
        return out.getvalue().decode(request.param.replace("ascii", "utf-8"))  # as which typer writes to ascii

    return run


def test_an_answer_that_the_output_cannot_hold_is_told_all_the_same(
    call: Callable[..., str], tiny_folder: Path, pictures: list[Path]
) -> None:
    question = ("--image", pictures[0], "--prompt", "Whose is it?")
    place = ("--out", "there", "--editor", "answer_cache")
    told = call("edit", "--model", tiny_folder, *question, "--target", TARGET, *place)
    assert "saved in there" in told and "caf" in told
    assert "caf" in call("ask", "--model", tiny_folder, *question, "--edit", "there")
    assert json.loads(call("ask", "--model", tiny_folder, *question, "--edit", "there", "--json"))["answer"] == TARGET
