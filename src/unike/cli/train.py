"""``unike train``: the network of an editor that has one, for a model."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from unike.cli import _shared as shared
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.options import parse_settings
from unike.data.learning import split_cases

ORDER = 50


def train(
    editor: Annotated[str, typer.Option(help="The method, see: unike ls editors.")],
    model: shared.Model = "mini",
    data: Annotated[str, typer.Option(help="A data set, see: unike ls datasets.")] = "pocket",
    task: Annotated[str | None, typer.Option(help="'vqa' or 'caption'.", show_default="what there is")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where MMEdit or VLKEB is.", show_default="the cache folder")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="At most so many.", show_default="5000")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write; a run that was cut off goes on there.",
            show_default="where the editor looks for it",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the network or the training; repeatable."),
    ] = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Train the network of an editor on what a model gets wrong; an interrupted run goes on."""
    chosen = parse_settings(settings or [])
    if steps is not None and "steps" in chosen:
        raise UnikeError("--steps and --set steps say the same; give it once")
    with shared.working("starting"):
        from unike.editors.trained import loop
        from unike.editors.trained.artifact import place, read_log
        from unike.editors.trained.config import split_settings, trainable

        method = trainable(registry.editors.get(editor)())
        given = chosen if steps is None else chosen | {"steps": steps}
        network_settings, config = split_settings(method, given)
        shared.check_loading(device, dtype, quantize, template)
        shared.check_out(out, loop.check_place)
        cases, validation, against = split_cases(data, task, data_dir)
    backbone, load_seconds = shared.load(model, device, dtype, quantize, trust_remote_code, template)
    out = out or place(method.name, backbone)
    start = time.perf_counter()
    with shared.progress_bars() as progress:
        more: dict[str, Any] = {"network_settings": network_settings, "config": config, "against": against}
        trained = loop.train(backbone, method, cases, validation, out, progress=progress, **more)
    result = {
        "model": model,
        "editor": editor,
        "saved": str(out),
        "report": trained.description["report"],
        "log": read_log(out),
        "load_seconds": round(load_seconds, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
    shared.print_json(result) if as_json else show(result)


def show(result: dict[str, Any]) -> None:
    """How the network got on."""
    shared.OUT.print(validations_table(result["log"], result["report"]["best"]["step"]))
    typer.echo(f"trained in {result['seconds']:.0f} s, saved in {result['saved']}")


def validations_table(log: list[dict[str, Any]], best: int) -> Table:
    """The first validation, the best one and the last."""
    shown = {0: "before", best: "best", log[-1]["step"]: "last"} | {best: "best"}
    kinds = list(log[0]["validation"]["scores"])
    grid = Table("", "step", "loss", *(kind.replace("_", " ") for kind in kinds))
    for entry in log:
        if entry["step"] in shown:
            scores = (f"{entry['validation']['scores'][kind]:.0%}" for kind in kinds)
            loss = f"{entry['validation']['loss']:.4f}"
            grid.add_row(shown[entry["step"]], str(entry["step"]), loss, *scores)
    return grid
