"""``unike bench``: edit the cases of a data set, and measure what became of the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from unike.bench.spec import RunSpec
from unike.cli import _shared as shared
from unike.cli._options import takes

if TYPE_CHECKING:
    from unike.bench.header import Header

ORDER = 60


@takes(RunSpec, required=["dataset"])
def bench(
    given: Mapping[str, Any],
    out: Annotated[Path, typer.Option(help="Folder of the results; a run that was interrupted there goes on.")],
    data: shared.Data = None,
    processes: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that share the work and the cores.")
    ] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Run the workers on a Ray cluster (pip install ray).")] = False,
    as_json: shared.Json = False,
) -> None:
    """Edit the cases of a data set, and measure what became of the model.

    Cases that the model gets right by itself are left out. Results are appended to a file as they come; the same
    command goes on after an interruption.
    """
    spec = RunSpec.from_options(given)
    with shared.working("starting"):
        from unike.backbones import quiet
        from unike.bench import results, selection, summary, workers
        from unike.core import registry

        method = registry.editors.get(spec.editor)
        method.config_class.parse(spec.settings)
        shared.check_loading(spec.device, spec.dtype, spec.quantize)
        selection.check_method(method, spec)
        shared.check_out(out, results.check_place)
        tasks = selection.read_tasks(spec, data)  # a mistake in the data is known before the model is loaded
    shared.build(spec.model)
    quiet()
    with shared.progress_bars() as report:
        if workers.is_launched():
            found = workers.run_launched(spec, out, tasks, report)
        elif ray:
            found = workers.run_ray(spec, out, data, processes, report)
        elif processes > 1:
            found = workers.run_local(spec, out, data, processes, report)
        else:
            found = workers.run(spec, out, tasks, progress=report)
    if found is None:
        return  # the main process shows the results
    rows = summary.summarise(found)
    if as_json:
        header = {"format": results.FORMAT, **found.header.to_json()}
        shared.print_json({"out": str(out), "header": header, "summary": rows})
        return
    show(found.header, rows)
    typer.echo(f"results: {out}")


def show(header: "Header", rows: Sequence[Mapping[str, Any]]) -> None:
    """The main scorer of each protocol, side by side, each under its name."""
    from unike.bench.protocols.base import views
    from unike.bench.summary import column, select
    from unike.bench.verdicts import metric_heads

    spec, counts = header.spec, header.counts
    shared.OUT.print(
        f"{spec.editor} on {spec.model}, {spec.dataset} {spec.split}, {spec.setting}: "
        f"{counts.edited} edits ({counts.right} left out as already right, {counts.skipped} skipped)"
    )
    for setting in dict.fromkeys(row["setting"] for row in rows):
        columns = {view: column(chosen) for view in views() if (chosen := select(rows, view, setting))}
        grid = Table(title=setting)
        grid.add_column("metric")
        grid.add_column("n", justify="right")
        for view in columns:
            grid.add_column(view.replace("/", "\n"), justify="right")
        there = sorted({metric for cells in columns.values() for metric in cells})
        for metric in (each for kind in metric_heads() for each in there if each.partition(":")[0] == kind):
            here = [cells.get(metric) for cells in columns.values()]
            grid.add_row(metric, str(max(row["n"] for row in here if row)), *map(cell, here))
        shared.OUT.print(grid)


def cell(row: Mapping[str, Any] | None) -> str:
    """Percent with the 95 % interval."""
    if row is None:
        return ""
    if row["value"] is None:
        return "n/a"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
