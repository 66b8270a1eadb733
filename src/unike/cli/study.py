"""``unike study``: the studies of the paper's section 4.5, and some beyond it, run to tables and figures."""

from pathlib import Path
from typing import Annotated

import typer

from unike.cli import _shared as shared
from unike.core.errors import UnikeError

NAMES = {
    "ablation": "what each part contributes (Table 4)",
    "alpha": "a fixed weight of the memory against a dynamic one (Figure 4b)",
    "zeta": "what moves the new values (Figure 4c)",
    "context-size": "few and many demonstrations or states (Figure 4a)",
    "spaces": "states in the encoders' spaces (Figure 5a)",
    "cases": "what edits look like (Figures 5b and 7)",
    "domains": "by domain, protocol and cost",
    "lifelong": "scores after 1, 10, 100 edits",
    "drift": "what edits change elsewhere",
}
"""Without importing them: ``unike --help`` is instant."""


def study(
    name: Annotated[str, typer.Argument(help="; ".join(f"{name}: {asks}" for name, asks in NAMES.items()) + ".")],
    out: Annotated[Path, typer.Option(help="Folder of the runs, tables and figures; what is there is used.")],
    model: shared.Model = "mini",
    dataset: Annotated[str, typer.Option(help="As in unike bench.")] = "pocket-vqa",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files.", show_default="in the cache folder")
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the data set; settings are chosen on dev.")] = "eval",
    limit: Annotated[int | None, typer.Option(help="Edit at most so many cases.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of cases, and of what is drawn.")] = 0,
    settings: shared.Settings = None,
    numbers: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="NUMBERS",
            help="What is gone through: values of alpha, numbers of examples or edits, or layers (spaces).",
            show_default="the study's own",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="How many cases are shown, states drawn (spaces), or questions asked (drift).",
            show_default="the study's own",
        ),
    ] = None,
    rule: Annotated[
        str, typer.Option(help="Which cases are shown: drawn from all, or only right, failed, gained or lost ones.")
    ] = "drawn",
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="strict, teacher_forced or mmedit; repeatable.", show_default="strict and teacher_forced"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Independent edits that are made in one pass.")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The longest answer.", show_default="16, or more if targets need it")
    ] = None,
    processes: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that share each run and the cores.")
    ] = 1,
    on_error: shared.OnError = "stop",
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    as_json: shared.Json = False,
) -> None:
    """Run a study of the paper, on any model and data set, to tables and figures.

    A study compares variants of a method; each is an ordinary run of `unike bench` in a folder of its own below --out.
    Finished runs are used as they are, one that was interrupted goes on, and studies may share a folder.
    """
    skip_bad = shared.skips(on_error)
    with shared.working("starting"):
        from unike.backbones import quiet
        from unike.bench.workers import is_launched
        from unike.studies import base

        if is_launched():
            raise UnikeError("accelerate launch shares out `unike bench` alone; run a study plainly, or with --workers")
        chosen = base.study_named(name)
        shared.check_hardware(device, dtype, quantize)
        request = base.Request(
            model=model,
            dataset=dataset,
            split=split,
            data=data,
            limit=limit,
            seed=seed,
            settings=shared.parse_settings(settings or []),
            protocols=tuple(dict.fromkeys(protocol)) if protocol else ("strict", "teacher_forced"),
            batch=batch,
            max_new_tokens=max_new_tokens,
            skip_bad=skip_bad,
            workers=processes,
            device=device,
            dtype=dtype,
            quantize=quantize,
            numbers=shared.parse_numbers(numbers, "--at", float),
            count=count,
            rule=rule,
        )
        lab = base.Lab(request, out)
        chosen.check(lab)  # mistakes are known before the model is loaded
    shared.build(model)
    quiet()
    with shared.progress_bars() as lab.progress:
        outcome, files = base.conduct(chosen, lab)
    if as_json:
        rows = [row for measurement in outcome.measurements for row in measurement.rows]
        shared.print_json({"study": chosen.name, "out": str(out), "files": list(map(str, files)), "summary": rows})
        return
    typer.echo(f"study: {', '.join(map(str, files))}")
