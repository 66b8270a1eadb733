"""``unike ls``: what there is."""

from typing import Annotated, Any

import typer
from rich.table import Table

from unike.cli import _shared as shared
from unike.core import registry
from unike.core.errors import UnikeError

KINDS = {"editors": registry.editors, "backbones": registry.backbones, "datasets": registry.datasets}


def ls(
    what: Annotated[str, typer.Argument(metavar="editors|backbones|datasets", help="What to list.")],
    as_json: shared.Json = False,
) -> None:
    """List editors, backbones or datasets."""
    if what not in KINDS:
        raise UnikeError(registry.did_you_mean("list", what, sorted(KINDS)))
    with shared.working(f"reading {what}"):
        entries = [describe(what, name) for name in KINDS[what].names()]
    if as_json:
        shared.print_json({what: entries})
        return
    grid = Table()
    for key in entries[0]:
        grid.add_column(key.replace("_", " "), overflow="fold", no_wrap=key == "name")
    for entry in entries:
        grid.add_row(*(", ".join(value) if isinstance(value, list) else value for value in entry.values()))
    shared.OUT.print(grid)


def describe(what: str, name: str) -> dict[str, Any]:
    """One entry: its name, a line about it, and for a backbone the model types it reads."""
    found = KINDS[what].get(name)
    line = found.description if what == "datasets" else (found.__doc__ or "").strip().split("\n")[0]
    entry: dict[str, Any] = {"name": name, "description": line}
    if what == "backbones":
        entry["model_types"] = list(found.model_types)
    return entry
