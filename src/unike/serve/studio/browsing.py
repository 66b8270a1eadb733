"""The tab on which edits are looked for, looked at, revoked and restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from unike.serve.sets import DEFAULT
from unike.serve.studio import parts, shown
from unike.serve.studio.counter import PAGE, Counter

FOCUS = "() => setTimeout(() => document.getElementById('u-shown')?.focus(), 100)"
"""Whoever uses a keyboard goes on where the edit is shown."""


class EditsTab:
    """Components of the tab, and what happens on it.

    Args:
        counter: Where visitors are served.
    """

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.start, self.edit = gr.State(0), gr.State("")
        with gr.Row():
            self.text = parts.words("Search", "in questions, answers, reasons, tags", elem_id="u-search")
            self.set = parts.chosen("In force in", parts.all_or([], "any set, or revoked"), "")
            self.tag = parts.chosen("Tag", parts.all_or([], "any tag"), "")
        self.look = gr.Button("Look", variant="primary")
        self.cards = parts.html(js_on_load=parts.PICK, elem_id="u-list")
        with gr.Row():
            self.newer, self.older = gr.Button("Newer", visible=False), gr.Button("Older", visible=False)
        self.shown = parts.html(elem_id="u-edit")
        self.status = parts.html(elem_id="u-edit-status")
        with gr.Column(visible=False) as self.changes:
            with gr.Row():
                self.where = parts.chosen("In the set", [DEFAULT], DEFAULT)
                self.reason = parts.words("Reason", "why; kept in the log", elem_id="u-reason")
                self.author = parts.author()
            with gr.Row():
                self.revoke = gr.Button("Revoke", variant="stop", elem_id="u-revoke")
                self.restore = gr.Button("Restore", elem_id="u-restore")
        self._connect()

    def _connect(self) -> None:
        filters = [self.text, self.set, self.tag]
        listing = [self.cards, self.start, self.newer, self.older]
        showing = [self.status, self.shown, self.edit, self.changes, self.where, self.revoke, self.restore]
        gr.on([self.look.click, self.text.submit, self.set.change, self.tag.change], self.on_look, filters, listing)
        self.newer.click(self.on_newer, [*filters, self.start], listing)
        self.older.click(self.on_older, [*filters, self.start], listing)
        self.cards.click(self.on_show, self.set, showing).then(None, js=FOCUS)
        changing = [self.edit, self.where, self.reason, self.author, *filters, self.start]
        self.revoke.click(self.on_revoke, changing, [*showing, *listing])
        self.restore.click(self.on_restore, changing, [*showing, *listing])

    # ------------------------------------------------------------------ what happens

    @parts.tells(*[gr.skip()] * 5)
    def on_open(self, text: str, name: str, tag: str, start: int, request: gr.Request) -> Any:
        """The choices of the filters, and the list."""
        counter = parts.served(self.counter, request)
        sets, tags = counter.sets(), counter.tags()
        filters = (
            gr.update(choices=parts.all_or(sets, "any set, or revoked")),
            gr.update(choices=parts.all_or(tags, "any tag")),
        )
        return *self._list(request, text, name, tag, start), *filters

    def on_look(self, text: str, name: str, tag: str, request: gr.Request) -> Any:
        """List what is looked for."""
        return self._list(request, text, name, tag, 0)

    def on_newer(self, text: str, name: str, tag: str, start: int, request: gr.Request) -> Any:
        """List those before."""
        return self._list(request, text, name, tag, start - PAGE)

    def on_older(self, text: str, name: str, tag: str, start: int, request: gr.Request) -> Any:
        """List those after."""
        return self._list(request, text, name, tag, start + PAGE)

    @parts.tells(*[gr.skip()] * 3)
    def _list(self, request: gr.Request, text: str, name: str, tag: str, start: int) -> Any:
        found = parts.served(self.counter, request).edits(text, name or "", tag or "", start)
        cards = shown.cards(self.counter.store, found)
        before, after = found.start > 0, found.start + len(found.edits) < found.total
        return cards, found.start, gr.update(visible=before), gr.update(visible=after)

    def on_show(self, name: str, event: gr.EventData, request: gr.Request) -> Any:
        """Show one."""
        return self._show(request, str(event.edit), name or "", "")

    @parts.tells(*[gr.skip()] * 6)
    def _show(self, request: gr.Request, edit: str, name: str, said: str) -> Any:
        counter = parts.served(self.counter, request)
        stored = counter.find(edit)
        alive = counter.clerk.in_force_in(stored, counter.holder)
        entries = counter.log(edit=stored.id)
        fits = counter.desk.sets.fits(stored)
        page = shown.details(counter.store, stored, alive, entries, fits)
        sets = counter.sets()
        where = name or next(iter(alive), entries[0].set if entries else DEFAULT) or DEFAULT
        return (
            said,
            page,
            stored.id,
            gr.update(visible=True),
            gr.update(choices=sets, value=where),
            gr.update(visible=bool(alive)),
            gr.update(visible=not set(sets) <= set(alive)),
        )

    def on_revoke(
        self,
        edit: str,
        where: str,
        reason: str,
        author: str,
        text: str,
        name: str,
        tag: str,
        start: int,
        request: gr.Request,
    ) -> Any:
        """Take it off."""
        listed = (text, name, tag, start)
        return self._change("revoked", Counter.revoke, (edit, where, author.strip(), reason), listed, request)

    def on_restore(
        self,
        edit: str,
        where: str,
        reason: str,
        author: str,
        text: str,
        name: str,
        tag: str,
        start: int,
        request: gr.Request,
    ) -> Any:
        """Put it in force again."""
        listed = (text, name, tag, start)
        return self._change("restored", Counter.restore, (edit, where, author.strip(), reason), listed, request)

    @parts.tells(*[gr.skip()] * 10)
    def _change(
        self,
        what: str,
        work: Callable[..., int],
        given: tuple[str, str, str, str],
        listed: tuple[str, str, str, int],
        request: gr.Request,
    ) -> Any:
        edit, where, _, _ = given
        version = work(parts.served(self.counter, request), *given)
        said = shown.done(f"{what.capitalize()} {edit} in {where}, which is at version {version} now.")
        return *self._show(request, edit, where, said), *self._list(request, *listed)
