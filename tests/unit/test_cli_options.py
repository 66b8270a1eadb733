"""Options of every command: of what is meant once, two are one too many."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from unike.cli import app

Cli = Callable[..., Any]


def options() -> Iterator[tuple[str, str, bool]]:
    """Every command's options that take a value: the command, the option, and whether it may be repeated."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, str, bool]]:
        for word, within in getattr(command, "commands", {}).items():
            yield from walk(within, f"{name} {word}".strip())
        for option in command.params if not getattr(command, "commands", {}) else ():
            if option.param_type_name == "option" and not option.is_flag:
                yield name, option.opts[0], option.multiple

    yield from walk(typer.main.get_command(app), "")


SINGLE = [(command, option) for command, option, repeatable in options() if not repeatable]


def test_options_are_found() -> None:
    assert ("ask", "--image") in SINGLE and ("models check", "--device") in SINGLE and len(SINGLE) > 50
    assert ("ask", "--edit", True) in set(options())


@pytest.mark.parametrize(("command", "option"), SINGLE, ids=[" ".join(each) for each in SINGLE])
def test_an_option_that_is_meant_once_is_refused_twice(early: Cli, command: str, option: str) -> None:
    result = early(*command.split(), option, "1", f"{option}=2")
    assert result.is_error(f"{option} is given 2 times; give it once"), result


def test_a_picture_that_would_be_dropped_is_told(early: Cli) -> None:
    result = early("ask", "--prompt", "?", "--image", "missing.png", "--image", "b.png")
    assert result.is_error("--image is given 2 times; give it once"), result
