"""``unike ask``: ask a model a question, with or without saved edits."""

from typing import Annotated

import typer
from rich.table import Table

from unike.cli import _shared as shared

ORDER = 20


def ask(
    prompt: Annotated[str, typer.Option(help="The question.")],
    image: shared.Image = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="'mini', a folder with a saved model, or a hub id. To be named where an edit is not of mini.",
            show_default="mini",
        ),
    ] = None,
    edit: shared.Edits = None,
    encoder: shared.Encoder = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 16,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Ask a question; with edits, also show the answer without them."""
    shared.check_text(prompt, "prompt", "say what to ask")
    shared.check_image(image)
    with shared.working("starting"):
        from unike.data.queries import Query

        shared.check_loading(device, dtype, quantize, template)
        named = shared.edits_named(edit or [], encoder)
        edits = [each for _, each in named]
        source = model or shared.confirmed(named)
    backbone, _ = shared.load(source, device, dtype, quantize, trust_remote_code, template)
    query = Query(prompt, image)
    with shared.working("asking"):
        (answer,) = shared.answers(backbone, [query], edits, max_new_tokens)
        (without,) = shared.answers(backbone, [query], [], max_new_tokens) if edits else (answer,)
    if as_json:
        shared.print_json(
            {
                "model": source,
                "image": None if image is None else str(image),
                "prompt": prompt,
                "edits": [name for name, _ in named],
                "answer": answer,
                "answer_without_edits": without,
            }
        )
    elif not edits:
        typer.echo(shared.printable(answer))
    else:
        grid = Table.grid(padding=(0, 2))
        grid.add_row("without edits", shared.printable(without))
        grid.add_row(f"with {len(edits)} edit{'s' if len(edits) > 1 else ''}", shared.printable(answer))
        shared.OUT.print(grid)
