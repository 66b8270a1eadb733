"""The tabs with the log and the canaries."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unike.serve.studio import parts, shown
from unike.serve.studio.counter import Counter, in_thread

LENGTHS = (100, 1000, 10_000)


class LogTab:
    """Who did what when, and why.

    Args:
        counter: Where visitors are served.
    """

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        with gr.Row():
            self.set = parts.chosen("Of the set", parts.all_or([], "all"), "")
            self.limit = parts.chosen("Newest lines", list(LENGTHS), LENGTHS[0], free=False)
        self.look = gr.Button("Look again")
        self.lines = parts.html(elem_id="u-log")
        gr.on(
            [self.look.click, self.set.change, self.limit.change],
            self.on_look,
            [self.set, self.limit],
            [self.lines, self.set],
        )

    @parts.tells(gr.skip())
    def on_look(self, name: str, limit: int, request: gr.Request) -> Any:
        """List them."""
        counter = parts.served(self.counter, request)
        entries = counter.log(name or "", None, limit)
        sets = parts.all_or(counter.sets(), "all")
        return shown.lines("The newest line first", entries), gr.update(choices=sets)


class CanariesTab:
    """Questions whose answers no correction is to change.

    Args:
        counter: Where visitors are served.
    """

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        gr.HTML(
            "<p class='u-note'>Canaries are asked before and after each correction, to tell which of them moved.</p>",
            js_on_load=None,
        )
        with gr.Row():
            self.picture = parts.picture("Picture (optional)", 200)
            with gr.Column(min_width=280):
                self.question = parts.words("Question to watch", elem_id="u-canary")
                self.author = parts.author()
                self.add = gr.Button("Add it", variant="primary")
        self.status = parts.html(elem_id="u-canary-status")
        self.list = parts.html(js_on_load=parts.PICK, elem_id="u-canaries")
        shown_again = [self.status, self.list]
        gr.on(
            [self.add.click, self.question.submit],
            self.on_add,
            [self.question, self.picture, self.author],
            shown_again,
        )
        self.list.click(self.on_drop, self.author, shown_again)

    @parts.tells()
    def on_open(self, request: gr.Request) -> Any:
        """List them."""
        return shown.watched(self.counter.store, parts.served(self.counter, request).canaries())

    @parts.tells(gr.skip())
    async def on_add(self, question: str, picture: str | None, author: str, request: gr.Request) -> Any:
        """Watch a question."""
        counter = parts.served(self.counter, request)
        canary = await in_thread(counter.add_canary, question, picture, author.strip())
        return shown.done(f"{canary.id} is watched."), await in_thread(self.on_open, request)

    @parts.tells(gr.skip())
    async def on_drop(self, author: str, event: gr.EventData, request: gr.Request) -> Any:
        """Watch one no more."""
        counter = parts.served(self.counter, request)
        canary = await in_thread(counter.drop_canary, str(event.edit), author.strip())
        return shown.done(f"{canary.id} is watched no more."), await in_thread(self.on_open, request)
