"""``unike models``: the bundled model, and MiniGPT-4 from its parts."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from unike.cli import _shared as shared
from unike.cli.prepare import bars
from unike.errors import UnikeError

app = typer.Typer(help="Build the bundled model, or put a published one together.", no_args_is_help=True)
convert = typer.Typer(help="Put a published model together from its parts.", no_args_is_help=True)
app.add_typer(convert, name="convert")


@app.callback()
@convert.callback()
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


@convert.command("minigpt4")
def minigpt4(
    llm: Annotated[Path, typer.Option(help="Folder of Vicuna-7B in LLaMA's Hugging Face format, deltas applied.")],
    blip2: Annotated[
        Path,
        typer.Option(
            help="Folder of BLIP-2, for its EVA ViT-g, Q-Former and queries. MiniGPT-4 was trained on those of "
            "Salesforce/blip2-flan-t5-xxl; those of blip2-opt-2.7b fit, but answer poorly."
        ),
    ],
    projection: Annotated[Path, typer.Option(help="The checkpoint that MiniGPT-4 publishes (.pth).")],
    out: Annotated[Path, typer.Option(help="The folder to write; one that was converted before is replaced.")],
    as_json: shared.Json = False,
) -> None:
    """Put MiniGPT-4 together: a folder for --model, its prompt template included.

    Every tensor is accounted for; one that is missing, left over or of another shape is an error that names it.
    """
    start = time.perf_counter()
    with shared.working("reading the parts"):
        from unike.conversion import convert_minigpt4

        shared.quiet()
    with bars() as progress:
        made = convert_minigpt4(llm, blip2, projection, out, progress=progress)
    if as_json:
        seconds = round(time.perf_counter() - start, 1)
        shared.print_json(asdict(made) | {"model": "minigpt4", "folder": str(out), "seconds": seconds})
        return
    for note in made.notes:
        typer.echo(f"{typer.style('note:', fg='yellow')} {note}", err=True)
    typer.echo(f"{made.tensors:,} tensors ({made.size / 1e9:.1f} GB) are in {out}; use it as: --model {out}")
