"""Where what was in force in an earlier version of a set is looked at, and brought back; it is below the log."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unike.serve.errors import invalid
from unike.serve.sets import DEFAULT
from unike.serve.studio import parts, shown
from unike.serve.studio.counter import Counter
from unike.serve.studio.values import Change


def nothing() -> tuple[Any, ...]:
    """Nothing is shown that could be confirmed."""
    return "", gr.update(visible=False), None


class RollBack:
    """Its components, and what happens with them.

    Args:
        counter: Where visitors are served.
    """

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.seen = gr.State(None)
        gr.HTML(
            "<p class='u-note'>Rolling a set back makes a new version of it, with what was in force in an earlier "
            "one; nothing is lost by it.</p>",
            js_on_load=None,
        )
        with gr.Row():
            self.set = parts.chosen("Set to roll back", [DEFAULT], DEFAULT)
            self.version = parts.chosen("To what was in force in version", [], "")
        self.look = gr.Button("Show what would change", variant="primary", elem_id="u-preview")
        self.status = parts.html(elem_id="u-rolling-status")
        self.change = parts.html(elem_id="u-change")
        with gr.Column(visible=False) as self.confirm:
            with gr.Row():
                self.reason = parts.words("Reason for rolling back", "why; kept in the log")
                self.author = parts.author()
            self.roll_back = gr.Button("Yes, roll it back", variant="stop", elem_id="u-roll-back")
        self.opening = [self.status, self.set, self.version]
        showing = [self.change, self.confirm, self.seen]
        self.set.change(self.on_versions, self.set, [*self.opening, *showing])
        self.look.click(self.on_preview, [self.set, self.version], [self.status, *showing])
        self.roll_back.click(
            self.on_roll_back, [self.set, self.seen, self.reason, self.author], [*self.opening, *showing]
        )

    # ------------------------------------------------------------------ what happens

    @parts.tells(gr.skip(), gr.update(choices=[], value=""))
    def on_choices(self, name: str, request: gr.Request) -> Any:
        """The sets, and the versions of the chosen one."""
        counter = parts.served(self.counter, request)
        sets, versions = counter.sets(), counter.versions(name or DEFAULT)
        return "", gr.update(choices=sets), gr.update(choices=versions, value="")

    def on_versions(self, name: str, request: gr.Request) -> Any:
        """The same for another set; what was shown of the one before is gone."""
        return *self.on_choices(name, request), *nothing()

    @parts.tells(*nothing())
    def on_preview(self, name: str, version: str, request: gr.Request) -> Any:
        """What would come into force, and what would be taken off."""
        change = parts.served(self.counter, request).change_to(name or DEFAULT, version)
        if change.is_nothing:
            return shown.done(f"Version {change.version} of {change.set} is what is in force."), *nothing()
        return "", shown.change(change), gr.update(visible=True), change

    @parts.tells(*[gr.skip()] * 2, *nothing())
    def on_roll_back(self, name: str, seen: Change | None, reason: str, author: str, request: gr.Request) -> Any:
        """Do what was shown, if it is still what would happen."""
        if seen is None:
            raise invalid("nothing is shown that could be done; show first what would change")
        made = parts.served(self.counter, request).roll_back(seen, author.strip(), reason)
        _, sets, versions = self.on_choices(name, request)
        said = shown.done(f"Version {seen.version} of {seen.set} is in force again, as version {made}.")
        return said, sets, versions, *nothing()
