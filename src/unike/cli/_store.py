"""What the commands of ``unike store`` share, and the one that lets edits in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unike.cli import _shared as shared
from unike.core.errors import UnikeError
from unike.core.options import parse_settings

if TYPE_CHECKING:
    from unike.backbones.adapter import Backbone
    from unike.data.queries import Query
    from unike.edits.edit import Edit
    from unike.store import Store
    from unike.store.admission import Admission, Asked

Where = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        envvar="UNIKE_STORE",
        help="A folder, made by the first edit; or postgresql://user@host/name.",
    ),
]
Blobs = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where tensors and pictures are kept, s3://bucket/folder for example; told when a store in a database is "
        "made.",
        show_default="in the store's folder",
    ),
]
In = Annotated[str, typer.Option("--in", metavar="SET", help="The set of edits that is meant.")]
Author = Annotated[str | None, typer.Option(help="Who does it.", show_default="you")]
Reason = Annotated[str, typer.Option(help="Why; kept in the log.")]
HERE = "store"


def opened(where: str, blobs: str | None = None, *, make: bool = False) -> "Store":
    """The store, which has to be there unless one may be made."""
    from unike.store import Store

    return Store.open(where, blobs, make=make)


def writable(where: str, blobs: str | None = None) -> "Store":
    """A store to put something into, which is made then if it is not there.

    Raises:
        ReadOnly: It can only be read.
    """
    found = opened(where, blobs, make=True)
    found.check_writable()
    return found


def add(
    prompt: Annotated[str | None, typer.Option(help="The question that is answered wrongly.")] = None,
    target: Annotated[str | None, typer.Option(help="The answer it should get.")] = None,
    image: shared.Image = None,
    facts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Many facts: JSON lines or CSV with prompt, target, image.")
    ] = None,
    edit: shared.Edits = None,
    where: Where = HERE,
    blobs: Blobs = None,
    into: In = "default",
    tag: Annotated[list[str] | None, typer.Option(help="To find it by; repeatable.")] = None,
    author: Author = None,
    reason: Reason = "",
    replace: Annotated[bool, typer.Option("--replace", help="Revoke the edits that it contradicts.")] = False,
    max_drift: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Refuse what changes a larger share of the canaries.", show_default="any"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let an edit in that does not take.")] = False,
    model: shared.Model = "mini",
    editor: Annotated[str, typer.Option(help="The method, see `unike ls editors`.")] = "unike",
    settings: shared.Settings = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Edit a fact, or many; each is checked, and is in force from then on, or is refused."""
    check_given(prompt, target, image, facts, edit)
    terms: dict[str, Any] = {"set": into, "author": author, "reason": reason, "tags": tuple(tag or ())}
    terms |= {"replace": replace, "max_drift": max_drift, "force": force}
    with shared.working("starting"):
        from unike.core import registry
        from unike.data.queries import Query
        from unike.editors.common.bulk import read_facts
        from unike.store.admission import Terms

        Terms(**terms)  # mistakes are known before the model is loaded
        chosen = parse_settings(settings or [])
        registry.editors.get(editor).config_class.parse(dict(chosen))
        shared.check_loading(device, dtype, quantize, template)
        wanted = [Query(prompt, image, target)] if prompt is not None else read_facts(facts) if facts else []
        check_kept(wanted)
        saved = [each for _, each in shared.edits_named(edit or [])]
        found = writable(where, blobs)
    backbone, _ = shared.load(model, device, dtype, quantize, trust_remote_code, template)
    tell(found, into, let_in(found, backbone, wanted, saved, editor, chosen, terms), as_json)


def check_given(
    prompt: str | None, target: str | None, image: Path | None, facts: Path | None, edit: list[str] | None
) -> None:
    """Refuse anything but a fact, a file of facts, or an edit."""
    given = {"--prompt and --target": prompt or target or image, "--facts": facts, "--edit": edit}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1 or (facts is None and edit is None and (prompt is None or target is None)):
        raise UnikeError("say what is to be edited: --prompt and --target, or --facts FILE, or --edit; one of them")
    if prompt is not None and target is not None:
        shared.check_text(prompt, "prompt", "say which question is to be answered differently")
        shared.check_text(target, "target", "say what the answer should be")
    shared.check_image(image)


def check_kept(wanted: "Sequence[Query]") -> None:
    """Refuse facts that no store keeps.

    Raises:
        UnikeError: Says which one, counted from the first.
    """
    from unike.store.names import check_fact

    for number, each in enumerate(wanted, 1):
        try:
            check_fact(each.prompt, each.target or "")
        except UnikeError as error:
            raise UnikeError(f"fact {number}: {error}") from None


def let_in(
    found: "Store",
    backbone: "Backbone",
    wanted: "Sequence[Query]",
    saved: "Sequence[Edit]",
    editor: str,
    settings: Mapping[str, Any],
    terms: Mapping[str, Any],
) -> "list[Admission]":
    """Make edits of facts, or take those that are made, and put them in force on some terms."""
    from unike import api
    from unike.store.admission import admit_all, admit_made

    if saved:
        with shared.working("checking"):
            return [admit_made(found, backbone, edit, **terms) for edit in saved]
    method = api.make_editor(editor, **settings)
    with shared.progress_bars() as progress:
        method.progress = progress
        return admit_all(found, backbone, method, wanted, progress=progress, **terms)


def tell(found: "Store", into: str, results: "Sequence[Admission]", as_json: bool) -> None:
    """What became of facts.

    Raises:
        UnikeError: The only one was refused.
    """
    counts = {status: sum(each.status == status for each in results) for status in ("added", "there", "refused")}
    if as_json:
        version = {"set": into, "version": found.version(into)}
        shared.print_json(counts | version | {"facts": [each.model_dump(mode="json") for each in results]})
        if counts["refused"]:
            raise typer.Exit(1)
        return
    for each in results:
        if each.status == "refused":
            if len(results) == 1:
                raise UnikeError(each.why)
            shared.ERR.print(f"refused: {each.why}")
        elif len(results) == 1 and each.asked:
            shared.OUT.print(shared.table([_row(asked) for asked in each.asked]))
        for other in each.conflicts if each.status == "added" else ():
            typer.echo(f"revoked {other.id}: {other.prompt!r} was {other.target!r}")
    ids = [each.stored.id for each in results if each.stored is not None]
    only = f" ({ids[0]})" if len(ids) == 1 else ""
    typer.echo(
        f"{counts['added']} added{only}, {counts['there']} in force before, {counts['refused']} refused; "
        f"the set {into!r} is at version {found.version(into)}"
    )
    if counts["refused"]:
        raise typer.Exit(1)


def _row(asked: "Asked") -> shared.Row:
    if asked.kind == "canary":
        verdict = "unchanged" if asked.right else "changed"
    else:
        verdict = "right" if asked.right else "unchanged" if asked.before == asked.after else "wrong"
    return shared.Row(asked.kind, asked.prompt, None, asked.before, asked.after, verdict)
