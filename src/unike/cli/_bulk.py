"""``unike edit --facts``: many edits, their folders, and what became of them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from unike.cli import _shared as shared
from unike.core.errors import UnikeError

SHOWN = 20
"""So many edits that did not take are shown."""


def edit_facts(
    file: Path,
    out: Path | None,
    editor: str,
    settings: Mapping[str, Any],
    batch: int,
    loading: shared.Loading,
    as_json: bool,
) -> None:
    """Edit each fact of a file.

    Args:
        file: Of the facts.
        out: Folder of the edits' folders; ``edits/<file>`` if None.
        editor: The method's name.
        settings: Its own.
        batch: Facts that share a pass.
        loading: As `shared.load` takes it.
        as_json: Print one JSON object.
    """
    model, device, dtype, quantize, _, template = loading
    with shared.working("reading the facts"):
        from unike import api
        from unike.core import registry
        from unike.core.folders import try_place
        from unike.editors.common.bulk import LOG, edit_all, read_facts

        registry.editors.get(editor).config_class.parse(dict(settings))
        shared.check_loading(device, dtype, quantize, template)
        facts = read_facts(file)
        folder = out or Path("edits") / file.stem
        if folder.exists() and not (folder / LOG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise UnikeError(f"{folder} exists and is something else; choose another folder with --out")
        try_place(folder)
    backbone, _ = shared.load(*loading)
    method = api.make_editor(editor, **settings)
    with shared.progress_bars() as progress:
        method.progress = progress
        found = edit_all(backbone, method, facts, folder, batch=batch, progress=progress)
    missed = [outcome for outcome in found if not outcome.took]
    for outcome in missed[:SHOWN]:
        shared.ERR.print(f"did not take: {outcome.prompt!r} is {outcome.answer!r}, not {outcome.target!r}")
    if len(missed) > SHOWN:
        shared.ERR.print(f"and {len(missed) - SHOWN} more did not take; {folder / LOG} names all")
    counts = {"facts": len(found), "new": sum(each.new for each in found), "not_taken": len(missed)}
    if as_json:
        edits = [each.model_dump() for each in found]
        shared.print_json({"model": model, "editor": editor} | counts | {"saved": str(folder), "edits": edits})
        return
    named = [] if model == "mini" else ["--model", model]
    named += [] if template is None else ["--template", template]
    command = shlex.join(["unike", "ask", *named, "--prompt", "QUESTION", "--image", "PICTURE", "--edit", str(folder)])
    typer.echo(
        f"{counts['facts']} facts, {counts['new']} edited now, {counts['not_taken']} did not take; saved in {folder}; "
        f"ask with:\n  {command}"
    )
