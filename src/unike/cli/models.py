"""``unike models``: the bundled model."""

from typing import Annotated

import typer

from unike.cli import _shared as shared
from unike.errors import UnikeError

app = typer.Typer(help="Build the bundled model.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(metavar="mini", help="The model to build.")],
    as_json: shared.Json = False,
) -> None:
    """Download the parts of a bundled model and put it together, once."""
    from unike.backbones import MINI
    from unike.registry import did_you_mean

    if name != MINI:
        raise UnikeError(did_you_mean("bundled model", name, [MINI]))
    with shared.working(f"building {name}") as report:
        from unike.backbones import mini

        shared.quiet()
        there = mini.folder().is_dir()
        folder = mini.build(lambda step: report(f"building {name}: {step}"))
    if as_json:
        shared.print_json({"model": name, "folder": str(folder), "already_built": there})
    else:
        typer.echo(f"{name} {'is already there' if there else 'was built'}: {folder}")
