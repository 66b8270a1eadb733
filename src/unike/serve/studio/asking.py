"""The tab on which something is asked and, if the answer is wrong, corrected."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unike.serve.sets import DEFAULT
from unike.serve.studio import parts, shown
from unike.serve.studio.counter import AUTHOR, Counter, in_thread
from unike.serve.studio.values import Made
from unike.store.admission import Asked


class AskTab:
    """Components of the tab, and what happens on it.

    Args:
        counter: Where visitors are served.
    """

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.made = gr.State(None)
        with gr.Row():
            with gr.Column(min_width=280):
                self._lay_out_question()
            with gr.Column(min_width=280):
                self._lay_out_correction()
        self.status = parts.html(elem_id="u-ask-status")
        self.table = parts.html(elem_id="u-table")
        self.revoke = gr.Button("Revoke this correction", visible=False, variant="stop")
        with gr.Accordion("Did something else move?", open=False):
            gr.HTML("<p class='u-note'>Ask something else, before and after the correction.</p>", js_on_load=None)
            with gr.Row():
                self.other_picture = parts.picture("Another picture (optional)", 200)
                with gr.Column(min_width=280):
                    self.other_question = parts.words("Another question", "the same one if empty")
                    self.compare = gr.Button("Compare before and after")
            self.other = parts.html(elem_id="u-other")
        self._connect()

    def _lay_out_question(self) -> None:
        self.picture = parts.picture("Picture (optional)", 260, elem_id="u-picture")
        self.question = parts.words("Question", "What does the picture show?", elem_id="u-question")
        self.set = parts.chosen("Set of edits", [DEFAULT], DEFAULT)
        self.ask = gr.Button("Ask", variant="primary", elem_id="u-ask")
        self.now = gr.Textbox(label="Answer under the set", interactive=False, lines=1, elem_id="u-now")
        self.plain = gr.Textbox(label="Answer of the unedited model", interactive=False, lines=1, elem_id="u-plain")

    def _lay_out_correction(self) -> None:
        self.target = parts.words("Right answer", "what it should say", elem_id="u-target")
        self.reason = parts.words("Reason", "why; kept in the log")
        self.author = parts.author()
        self.tags = parts.words("Tags", "with commas between; optional")
        self.replaces = gr.Checkbox(False, label="Replace what it contradicts")
        self.strict = gr.Checkbox(False, label="Refuse it if a canary moves")
        self.force = gr.Checkbox(False, label="Let it in even if it does not take")
        self.correct = gr.Button("Correct it", variant="primary", elem_id="u-correct")

    def _connect(self) -> None:
        question = [self.question, self.picture, self.set]
        terms = [self.target, self.reason, self.author, self.tags, self.replaces, self.strict, self.force]
        answers = [self.status, self.now, self.plain]
        gr.on([self.ask.click, self.question.submit], self.on_ask, question, answers)
        gr.on(
            [self.correct.click, self.target.submit],
            self.on_correct,
            question + terms,
            [self.status, self.table, self.made, self.revoke, self.set, self.now, self.plain, self.other],
            show_progress_on=[self.status],
        )
        self.revoke.click(
            self.on_revoke, [*question, self.made, self.reason, self.author], [*answers, self.revoke, self.made]
        )
        gr.on(
            [self.compare.click, self.other_question.submit],
            self.on_compare,
            [self.question, self.other_question, self.other_picture, self.set, self.made],
            self.other,
        )

    # ------------------------------------------------------------------ what happens

    @parts.tells("", "")
    async def on_ask(self, question: str, picture: str | None, name: str, request: gr.Request) -> Any:
        """Ask under the set, and the unedited model."""
        plain, now = await parts.served(self.counter, request).both(question, picture, "", name or DEFAULT)
        return "", now, plain

    @parts.tells(*[gr.skip()] * 7)
    async def on_correct(
        self,
        question: str,
        picture: str | None,
        name: str,
        target: str,
        reason: str,
        author: str,
        tags: str,
        replaces: bool,
        strict: bool,
        force: bool,
        request: gr.Request,
    ) -> Any:
        """Make an edit, and show what it changed."""
        name = name or DEFAULT
        terms: dict[str, Any] = {"set": name, "reason": reason, "replace": replaces, "force": force}
        terms["author"] = author.strip() or AUTHOR
        terms["tags"] = [tag.strip() for tag in tags.split(",") if tag.strip()]
        terms["max_drift"] = 0.0 if strict else None
        counter = parts.served(self.counter, request)
        found = await counter.correct(question, picture, target, **terms)
        table = shown.before_and_after("Before and after", found.asked) if found.asked else ""
        if found.stored is None:
            return shown.admitted(found), table, *[gr.skip()] * 6
        made = await in_thread(counter.made, found.stored, name)
        plain, now = await counter.both(question, picture, "", name)
        sets = gr.update(choices=await in_thread(counter.sets))
        return shown.admitted(found), table, made, gr.update(visible=True), sets, now, plain, ""

    @parts.tells(*[gr.skip()] * 4)
    async def on_revoke(
        self,
        question: str,
        picture: str | None,
        name: str,
        made: Made | None,
        reason: str,
        author: str,
        request: gr.Request,
    ) -> Any:
        """Take the correction off again, and ask once more."""
        counter = parts.served(self.counter, request)
        if made is None:
            return *[gr.skip()] * 4, None
        await in_thread(counter.revoke, made.id, made.set, author.strip(), reason)
        plain, now = await counter.both(question, picture, "", name or DEFAULT)
        said = shown.done(f"Revoked {made.id} in {made.set}; it can be restored under Edits.")
        return said, now, plain, gr.update(visible=False), None

    @parts.tells()
    async def on_compare(
        self, question: str, other: str, picture: str | None, name: str, made: Made | None, request: gr.Request
    ) -> Any:
        """Ask something else, before and after the correction; without one, the unedited model and the set."""
        asked = other if other.strip() else question
        before = f"{made.set}:{made.version - 1}" if made else ""
        after = f"{made.set}:{made.version}" if made else name or DEFAULT
        answers = await parts.served(self.counter, request).both(asked, picture, before, after)
        row = Asked(kind="other", prompt=asked, before=answers[0], after=answers[1], right=True)
        caption = f"Under {before or 'no edits'}, and under {after}"
        return shown.before_and_after(caption, [row])
