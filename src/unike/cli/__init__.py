"""The command line; a command is a file with a function, or a typer app, of its own name.

Its ``ORDER`` is its place in the help. Other distributions add theirs under the entry-point group ``unike.cli``.

Nothing heavy is imported before a command runs, so that ``unike --help`` is instant.
"""

import errno
import io
import os
import sys
from collections import Counter
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from unike.core import home, registry
from unike.core.errors import UnikeError
from unike.core.version import __version__

LAST = 1000
"""The place of a command that does not say it."""


class Commands(TyperGroup):
    """The subcommands, with one way to fail: a line on stderr and no traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; mistakes of the user exit with 2, Ctrl-C with 130, a closed pipe with 1, as in rich."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except UnikeError as error:
            message = " ".join(line.strip() for line in str(error).splitlines())
            message = message.encode(errors="backslashreplace").decode()  # a file's name need not be UTF-8
            typer.echo(f"{typer.style('error:', fg='red')} {message}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader, `head` for example, has seen enough
            # Python flushes stdout once more at exit, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            # Whatever looks for a file first meets it: there is no one place to check.
            name = ascii(error.filename)[:60]
            typer.echo(f"{typer.style('error:', fg='red')} the name of a file is too long: {name}...", err=True)
            raise typer.Exit(2) from None


class Single(TyperCommand):
    """A command that takes each option once, unless it is one that may be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an option that comes twice: of two pictures one would be dropped without a word.

        Raises:
            UnikeError: With its name.
        """
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            if times > 1 and not getattr(option, "multiple", True) and not getattr(option, "is_flag", True):
                raise UnikeError(f"{option.opts[0]} is given {times} times; give it once")
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=Commands,
    help="Edit single facts in vision-language models.",
    epilog="Start with: unike demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unike {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _make_single(group: typer.Typer) -> None:
    """Commands of a group, and of groups in it, are `Single` too."""
    for command in group.registered_commands:
        command.cls = Single
    for within in group.registered_groups:
        if within.typer_instance is not None:
            _make_single(within.typer_instance)


def _add_commands() -> None:
    """Every file here, and what others add, which comes last."""
    files = {name: registry.commands.module(name) for name in registry.commands.names()}
    for name, file in sorted(files.items(), key=lambda each: (getattr(each[1], "ORDER", LAST), each[0])):
        command, word = getattr(file, name), name.replace("_", "-")
        if isinstance(command, typer.Typer):
            _make_single(command)
            app.add_typer(command, name=word)
        else:
            app.command(word, cls=Single)(command)


_add_commands()


def main() -> None:
    """Run the command line on ``sys.argv``; never returns."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer may hold what a terminal of cp1252 cannot show
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("MPLCONFIGDIR", str(home.folder() / "matplotlib"))  # else it writes to the user's own
    app(prog_name="unike")
