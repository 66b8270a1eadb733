"""``unike models``: the bundled model, MiniGPT-4 from its parts, and whether another one can be edited."""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from unike.cli import _shared as shared
from unike.core.errors import UnikeError

ORDER = 100

models = typer.Typer(help="Build the bundled model, put a published one together, or check one.", no_args_is_help=True)
convert = typer.Typer(help="Put a published model together from its parts.", no_args_is_help=True)
models.add_typer(convert, name="convert")


@models.callback()
@convert.callback()
def _group() -> None:
    pass


@models.command("build")
def build(
    name: Annotated[str, typer.Argument(metavar="mini", help="The model to build.")],
    as_json: shared.Json = False,
) -> None:
    """Download the parts of a bundled model and put it together, once."""
    from unike.backbones import MINI, quiet
    from unike.core.registry import did_you_mean

    if name != MINI:
        raise UnikeError(did_you_mean("bundled model", name, [MINI]))
    with shared.working(f"building {name}") as report:
        from unike.backbones.families import mini
        from unike.backbones.saved import is_whole

        quiet()
        there = is_whole(mini.folder())
        folder = mini.build(lambda step: report(f"building {name}: {step}"))
    if as_json:
        shared.print_json({"model": name, "folder": str(folder), "already_built": there})
    else:
        typer.echo(f"{name} {'is already there' if there else 'was built'}: {folder}")


@models.command("check")
def check(
    model: Annotated[str, typer.Argument(metavar="DIR_OR_ID", help="'mini', a folder or a hub id.")],
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Measure on a model what editing takes for granted; exit code 1 if something does not hold."""
    shared.check_loading(device, dtype, quantize)
    backbone, load_seconds = shared.load(model, device, dtype, quantize, trust_remote_code)
    from unike.editors import checks as laws

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
        from unike.backbones import quiet
        from unike.backbones.convert.minigpt4 import convert_minigpt4

        quiet()
    with shared.progress_bars() as progress:
        made = convert_minigpt4(llm, blip2, projection, out, progress=progress)
    if as_json:
        seconds = round(time.perf_counter() - start, 1)
        shared.print_json(asdict(made) | {"model": "minigpt4", "folder": str(out), "seconds": seconds})
        return
    for note in made.notes:
        typer.echo(f"{typer.style('note:', fg='yellow')} {note}", err=True)
    typer.echo(f"{made.tensors:,} tensors ({made.size / 1e9:.1f} GB) are in {out}; use it as: --model {out}")
