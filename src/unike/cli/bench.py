"""``unike bench``: edit the cases of a data set, and measure what became of the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from unike.bench.metrics import METRICS
from unike.cli import _shared as shared


def bench(
    dataset: Annotated[str, typer.Option(help="pocket-vqa, pocket-caption, mmedit-vqa, mmedit-caption or vlkeb.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; a run that was interrupted there goes on.")],
    model: shared.Model = "mini",
    editor: Annotated[str, typer.Option(help="The method, see: unike ls editors.")] = "unike",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files.", show_default="in the cache folder")
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the data set; settings are chosen on dev.")] = "eval",
    setting: Annotated[str, typer.Option(help="one-step, sequential or cross-task.")] = "one-step",
    k: Annotated[int | None, typer.Option("--k", help="Edits in a sequence.", show_default="10")] = None,
    limit: Annotated[int | None, typer.Option(help="Edit at most so many cases.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of cases.")] = 0,
    evaluate_at: Annotated[
        str | None,
        typer.Option(help="Ask after so many edits of a sequence: 1,10,100.", show_default="after each, and the last"),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="Of a sequence, ask at most so many cases at a time.", show_default="all")
    ] = None,
    batch: Annotated[int, typer.Option(help="Independent edits that are made in one pass.")] = 16,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="strict, teacher_forced or mmedit; repeatable.", show_default="strict and teacher_forced"),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The longest answer.", show_default="16, or more if targets need it")
    ] = None,
    engine: Annotated[str, typer.Option(help="'plain' asks everything in full, to check 'fast' against.")] = "fast",
    settings: shared.Settings = None,
    processes: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that share the work and the cores.")
    ] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Run the workers on a Ray cluster (pip install ray).")] = False,
    on_error: shared.OnError = "stop",
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    as_json: shared.Json = False,
) -> None:
    """Edit the cases of a data set, and measure what became of the model.

    Cases that the model gets right by itself are left out. Results are appended to a file as they come; the same
    command goes on after an interruption.
    """
    skip_bad = shared.skips(on_error)
    chosen = shared.parse_settings(settings or [])
    with shared.working("starting"):
        from unike.backbones import quiet
        from unike.bench import results, workers
        from unike.bench.runner import Plan, check_method
        from unike.core import registry

        method = registry.editors.get(editor)
        method.config_class.parse(chosen)
        shared.check_hardware(device, dtype, quantize)
        plan = Plan(
            setting=setting,
            k=k if k is not None else 1 if setting == "one-step" else 10,
            seed=seed,
            limit=limit,
            batch=batch,
            evaluate_at=shared.parse_numbers(evaluate_at, "--evaluate-at", int),
            sample=sample,
            protocols=tuple(dict.fromkeys(protocol)) if protocol else ("strict", "teacher_forced"),
            max_new_tokens=max_new_tokens,
            engine=engine,
        )
        check_method(method, plan)
        results.check_place(out)
        job = workers.Job(model, editor, chosen, dataset, split, data, out, plan, skip_bad, device, dtype, quantize)
        _ = job.sources  # a mistake in the data is known before the model is loaded
    shared.build(model)
    quiet()
    with shared.progress_bars() as report:
        if workers.is_launched():
            run = workers.run_launched(job, report)
        elif ray:
            run = workers.run_ray(job, processes, report)
        elif processes > 1:
            run = workers.run_local(job, processes, report)
        else:
            run = job.run(progress=report)
    if run is None:
        return  # the main process shows the results
    rows = results.summarise(run)
    if as_json:
        shared.print_json({"out": str(out), "header": run.header, "summary": rows})
        return
    show(run.header, rows)
    typer.echo(f"results: {out}")


def show(header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """The main scorer of each protocol, side by side, each under its name."""
    from unike.bench.results import VIEWS, column, select

    counts = header["counts"]
    shared.OUT.print(
        f"{header['editor']} on {header['model']}, {header['dataset']} {header['split']}, {header['setting']}: "
        f"{counts['edited']} edits ({counts['right']} left out as already right, {counts['skipped']} skipped)"
    )
    for setting in dict.fromkeys(row["setting"] for row in rows):
        found = {}
        for name in VIEWS:
            if chosen := select(rows, name, setting):
                found[name] = column(chosen)
        grid = Table(title=setting)
        grid.add_column("metric")
        grid.add_column("n", justify="right")
        for name in found:
            grid.add_column(name.replace("/", "\n"), justify="right")
        for metric in METRICS:
            here = [cells.get(metric) for cells in found.values()]
            if any(here):
                grid.add_row(metric, str(max(row["n"] for row in here if row)), *map(cell, here))
        shared.OUT.print(grid)


def cell(row: Mapping[str, Any] | None) -> str:
    """Percent with the 95 % interval."""
    if row is None:
        return ""
    if row["value"] is None:
        return "n/a"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
