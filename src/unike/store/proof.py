"""Whether a store holds what its log says, and nothing else: sets and canaries are made again from the log alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import select

from unike.edits.edit import Edit
from unike.store.names import identity
from unike.store.store import Store
from unike.store.tables import CANARIES, CHANGES, EDITS, LOG
from unike.store.values import Entry, Stored

Standing = Mapping[str, int | None]
"""Where edits stand in a set, None for nowhere."""


@dataclass(frozen=True)
class Kept:
    """What a store held at one moment.

    Args:
        log: All of it.
        changes: Of each version of each set.
        edits: The ids of all.
        canaries: By their ids.
    """

    log: list[Entry]
    changes: dict[tuple[str, int], dict[str, int | None]]
    edits: list[str]
    canaries: dict[str, dict[str, str | None]]

    @classmethod
    def of(cls, store: Store) -> "Kept":
        """Look at a store; writers go on."""
        changes: dict[tuple[str, int], dict[str, int | None]] = {}
        with store.database.reading() as connection:
            for row in connection.execute(select(CHANGES)):
                if [type(each) for each in row[:3]] != [str, int, str]:
                    raise ValueError(f"a change of a set is {tuple(row)!r}")
                changes.setdefault((row.set, row.version), {})[row.edit] = row.position
            return cls(
                [Entry(**row) for row in connection.execute(select(LOG).order_by(LOG.c.number)).mappings()],
                changes,
                list(connection.scalars(select(EDITS.c.id).order_by(EDITS.c.id))),
                {row["id"]: dict(row) for row in connection.execute(select(CANARIES)).mappings()},
            )


def unexplained(kept: Kept) -> Iterator[str]:
    """What the log does not say of sets, edits and canaries, a line each."""
    lines = {(entry.set, entry.version): entry for entry in kept.log if entry.set}
    known: dict[str, list[int]] = {}
    for name, version in sorted({*lines, *kept.changes}):
        known.setdefault(name, []).append(version)
    for name, versions in known.items():
        standing: dict[int, Mapping[str, int]] = {0: {}}
        for version in versions:
            last, entry = max(standing), lines.get((name, version))
            changed = kept.changes.get((name, version), {})
            if version < 1:
                yield f"the set {name!r} has a version {version}, which there cannot be"
                continue
            if version > last + 1:
                yield f"of the set {name!r} the versions {last + 1} to {version - 1} are missing"
            if entry is None:
                yield f"version {version} of the set {name!r} has no line in the log"
            elif _said(entry, standing) != changed:
                yield f"version {version} of the set {name!r} is not what line {entry.number} of the log made"
            after = {**standing[last], **changed}
            standing[version] = {edit: at for edit, at in after.items() if at is not None}
    ever = {edit for changed in kept.changes.values() for edit in changed}
    yield from (f"the edit {edit} has no line in the log" for edit in kept.edits if edit not in ever)
    yield from _canaries(kept)


def _said(entry: Entry, standing: Mapping[int, Mapping[str, int]]) -> Standing | None:
    """What a line of the log changed in its set, given all versions before; None if it makes no sense."""
    now, about = standing[max(standing)], entry.detail
    try:
        top = max(now.values(), default=0) + 1
        if entry.action == "revoke" and entry.edit:
            return {entry.edit: None}
        if entry.action in ("add", "restore") and entry.edit:
            return dict.fromkeys(about.get("replaced", ())) | {entry.edit: top}
        if entry.action == "roll back":
            then = standing[about["to"]]
            return {edit: then.get(edit) for edit in now.keys() | then.keys() if now.get(edit) != then.get(edit)}
        return dict.fromkeys(now) | {edit: at for at, edit in enumerate(about["edits"], top)}
    except (TypeError, ValueError, LookupError):
        return None


def _canaries(kept: Kept) -> Iterator[str]:
    """Canaries that are not those that were added and not dropped."""
    said: dict[str, object] = {}
    for entry in kept.log:
        if entry.action == "add canary":
            said[str(entry.detail.get("id"))] = entry.detail
        elif entry.action == "drop canary":
            said.pop(str(entry.detail.get("id")), None)
    for name in sorted(said.keys() | kept.canaries.keys()):
        if said.get(name) != kept.canaries.get(name):
            yield f"the canary {name} is not what the log says"


def check_row(store: Store, stored: Stored, edit: Edit) -> None:
    """Hold what a store tells of an edit against what that edit is.

    Raises:
        ValueError: They differ; says in what.
    """
    with store.database.reading() as connection:
        described = connection.scalars(select(EDITS.c.described).where(EDITS.c.id == stored.id)).one()
    (fact,), ((_, picture),) = edit.facts, edit.questions
    told = (stored.prompt, stored.target, stored.picture, stored.editor, stored.source, stored.fingerprint)
    found = (fact.prompt, fact.target, picture or None, edit.editor, edit.source, edit.fingerprint)
    for what, one, other in zip(("prompt", "target", "picture", "editor", "source", "model"), told, found, strict=True):
        if one != other:
            raise ValueError(f"its {what} is {other!r}, and not {one!r}")
    parts = (stored.prompt, stored.target, stored.picture, stored.fingerprint, stored.editor, described["config"])
    if identity(*parts, stored.tensors) != stored.id:
        raise ValueError("its settings, tensors or facts are not those that it is called by")
