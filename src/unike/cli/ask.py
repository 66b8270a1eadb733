"""``unike ask``: ask a model a question, with or without saved edits."""

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
    edit: shared.Edits = None,
    store: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="A store; what is in force in it is attached.")
    ] = None,
    of: Annotated[str, typer.Option("--in", metavar="SET[:VERSION]", help="Which set of the store.")] = "default",
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
        stored = in_force(store, of) if store else []
        named = shared.edits_named(edit or [], encoder)
        source = model or shared.confirmed(named)
    backbone, _ = shared.load(source, device, dtype, quantize, trust_remote_code, template)
    named = [*(each for each in stored if backbone.is_known_as(each[1].fingerprint)), *named]  # not of other models
    edits = [each for _, each in named]
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


def in_force(where: str, named: str) -> "list[tuple[str, Edit]]":
    """The edits in a set of a store, or in a version of it, with their ids.

    Raises:
        UnikeError: There is no such store, set or version.
    """
    from unike.store import Store
    from unike.store.names import set_and_version

    store = Store.open(where, make=False)
    name, version = set_and_version(named)
    if name not in store.sets():
        raise UnikeError(f"the store {where} has no set {name!r} (it has {', '.join(store.sets()) or 'none'})")
    members = store.members(name, version)
    return [(stored.id, store.edit(stored)) for stored in members]
