"""The command line; a command is a file with a function, or a typer app, of its own name.

Its ``ORDER`` is its place in the help. Other distributions add theirs under the entry-point group ``unike.cli``.

Nothing heavy is imported before a command runs, so that ``unike --help`` is instant.
"""

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unike.core import registry
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


def _add_commands() -> None:
    """Every file here, and what others add, which comes last."""
    files = {name: registry.commands.module(name) for name in registry.commands.names()}
    for name, file in sorted(files.items(), key=lambda each: (getattr(each[1], "ORDER", LAST), each[0])):
        command, word = getattr(file, name), name.replace("_", "-")
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=word)
        else:
            app.command(word)(command)


_add_commands()


def main() -> None:
    """Run the command line on ``sys.argv``; never returns."""
    app(prog_name="unike")
