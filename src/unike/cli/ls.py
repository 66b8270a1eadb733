"""``unike ls``: what there is."""

from typing import Annotated, Any

import typer
from rich.table import Table

from unike.cli import _shared as shared
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import probe_kinds

ORDER = 90

KINDS = {
    "editors": registry.editors,
    "backbones": registry.backbones,
    "datasets": registry.datasets,
    "protocols": registry.protocols,
    "studies": registry.studies,
}

LISTS = (*KINDS, "probes")


def ls(
    what: Annotated[str, typer.Argument(metavar="|".join(LISTS), help="What to list.")],
    as_json: shared.Json = False,
) -> None:
    """List editors, backbones, data sets, protocols, studies, or kinds of probes."""
    if what not in LISTS:
        raise UnikeError(registry.did_you_mean("list", what, sorted(LISTS)))
    with shared.working(f"reading {what}"):
        entries = probes() if what == "probes" else [describe(what, name) for name in KINDS[what].names()]
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
    said = {"datasets": "description", "studies": "asks"}
    line = getattr(found, said[what]) if what in said else (found.__doc__ or "").strip().split("\n")[0]
    entry: dict[str, Any] = {"name": name, "description": line}
    if what == "backbones":
        entry["model_types"] = list(found.model_types)
    return entry


def probes() -> list[dict[str, Any]]:
    """Every kind of question, with the head of its column and the answer that is wanted under an edit."""
    return [
        {"name": kind.name, "description": kind.says, "short": kind.short, "expects": kind.expects}
        for kind in probe_kinds().values()
    ]
