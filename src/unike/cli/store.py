"""``unike store``: edits in service: what is in force, since when, why and by whom; taken back and brought back."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from unike.cli import _shared as shared
from unike.cli._store import HERE, Author, Blobs, In, Reason, Where, add, opened, writable
from unike.core.errors import UnikeError

if TYPE_CHECKING:
    from unike.store import Store
    from unike.store.values import Entry, Stored

ORDER = 24

store = typer.Typer(
    help="Keep edits in service: add, list, revoke, restore, roll back; with a log of who did what, and why.",
    no_args_is_help=True,
)
canary = typer.Typer(help="Questions that are asked before and after each edit.", no_args_is_help=True)
store.add_typer(canary, name="canary")

Id = Annotated[str, typer.Argument(metavar="ID", help="The edit, or the first digits of its id.")]


@store.callback()
@canary.callback()
def _group() -> None:
    pass


store.command("add")(add)


# ---------------------------------------------------------------------- what there is


@store.command("ls")
def ls(
    where: Where = HERE,
    of: In = "default",
    version: Annotated[int | None, typer.Option(min=0, help="As it was then.", show_default="now")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every edit ever added, in force or not.")] = False,
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.")] = None,
    text: Annotated[str | None, typer.Option(help="Only those in which this is said.")] = None,
    as_json: shared.Json = False,
) -> None:
    """List the edits that are in force in a set, the newest last."""
    found = opened(where)
    some = found.all(tag=tag, text=text)
    if not every:
        check_there(found, of)
        wanted = {each.id for each in some}
        some = [each for each in found.members(of, version) if each.id in wanted]
    at = found.version(of) if version is None else version
    if as_json:
        about = {"sets": found.sets()} if every else {"set": of, "version": at}
        shared.print_json(about | {"edits": [each.model_dump(mode="json") for each in some]})
        return
    grid = Table(box=None, pad_edge=False)
    for heading in ("id", "question", "picture", "answer", "since", "by", "tags"):
        grid.add_column(heading, overflow="fold", no_wrap=heading in ("id", "since"))
    for each in some:
        cells = (each.prompt, _picture(each), each.target, each.added_at[:16].replace("T", " "), each.author)
        grid.add_row(each.id, *(shared.printable(cell) if cell else "" for cell in cells), " ".join(each.tags))
    if some:
        shared.OUT.print(grid)
    sets = ", ".join(found.sets()) or "none yet"
    typer.echo(f"{len(some)} edits; sets: {sets}" if every else f"{len(some)} in force in {of!r}, version {at}")


def check_there(found: "Store", of: str) -> None:
    """Refuse to look into a set that there is not; the one that is meant where none is named may have no edit yet.

    Raises:
        UnikeError: With the sets that there are.
    """
    from unike.store.names import DEFAULT, checked_set
    from unike.store.upkeep import sets_of

    if checked_set(of) != DEFAULT and of not in found.sets():
        raise UnikeError(f"there is no set {of!r} (there {sets_of(found)})")


@store.command("show")
def show(name: Id, where: Where = HERE, as_json: shared.Json = False) -> None:
    """Show an edit, where it is in force, and all that was done with it."""
    found = opened(where)
    stored = found.find(name)
    sets = [each for each in found.sets() if any(member.id == stored.id for member in found.members(each))]
    log = found.log(edit=stored.id)
    picture = None if stored.picture is None else str(found.picture(stored.picture))
    if as_json:
        lines = [entry.model_dump(mode="json") for entry in log]
        shared.print_json(stored.model_dump(mode="json") | {"file": picture, "in_force_in": sets, "log": lines})
        return
    grid = Table.grid(padding=(0, 2))
    about = {"id": stored.id, "question": stored.prompt, "answer": stored.target, "picture": picture or "none"}
    about |= {"method": stored.editor, "model": stored.source, "added": f"{stored.added_at} by {stored.author}"}
    about |= {"reason": stored.reason, "tags": " ".join(stored.tags), "in force in": ", ".join(sets) or "no set"}
    for what, value in about.items():
        if value:
            grid.add_row(what, shared.printable(value))
    shared.OUT.print(grid)
    for entry in log:
        for asked in entry.detail.get("asked", []):
            if not asked.get("right", True):
                told = f"{asked.get('prompt')!r} is {asked.get('after')!r}"
                shared.OUT.print(f"  {asked.get('kind')} not as it should be: {told}")
    shared.OUT.print(_log(log))


@store.command("log")
def log(
    where: Where = HERE,
    of: Annotated[str | None, typer.Option("--in", metavar="SET", help="Only in this set.")] = None,
    edit: Annotated[str | None, typer.Option(metavar="ID", help="Only about this edit.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 50,
    as_json: shared.Json = False,
) -> None:
    """Show who did what when, and why."""
    found = opened(where)
    if of is not None:
        check_there(found, of)
    lines = found.log(of, None if edit is None else found.find(edit).id, limit)
    if as_json:
        shared.print_json({"log": [entry.model_dump(mode="json") for entry in lines]})
    else:
        shared.OUT.print(_log(lines))


def _log(lines: "Sequence[Entry]") -> Table:
    grid = Table(box=None, pad_edge=False)
    for heading in ("when", "who", "what", "set", "version", "edit", "why"):
        grid.add_column(heading, overflow="fold", no_wrap=heading in ("when", "edit"))
    for entry in lines:
        version = str(entry.version) if entry.version else ""
        back = f" to {entry.detail.get('to')}" if entry.action == "roll back" else ""
        what = (entry.author, entry.action + back, entry.set, version, entry.edit or "", entry.reason)
        grid.add_row(entry.at[:16].replace("T", " "), *(shared.printable(each) if each else "" for each in what))
    return grid


def _picture(stored: "Stored") -> str:
    return "" if stored.picture is None else stored.picture_name or stored.picture[:12]


# ---------------------------------------------------------------------- changing what is in force


@store.command("revoke")
def revoke(name: Id, where: Where = HERE, of: In = "default", author: Author = None, reason: Reason = "") -> None:
    """Take an edit off; it is kept, and can be restored."""
    found = opened(where)
    version = found.revoke(name, set=of, author=author, reason=reason)
    typer.echo(f"revoked {found.find(name).id}; the set {of!r} is at version {version}")


@store.command("restore")
def restore(name: Id, where: Where = HERE, of: In = "default", author: Author = None, reason: Reason = "") -> None:
    """Put an edit that was revoked, or that another set has, in force."""
    found = opened(where)
    version = found.restore(name, set=of, author=author, reason=reason)
    typer.echo(f"restored {found.find(name).id}; the set {of!r} is at version {version}")


@store.command("roll-back")
def roll_back(
    version: Annotated[int, typer.Argument(min=0, help="The version, see `unike store log`; 0 has no edit.")],
    where: Where = HERE,
    of: In = "default",
    author: Author = None,
    reason: Reason = "",
) -> None:
    """Put in force what was in an earlier version of a set, bit for bit."""
    found = opened(where)
    new = found.roll_back(of, version, author=author, reason=reason)
    typer.echo(
        f"version {version} of the set {of!r} is in force again, as version {new}: {len(found.members(of))} edits"
    )


# ---------------------------------------------------------------------- upkeep


@store.command("check")
def check(where: Where = HERE, as_json: shared.Json = False) -> None:
    """Look for damage: blobs, edits and the log are all read; exit code 1 if something is wrong."""
    found = opened(where)
    from unike.store.upkeep import damage

    with shared.progress_bars() as progress:
        wrong = damage(found, progress)
    edits = len(found.all())
    if as_json:
        shared.print_json({"edits": edits, "sets": found.sets(), "damage": wrong})
    else:
        for line in wrong:
            typer.echo(line)
        lines = f"{len(found.sets())} sets, {len(found.log())} lines in the log"
        typer.echo(f"{edits} edits in {lines}: {f'{len(wrong)} damaged' if wrong else 'all as it should be'}")
    if wrong:
        raise typer.Exit(1)


@store.command("gc")
def gc(where: Where = HERE) -> None:
    """Remove blobs that nothing names, which a writer left that was killed."""
    from unike.store.upkeep import collect

    count, size = collect(opened(where))
    typer.echo(f"removed {count} blobs, {size / 1e6:.1f} MB")


@store.command("push")
def push(
    to: Annotated[str, typer.Argument(metavar="DIR|URL", help="The other store.")],
    where: Where = HERE,
    of: In = "default",
    into: Annotated[str | None, typer.Option(metavar="SET", help="Its set.", show_default="of the same name")] = None,
    blobs: Blobs = None,
    author: Author = None,
    reason: Reason = "",
) -> None:
    """Put what is in force here in force in another store, in one step."""
    copy(opened(where), lambda: writable(to, blobs), of, into, author, reason)


@store.command("pull")
def pull(
    source: Annotated[str, typer.Argument(metavar="DIR|URL", help="The other store.")],
    where: Where = HERE,
    of: In = "default",
    into: Annotated[
        str | None, typer.Option(metavar="SET", help="The set here.", show_default="of the same name")
    ] = None,
    blobs: Blobs = None,
    author: Author = None,
    reason: Reason = "",
) -> None:
    """Put what is in force in another store in force here, in one step."""
    copy(opened(source), lambda: writable(where, blobs), of, into, author, reason)


def copy(
    source: "Store", other: Callable[[], "Store"], of: str, into: str | None, author: str | None, reason: str
) -> None:
    """What `push` and `pull` do; nothing is made for a set that there is not."""
    from unike.store.names import checked_set
    from unike.store.upkeep import copy_set, has_set

    has_set(source, of)
    checked_set(into or of)
    to = other()
    with shared.progress_bars() as progress:
        version = copy_set(source, to, set=of, into=into, author=author, reason=reason, progress=progress)
    typer.echo(f"{len(to.members(into or of))} edits are in force in {into or of!r}, version {version}")


@canary.command("add")
def canary_add(
    prompt: Annotated[str, typer.Option(help="The question.")],
    image: shared.Image = None,
    where: Where = HERE,
    blobs: Blobs = None,
    author: Author = None,
) -> None:
    """Ask a question before and after each edit from now on."""
    from unike.data.queries import Query

    shared.check_text(prompt, "prompt", "say what to ask")
    typer.echo(writable(where, blobs).add_canary(Query(prompt, image), author=author).id)


@canary.command("ls")
def canary_ls(where: Where = HERE) -> None:
    """List the questions."""
    for each in opened(where).canaries():
        typer.echo(
            f"{each.id}  {shared.printable(each.prompt)}{'' if each.picture is None else f'  ({each.picture[:12]})'}"
        )


@canary.command("drop")
def canary_drop(name: Id, where: Where = HERE, author: Author = None) -> None:
    """Ask a question no more."""
    typer.echo(f"dropped {opened(where).drop_canary(name, author=author).id}")
