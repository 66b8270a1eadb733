"""``unike export``: edits as a LoRA adapter for PEFT, or as the weights of a model, for programs without unike."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from unike.cli import _shared as shared

if TYPE_CHECKING:
    from unike.export import Exported

ORDER = 26


def export(
    out: Annotated[Path, typer.Option(help="The folder to write; an export that is there is replaced.")],
    edit: shared.Edits = None,
    format: Annotated[
        str, typer.Option("--format", metavar="lora|merged", help="A PEFT adapter, or a whole transformers model.")
    ] = "lora",
    model: Annotated[
        str | None,
        typer.Option(
            help="'mini', a folder with a saved model, or a hub id. To be named where an edit is not of mini.",
            show_default="mini",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the LoRA. Of an exact one it cuts the changes down.",
            show_default="exact: the changes' own; learned: 16",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of learning, where a LoRA is learned.")] = 100,
    lr: Annotated[float, typer.Option(help="The learning rate there, at first.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the learning.")] = 0,
    encoder: shared.Encoder = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Export edits for programs without unike; what that keeps is asked before it is done.

    Edits of mend, ke and ft are changes of weights: their export is exact. Those of unike and t_patcher do more, so a
    LoRA learns from the edited model what it says: the gate, which keeps unrelated answers as they were, is lost. No
    export can be revoked edit by edit. Methods that rewrite or route questions (ike, serac, ...) cannot be exported.
    """
    with shared.working("starting"):
        from unike.export import export
        from unike.export.distillation import Recipe
        from unike.export.exporting import check

        recipe: dict[str, Any] = {"rank": rank, "steps": steps, "lr": lr, "seed": seed}
        Recipe.parse(recipe)
        named = shared.edits_named(edit or [], encoder)
        edits = [each for _, each in named]
        check(edits, out, format)
        shared.check_loading(device, dtype, quantize, template)
        source = model or shared.confirmed(named)
    backbone, _ = shared.load(source, device, dtype, quantize, trust_remote_code, template)
    with shared.progress_bars() as progress:
        made = export(backbone, edits, out, format=format, progress=progress, **recipe)
    if as_json:
        told = {key: value for key, value in made.described.items() if key != "answers"}
        shared.print_json({"out": str(out), "edits_from": [name for name, _ in named], **told})
    else:
        show(made)


def show(made: "Exported") -> None:
    """What was kept, and what was not."""
    grid = Table(title="what the export says", title_justify="left")
    for heading in ("what is asked", "asked", "wanted", "edited model", "export"):
        grid.add_column(heading, overflow="fold")
    for score in made.scores:
        wanted = "the target" if score.kind.about else "the unedited answer"
        grid.add_row(score.kind.says, str(score.asked), wanted, f"{score.edited:.1%}", f"{score.exported:.1%}")
    shared.OUT.print(grid)
    how = {
        "exact": "exact: the edits are changes of weights",
        "cut": "changes of weights, cut down to the rank",
        "learned": "learned from the edited model; the gate cannot be kept",
    }
    typer.echo(f"{how[made.described['how']]}. The export acts on every input, and no edit can be taken out alone.")
    typer.echo(f"saved in {made.folder}; README.md there says how to load it, export.json has every answer")
