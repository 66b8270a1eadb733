"""``unike models``: build the bundled model, and find out whether another one can be edited."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from unike.cli import _shared as shared
from unike.errors import UnikeError

app = typer.Typer(help="Build the bundled model; check others.", no_args_is_help=True)


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


@app.command("check")
def check(
    model: Annotated[str, typer.Argument(metavar="DIR_OR_ID", help="'mini', a folder or a hub id.")],
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    as_json: shared.Json = False,
) -> None:
    """Measure on a model what editing takes for granted; exit code 1 if something does not hold."""
    shared.check_hardware(device, dtype, quantize)
    backbone, load_seconds = shared.load(model, device, dtype, quantize)
    from unike import laws

    with tempfile.TemporaryDirectory() as folder, shared.working("checking") as report:
        findings = laws.check(backbone, laws.some_questions(Path(folder)), report)
    holds = all(finding.holds for finding in findings)
    if as_json:
        shared.print_json(
            {
                "model": model,
                "adapter": backbone.name,
                "template": backbone.template,
                "layers": backbone.n_layers,
                "width": backbone.width,
                "dtype": str(backbone.dtype).removeprefix("torch."),
                "device": str(backbone.device),
                "load_seconds": round(load_seconds, 2),
                "holds": holds,
                "laws": laws.as_json(findings),
            }
        )
    else:
        grid = Table(title=f"{backbone!r}", title_justify="left")
        for heading in ("law", "what it promises", "measured", "verdict"):
            grid.add_column(heading, overflow="fold")
        for finding in findings:
            measured = finding.error if finding.measured is None else f"{finding.measured:.1e}"
            verdict = "holds" if finding.holds else "does not hold"
            grid.add_row(finding.law.name, finding.law.promise, shared.printable(measured), verdict)
        shared.OUT.print(grid)
    if not holds:
        raise typer.Exit(1)
