"""``unike push``: put a saved edit on the Hugging Face hub, with a card that shows what it is."""

from pathlib import Path
from typing import Annotated

import typer

from unike.cli import _shared as shared
from unike.core.errors import UnikeError

ORDER = 24


def push(
    edit: Annotated[Path, typer.Argument(metavar="EDIT", help="The folder of a saved edit.")],
    repo: Annotated[str, typer.Argument(metavar="ORGANISATION/NAME", help="The repository, made if it is not there.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Ask this model the edit's question first, without the edit and with it, for the card.",
            show_default="the card says that nothing was asked",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    with_picture: Annotated[
        bool,
        typer.Option(
            "--with-picture", help="Push the picture's file too, as it is, metadata and all; else its SHA-256 alone."
        ),
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.", show_default="the edited question")] = None,
    encoder: shared.Encoder = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Push a saved edit to the Hugging Face hub; anybody then asks with --edit hf://ORGANISATION/NAME.

    The repository has the edit's two files and a card: the fact, the method and its settings, the model, versions, and
    what was checked. No path of this machine goes along. An edit that is there is replaced, in one commit; a repository
    of something else is refused.
    """
    with shared.working("starting"):
        from unike.edits.edited import checks_of
        from unike.edits.hub import hub_name, pictures_of, push

        made, *others = [each for _, each in shared.edits_named([str(edit)], encoder)]
        if others:
            raise UnikeError(
                f"{edit} holds {len(others) + 1} edits, and a repository holds one; name the folder of one"
            )
        name = hub_name(repo)
        if with_picture:
            pictures_of(made)
        shared.check_loading(device, dtype, quantize, template)
    checks = []
    if model is not None:
        backbone, _ = shared.load(model, device, dtype, quantize, trust_remote_code, template)
        with shared.working("asking"):
            checks = checks_of(backbone, made)
        for check in checks:
            if not check.right:
                shared.ERR.print(f"the edit does not hold: the answer is {check.after!r}; the card says so")
    with shared.working(f"pushing to {name.repo}"):
        where = push(made, repo, private=private, with_pictures=with_picture, checks=checks, message=message)
    if as_json:
        answers = [{"prompt": c.prompt, "before": c.before, "after": c.after, "right": c.right} for c in checks]
        shared.print_json({"edit": str(edit), "pushed": where, "ask": f"hf://{name.repo}", "answers": answers})
    else:
        typer.echo(f"pushed: {where}; ask with --edit hf://{name.repo}")
