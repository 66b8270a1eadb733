"""``unike study``: the studies of the paper's section 4.5, and some beyond it, run to tables and figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unike.bench.spec import RunSpec
from unike.cli import _shared as shared
from unike.cli._options import takes
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.options import read_options
from unike.studies.request import VARIED, Request

ORDER = 80

NAMES = [name.replace("_", "-") for name in registry.studies.names()]


@takes(RunSpec, Request, without=VARIED)
def study(
    given: Mapping[str, Any],
    name: Annotated[str, typer.Argument(help=f"{', '.join(NAMES)}; what they ask: unike ls studies.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs, tables and figures; what is there is used.")],
    data: shared.Data = None,
    processes: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that share each run and the cores.")
    ] = 1,
    as_json: shared.Json = False,
) -> None:
    """Run a study of the paper, on any model and data set, to tables and figures.

    A study compares variants of a method; each is an ordinary run of `unike bench` in a folder of its own below --out.
    Finished runs are used as they are, one that was interrupted goes on, and studies may share a folder.
    """
    spec = RunSpec.from_options(given)
    request = Request(spec=spec, data=data, workers=processes, **read_options(Request, given))
    with shared.working("starting"):
        from unike.backbones import quiet
        from unike.bench.workers import is_launched
        from unike.studies.base import study_named
        from unike.studies.lab import Lab
        from unike.studies.writing import conduct

        if is_launched():
            raise UnikeError("accelerate launch shares out `unike bench` alone; run a study plainly, or with --workers")
        chosen = study_named(name)
        shared.check_loading(spec.device, spec.dtype, spec.quantize)
        lab = Lab(request, out)
        chosen.check(lab)  # mistakes are known before the model is loaded
    shared.build(spec.model)
    quiet()
    with shared.progress_bars() as lab.progress:
        findings, files = conduct(chosen, lab)
    if as_json:
        rows = [row for measurement in findings.measurements for row in measurement.rows]
        shared.print_json({"study": chosen.name, "out": str(out), "files": list(map(str, files)), "summary": rows})
        return
    typer.echo(f"study: {', '.join(map(str, files))}")
