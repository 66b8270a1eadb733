"""Commands in the documentation are commands that there are."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from unike.cli import app

ROOT = Path(__file__).parents[2]

COMMANDS = [
    (path.name, line)
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for line in re.findall(r"^\$ unike (.*?)(?:\s+#.*)?$", path.read_text(encoding="utf-8"), re.MULTILINE)
]


def parse(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("unike", words)


@pytest.mark.parametrize("document", sorted({name for name, _ in COMMANDS}))
def test_every_command_and_option_exists(document: str) -> None:
    for name, line in COMMANDS:
        if name == document:
            parse(line)


def test_one_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("bench --editor ft --model mini --out x --dataset y --no-such-option")
    with pytest.raises(KeyError):
        parse("models chekc x")
