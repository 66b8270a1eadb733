"""``unike reproduce``: whole tables of the paper by one command, planned, run and resumed."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from unike.bench.spec import RunSpec
from unike.cli import _shared as shared
from unike.cli._options import takes
from unike.reproduce.request import VARIED, Asked, Reproduction

if TYPE_CHECKING:
    from unike.reproduce.estimate import Left
    from unike.reproduce.plan import Step
    from unike.reproduce.run import Stand
    from unike.reproduce.work import Workshop

ORDER = 85

reproduce = typer.Typer(help="Make whole tables of the paper, beside the published figures.", no_args_is_help=True)


@reproduce.callback()
def _group() -> None:
    pass


@reproduce.command("paper")
@takes(RunSpec, Asked, without=VARIED, required=["model"])
def paper(
    given: Mapping[str, Any],
    data: Annotated[Path | None, typer.Option(help="Folder of MMEdit's files.", show_default="none")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of everything that is made.", show_default="reproduction/MODEL-DATASET"),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that share each run.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: shared.Json = False,
) -> None:
    """Prepare, train, measure and report what a table of the paper takes, and put the paper's figures beside it.

    Each step is one command of unike, and --dry-run lists them. What is done is not done again: the same command goes
    on after an interruption. Times are estimated from the steps done so far, or from those of a smaller --probe.
    """
    wanted = Reproduction.from_options(given, data, out, workers)
    with shared.working("starting"):
        from unike.backbones import quiet
        from unike.reproduce.plan import plan
        from unike.reproduce.run import check, run, survey
        from unike.reproduce.work import Workshop

        shared.check_loading(wanted.spec.device, wanted.spec.dtype, wanted.spec.quantize)
        steps = plan(wanted)
        shop = Workshop(wanted)
        if not dry_run:
            check(shop, steps)  # mistakes are known before the model is loaded
    if dry_run:
        show_plan(shop, survey(shop, steps, forgive=True), as_json)
        return
    shared.build(wanted.spec.model)
    quiet()
    for sentence in wanted.left_out:
        shared.ERR.print(f"left out: {sentence}")
    with bars_over_steps(shop, len(steps)) as told:
        files = run(shop, steps, told)
    if as_json:
        shared.print_json(
            {"out": str(wanted.out), "steps": stands_json(survey(shop, steps)), "files": [*map(str, files)]}
        )
        return
    typer.echo(f"tables: {', '.join(map(str, files))}")


# ---------------------------------------------------------------------- what would be done


def show_plan(shop: "Workshop", stands: "Sequence[Stand]", as_json: bool) -> None:
    """Every step with its command, how much of it there is, and what that takes; then the whole."""
    from unike.reproduce.estimate import size
    from unike.reproduce.log import DONE
    from unike.reproduce.run import what_is_left

    wanted, left = shop.wanted, what_is_left(stands)
    free = shutil.disk_usage(next(place for place in wanted.out.absolute().parents if place.is_dir())).free
    missing = [stand for stand in stands if stand.amount is None]
    if as_json:
        summary = asdict(left) | {"bytes_free": free}
        shared.print_json({"out": str(wanted.out), "steps": stands_json(stands), "left": summary})
        return
    for number, stand in enumerate(stands, 1):
        typer.echo(f"{number}. {stand.state}: {stand.step.name}, {stand.step.what}{told_amount(stand)}")
        typer.echo(f"   $ {stand.step.command}")
    for sentence in wanted.left_out:
        typer.echo(f"left out: {sentence}")
    done = sum(stand.state == DONE for stand in stands)
    typer.echo(f"{len(stands)} steps, {done} done; {left}; reports, made anew each time, are not counted")
    known = (
        "" if left.unknown == left.steps else f"about {size(left.bytes)} are written for what is left and estimated; "
    )
    typer.echo(f"disk: {known}{size(free)} free; the model and the data are not counted")
    if left.unknown:
        typer.echo(
            "to estimate the rest, make a small trial on this machine, as with --limit 20 --out trial, and add "
            "--probe trial"
        )
    if missing:
        typer.echo(f"cannot be run yet: {why_missing(shop, missing[0].step)}")


def told_amount(stand: "Stand") -> str:
    """How much of a step there is, and what it takes."""
    from unike.reproduce.estimate import duration, size
    from unike.reproduce.plan import Bench, Prepare, Report, Study, Train

    if isinstance(stand.step, Report):
        return ""
    unit = {Prepare: "cases", Train: "training steps", Bench: "edits", Study: "edits"}[type(stand.step)]
    if stand.amount is None:
        return f"; number of {unit} unknown"
    amount = (
        f"; at most {stand.amount} {unit}" if stand.state == "to do" else f"; {stand.done} of {stand.amount} {unit}"
    )
    found = stand.estimate
    if stand.state == "done":
        return amount
    if found.seconds is None or found.bytes is None:
        return f"{amount}; time and disk unknown ({found.told})"
    guess = ", a guess" if found.basis == "guess" else ""
    return f"{amount}; about {duration(found.seconds)}{guess} ({found.told}), {size(found.bytes)}"


def why_missing(shop: "Workshop", step: "Step") -> str:
    """What keeps a step from being counted."""
    from unike.core.errors import UnikeError

    try:
        shop.amount(step)
    except UnikeError as error:
        return str(error)
    return "nothing"


def stands_json(stands: "Sequence[Stand]") -> list[dict[str, Any]]:
    """Steps as JSON has them."""
    return [
        {
            "step": stand.step.name,
            "what": stand.step.what,
            "state": stand.state,
            "command": stand.step.command,
            "amount": stand.amount,
            "done": stand.done,
            "seconds_left": stand.estimate.seconds,
            "bytes": stand.estimate.bytes,
            "basis": stand.estimate.basis,
        }
        for stand in stands
    ]


# ---------------------------------------------------------------------- while it is done


@contextmanager
def bars_over_steps(shop: "Workshop", total: int) -> "Iterator[Any]":
    """A line for each step, on stderr; and, if that is a terminal, a bar over all steps with one of its own below."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shared.ERR, disable=not shared.ERR.is_terminal) as bars:
        over = bars.add_task("steps", total=total)
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, count: int) -> None:
            if not count:
                return
            if what not in tasks:
                for task in tasks.values():
                    bars.remove_task(task)
                tasks.clear()
                tasks[what] = bars.add_task(what, total=count)
            bars.update(tasks[what], completed=done, total=count)

        def told(number: int, count: int, step: "Step", left: "Left") -> None:
            bars.update(over, completed=number - 1, total=count, description=f"steps; {left}")
            bars.print(f"step {number} of {count}: {step.what} ({step.name}); {left}", soft_wrap=True)

        shop.progress = report
        yield told
        bars.update(over, completed=total, description="steps")
