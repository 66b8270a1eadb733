"""What the page shows, as HTML. Texts of people and models are shown as they are: nothing in them is markup."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from markupsafe import Markup, escape

from unike.core.errors import UnikeError
from unike.core.images import load_image
from unike.serve.studio.counter import PAGE
from unike.serve.studio.values import Change, Listed
from unike.store import Canary, Entry, Store, Stored
from unike.store.admission import Admission, Asked

SMALL, LARGE = 160, 512
"""Pixels of the longer side of a picture in a list, and of one that is looked at."""

KINDS = {"own": "the question", "rephrasing": "in other words", "canary": "canary", "other": "asked now"}
"""Kind of question to what the table calls it."""

MARKS = {"right": "✓ right", "wrong": "✗ wrong", "unchanged": "= unchanged", "moved": "≠ moved"}

SIGN_OUT = Markup('<form method="post" action="/studio/logout"><button class="u-button">Sign out</button></form>')


def text(value: object) -> Markup:
    """A text as HTML that shows it. Gradio fills templates in a page, and so what would be a template is none, too."""
    found = str(escape(value))
    for each in "${}`\\":
        found = found.replace(each, f"&#{ord(each)};")
    return Markup(found)


def fill(template: str, **values: object) -> Markup:
    """A template with texts in the place of names; what is HTML already stays as it is."""
    shown = {name: value if isinstance(value, Markup) else text(value) for name, value in values.items()}
    return Markup(template).format(**shown)


def joined(parts: Iterable[Markup]) -> Markup:
    """Pieces of HTML behind each other."""
    return Markup("").join(parts)


def done(message: str) -> Markup:
    """That something was done."""
    return fill('<p class="u-status u-done" role="status">{message}</p>', message=message)


def problem(message: str) -> Markup:
    """That something could not be done, and why."""
    return fill('<p class="u-status u-problem" role="alert">{message}</p>', message=message)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; on a narrow screen each row is a block with the columns' names in it."""
    head = joined(fill('<th role="columnheader" scope="col">{name}</th>', name=name) for name in columns)
    body = joined(
        fill(
            '<tr role="row">{cells}</tr>',
            cells=joined(
                fill('<td role="cell" data-label="{name}">{value}</td>', name=name, value=value)
                for name, value in zip(columns, row, strict=True)
            ),
        )
        for row in rows
    )
    return fill(
        '<table class="u-table" role="table"><caption>{caption}</caption><thead role="rowgroup"><tr role="row">{head}'
        '</tr></thead><tbody role="rowgroup">{body}</tbody></table>',
        caption=caption,
        head=head,
        body=body,
    )


def verdict(asked: Asked) -> Markup:
    """What became of an answer, in a word and a colour."""
    if asked.kind in ("canary", "other"):
        word = "unchanged" if asked.before == asked.after else "moved"
    else:
        word = "right" if asked.right else "wrong"
    good = word != "moved" if asked.kind == "other" else asked.right
    name = ("u-good" if good else "u-bad") if word != "moved" or asked.kind == "canary" else "u-plain"
    return fill('<span class="{name}">{mark}</span>', name=Markup(name), mark=MARKS[word])


def before_and_after(caption: str, asked: Iterable[Asked]) -> Markup:
    """What was asked before and after an edit, side by side."""
    rows = [(KINDS[each.kind], each.prompt, each.before, each.after, verdict(each)) for each in asked]
    return table(caption, ("What is asked", "Question", "Before", "After", "Verdict"), rows)


def admitted(found: Admission) -> Markup:
    """What became of a correction, in a line."""
    if found.status == "refused":
        return problem(" ".join(found.why.split()))
    assert found.stored is not None
    if found.status == "there":
        return done(f"This was in force already, as {found.stored.id}; nothing was changed.")
    canaries = [each for each in found.asked if each.kind == "canary"]
    moved = sum(not each.right for each in canaries)
    kept = f"; {moved} of {len(canaries)} canaries moved" if canaries else "; there are no canaries to watch"
    gone = f"; revoked for it: {', '.join(each.id for each in found.conflicts)}" if found.conflicts else ""
    return done(f"In force as {found.stored.id}{kept}{gone}.")


# ---------------------------------------------------------------------- pictures


@lru_cache(512)
def _scaled(path: Path, side: int) -> str:
    image = load_image(path)
    image.thumbnail((side, side))
    kept = BytesIO()
    image.save(kept, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(kept.getvalue()).decode()


def picture(store: Store, name: str | None, side: int, alternative: str) -> Markup:
    """A picture of the store, by its SHA-256, or a line in its place."""
    if name is None:
        return fill('<span class="u-none">{words}</span>', words="no picture")
    try:
        source = _scaled(store.picture(name), side)
    except UnikeError:
        return fill('<span class="u-none">{words}</span>', words="the picture cannot be read")
    return fill('<img src="{source}" alt="{alternative}">', source=Markup(source), alternative=alternative)


# ---------------------------------------------------------------------- edits, canaries, the log


def _when(moment: str) -> str:
    return f"{moment[:10]} {moment[11:16]}"


def _where(alive: Sequence[str]) -> str:
    return f"in force in {', '.join(alive)}" if alive else "revoked"


CARD = (
    '<li class="u-card"><div class="u-thumb">{picture}</div><div><p class="u-fact">{prompt} → <strong>{target}</strong>'
    '</p><p class="u-note">{id} · {where} · {author}, {when} UTC{tags}</p>'
    '<button type="button" class="u-button" data-edit="{id}" aria-label="Show {id}">Show</button></div></li>'
)


def cards(store: Store, found: Listed) -> Markup:
    """Edits with their pictures; a button shows one."""
    if not found.edits:
        return fill('<p class="u-note" role="status">{words}</p>', words="There are no such edits.")
    items = joined(
        fill(
            CARD,
            picture=picture(store, each.picture, SMALL, f"picture of {each.id}"),
            prompt=each.prompt,
            target=each.target,
            where=_where(found.alive.get(each.id, [])),
            author=each.author,
            when=_when(each.added_at),
            tags=f" · {', '.join(each.tags)}" if each.tags else "",
            id=each.id,
        )
        for each in found.edits
    )
    count = f"{found.start + 1} to {found.start + len(found.edits)} of {found.total}"
    more = f"; {PAGE} are shown at once" if found.total > PAGE else ""
    words = f"{count}, the newest first{more}"
    return fill('<p class="u-note" role="status">{words}</p><ul class="u-cards">{items}</ul>', words=words, items=items)


def details(store: Store, stored: Stored, alive: Sequence[str], entries: Sequence[Entry], fits: bool) -> Markup:
    """One edit: its picture, what is kept of it, what it changed when it was made, and its lines of the log."""
    facts = [
        ("State", _where(alive)),
        ("Right answer", stored.target),
        ("Author", stored.author),
        ("Reason", stored.reason or "none given"),
        ("Tags", ", ".join(stored.tags) or "none"),
        ("Added", f"{_when(stored.added_at)} UTC"),
        ("Method", stored.editor),
        ("Model", stored.source if fits else f"{stored.source}, which is another one than this server's"),
    ]
    rows = joined(fill("<dt>{name}</dt><dd>{value}</dd>", name=name, value=value) for name, value in facts)
    found = next((entry.detail["asked"] for entry in entries if entry.detail.get("asked")), ())
    kept = [Asked(**each) for each in found]
    asked = before_and_after("What it changed when it was made", kept) if kept else Markup()
    return fill(
        '<h3 id="u-shown" tabindex="-1">{prompt}</h3><div class="u-details"><div class="u-large">{picture}</div>'
        "<dl>{rows}</dl></div>{asked}{log}",
        prompt=stored.prompt,
        picture=picture(store, stored.picture, LARGE, f"picture of {stored.id}"),
        rows=rows,
        asked=asked,
        log=lines(f"Log of {stored.id}", entries),
    )


def lines(caption: str, entries: Sequence[Entry]) -> Markup:
    """Lines of the log."""
    rows = [
        (
            each.number,
            _when(each.at),
            each.author,
            each.action,
            f"{each.set}:{each.version}" if each.set else "-",
            each.edit or "-",
            each.reason or "-",
        )
        for each in entries
    ]
    return table(caption, ("Line", "When, UTC", "Who", "Did", "Set:version", "Edit", "Why"), rows)


def change(found: Change) -> Markup:
    """What rolling a set back would change, to be confirmed."""
    rows = [("comes into force", each.prompt, each.target, each.id) for each in found.back]
    rows += [("is taken off", each.prompt, each.target, each.id) for each in found.gone]
    stay = len(found.then) - len(found.back)
    order = ", in another order" if found.is_in_another_order else ""
    caption = f"{found.set}, from version {found.newest} back to {found.version}: {stay} edits stay{order}"
    return table(caption, ("What happens", "Question", "Answer", "Edit"), rows)


def watched(store: Store, canaries: Sequence[Canary]) -> Markup:
    """The canaries with their pictures; a button drops one."""
    if not canaries:
        return fill('<p class="u-note" role="status">{words}</p>', words="There are no canaries yet.")
    items = joined(
        fill(
            '<li class="u-card"><div class="u-thumb">{picture}</div><div><p class="u-fact">{prompt}</p>'
            '<button type="button" class="u-button" data-edit="{id}" aria-label="Drop {id}">Drop</button></div></li>',
            picture=picture(store, each.picture, SMALL, f"picture of the canary {each.id}"),
            prompt=each.prompt,
            id=each.id,
        )
        for each in canaries
    )
    return fill('<ul class="u-cards">{items}</ul>', items=items)
