"""Commands in the documentation are commands that there are."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from unike.cli import app
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.options import parse_settings

ROOT = Path(__file__).parents[2]

COMMANDS = [
    (path.name, line)
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for line in re.findall(r"^\$ unike (.*?)(?:\s+#.*)?$", path.read_text(encoding="utf-8"), re.MULTILINE)
]


def parse(line: str) -> None:
    """As the command would, up to where it begins to work: its options, and the settings of an editor."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    given = command.make_context("unike", words).params
    if command.name in ("edit", "bench", "study"):
        editor = registry.editors.get(given.get("editor", "unike"))
        editor.config_class.parse(parse_settings(given["settings"] or ()))


@pytest.mark.parametrize("document", sorted({name for name, _ in COMMANDS}))
def test_every_command_option_and_setting_exists(document: str) -> None:
    for name, line in COMMANDS:
        if name == document:
            parse(line)


def test_one_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("bench --editor ft --model mini --out x --dataset y --no-such-option")
    with pytest.raises(UnikeError, match="unknown setting 'no_such_setting'"):
        parse("bench --editor ft --model mini --out x --dataset y --set no_such_setting=1")
    with pytest.raises(KeyError):
        parse("models chekc x")


def test_the_files_that_are_an_equation_are_there() -> None:
    """Those that docs/method.md has in its headings."""
    headings = [line for line in (ROOT / "docs" / "method.md").read_text().splitlines() if line.startswith("## ")]
    named = [path for line in headings for path in re.findall(r"`([\w/.]+)`", line)]
    assert len(named) >= 6
    for path in named:
        assert (ROOT / "src" / "unike" / path).exists(), path
