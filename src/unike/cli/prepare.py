"""``unike prepare``: the in-context knowledge of a model, which is what editors retrieve from."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from unike.cli import _shared as shared
from unike.core.errors import UnikeError
from unike.core.options import parse_settings
from unike.data.learning import read_cases

if TYPE_CHECKING:
    from unike.editors.unike.knowledge import Knowledge

ORDER = 40


def prepare(
    model: shared.Model = "mini",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write; a run that was cut off goes on there.",
            show_default="where editors look for it",
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="A data set, see: unike ls datasets.")] = "pocket",
    split: Annotated[str, typer.Option(help="Of the data set; not 'eval'.")] = "train",
    task: Annotated[str | None, typer.Option(help="'vqa' or 'caption'.", show_default="what there is")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where MMEdit or VLKEB is.", show_default="the cache folder")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Keep at most so many triplets.", show_default="all")] = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Collect what a model answers wrongly, and learn what tells true answers from false ones."""
    chosen = parse_settings(settings or [])
    if limit is not None and "limit" in chosen:
        raise UnikeError("--limit and --set limit say the same; give it once")
    with shared.working("starting"):
        from unike.backbones.template import named, written
        from unike.editors.unike.knowledge import Knowledge, place
        from unike.editors.unike.prepare import pipeline
        from unike.editors.unike.prepare.config import PrepareConfig

        template = template and named(written(template))
        config = PrepareConfig.parse(chosen if limit is None else chosen | {"limit": limit})
        shared.check_loading(device, dtype, quantize)
        shared.check_out(out, pipeline.check_place)
        cases, scope, against, tags = read_cases(data, split, task, data_dir)
    backbone = None
    if out is None:
        backbone, _ = shared.load(model, device, dtype, quantize, trust_remote_code, template)
        out = place(backbone)
    start = time.perf_counter()
    made_from: dict[str, Any] = {"against": against, "scope": scope}
    there = pipeline.is_prepared(out, model, cases, config, **made_from) and is_read_through(template, out)
    if there:
        known = Knowledge.from_pretrained(out)
    else:
        if backbone is None:
            backbone, load_seconds = shared.load(model, device, dtype, quantize, trust_remote_code, template)
            start += load_seconds
        with shared.progress_bars() as progress:
            known = pipeline.prepare(backbone, cases, out, config, **made_from, tags=tags, progress=progress)
    result = {"model": model, "saved": str(out), "already_there": there} | described(known, out, start)
    shared.print_json(result) if as_json else show(result)


def is_read_through(template: str | None, out: Path) -> bool:
    """Whether knowledge was made with a template; through another one the same model reads other states."""
    from unike.editors.unike.knowledge import SAVED

    chosen: bool = SAVED.describe(out)["backbone"].get("chosen_template") == template
    return chosen


def described(known: "Knowledge", out: Path, start: float) -> dict[str, Any]:
    """What there is now, and how long it took since ``start``."""
    return {
        "triplets": len(known),
        "fingerprint": known.fingerprint,
        "seconds": round(time.perf_counter() - start, 1),
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "report": known.description["report"],
    }


def show(result: dict[str, Any]) -> None:
    """What was kept and learned, as tables."""
    shared.OUT.print(counts_table(result["report"], result["triplets"]))
    shared.OUT.print(layers_table(result["report"]))
    told = "already there:" if result["already_there"] else f"prepared in {result['seconds']:.0f} s, saved in"
    typer.echo(f"{told} {result['saved']} ({result['bytes'] / 1e6:.1f} MB)")


def counts_table(report: dict[str, Any], triplets: int) -> Table:
    """From cases to triplets."""
    candidates, answers = report["candidates"], dict(report["answers"])
    steps = {"cases": candidates["cases"]}
    steps |= {f"- {reason}": n for reason, n in candidates["dropped"].items()}
    steps |= {"asked": answers.pop("asked"), **{f"- {verdict}": n for verdict, n in answers.items()}}
    steps["triplets"] = triplets
    grid = Table("step")
    grid.add_column("count", justify="right")
    for step, count in steps.items():
        grid.add_row(step, f"{count:,}")
    return grid


def layers_table(report: dict[str, Any]) -> Table:
    """What the encoders of each layer have learned."""
    grid = Table("layer")
    headings = ("loss of f", "loss of g", "retrieval by g", "probe on h", "on f(h)", "on g(h)")
    for heading in headings:
        grid.add_column(heading, justify="right")
    for layer, found in report["layers"].items():
        losses = [
            " -> ".join(f"{loss:.2f}" for loss in found[name]["held_out"]) for name in ("truthfulness", "semantic")
        ]
        probes = [percent(found["probe"][name]) for name in ("h", "f", "g")]
        grid.add_row(layer, *losses, f"{percent(found['retrieval']['g'])} of {found['retrieval']['n']}", *probes)
    return grid


def percent(part: float | None) -> str:
    """``0.5`` as ``50%``."""
    return "-" if part is None else f"{part:.0%}"
