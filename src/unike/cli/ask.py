"""``unike ask``: ask a model a question, with or without saved edits."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from unike.cli import _shared as shared
from unike.core.errors import UnikeError

if TYPE_CHECKING:
    from unike.edits.edit import Edit

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
    edit: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A saved edit, or a folder of many; repeatable, attached in order."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="A sentence encoder that the edit may load.", show_default="the one that ships")
    ] = None,
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
        from unike.editors.common.bulk import edits_in

        shared.check_loading(device, dtype, quantize, template)
        folders = [each for folder in edit or [] for each in edits_in(folder)]
        edits = shared.load_edits(folders, encoder)
        source = model or confirmed(folders, edits)
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
                "edits": [str(folder) for folder in folders],
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


def confirmed(folders: Sequence[Path], edits: "Sequence[Edit]") -> str:
    """The bundled model: another one, which an edit names, is only loaded for somebody who names it too.

    Raises:
        UnikeError: An edit was made for another model.
    """
    from unike.backbones import MINI

    for folder, edit in zip(folders, edits, strict=True):
        if edit.source != MINI:
            raise UnikeError(
                f"the edit in {folder} was made for {edit.source!r}; if you trust that model, name it: "
                f"--model {shlex.quote(edit.source)}"
            )
    return MINI
