"""Parts that several tabs have, and who visits them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

import gradio as gr

from unike.serve.studio import shown
from unike.serve.studio.counter import AUTHOR, Counter, line

PICK = """
element.addEventListener("click", event => {
    const button = event.target.closest("button[data-edit]");
    if (button) trigger("click", {edit: button.dataset.edit});
});
"""
"""Of a list with buttons: a click tells which."""


def picture(label: str, height: int, **more: Any) -> gr.Image:
    """A place for a picture, which may be left empty; what is in its file is looked at where all pictures are."""
    found = gr.Image(label=label, height=height, type="filepath", sources=["upload", "clipboard"], buttons=[], **more)
    # No subclass: of one gradio writes an interface file beside this module.
    found.preprocess = _path  # type: ignore[method-assign]
    return found


def _path(payload: Any) -> str | None:
    return None if payload is None else payload.path


def html(value: str = "", **more: Any) -> gr.HTML:
    """A place for what `unike.serve.studio.shown` makes."""
    return gr.HTML(value, js_on_load=more.pop("js_on_load", None), **more)


def words(label: str, placeholder: str = "", **more: Any) -> gr.Textbox:
    """A line of text."""
    return gr.Textbox(label=label, placeholder=placeholder, lines=1, max_lines=1, max_length=4096, **more)


def author() -> gr.Textbox:
    """Who does something."""
    return words("Author", f"who does it; {AUTHOR} if empty")


def chosen(label: str, choices: list[Any], value: Any, *, free: bool = True) -> gr.Dropdown:
    """A choice; of a set also one that is not there yet."""
    return gr.Dropdown(choices, value=value, label=label, allow_custom_value=free)


def all_or(names: list[str], words: str) -> list[tuple[str, str]]:
    """Choices of a filter; the first is to have none."""
    return [(words, ""), *((name, name) for name in names)]


def served(counter: Counter, request: gr.Request) -> Counter:
    """Where a visitor is served: what the visitor's key is not good for is not there.

    Raises:
        ApiError: Nobody has signed in.
    """
    inner = request.request
    return counter.of(None if inner is None else inner.scope["state"].get("holder"))


def tells(*others: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let an event end in a line on the page, whatever fails; gradio would say "Error" there, and no more.

    Args:
        *others: What becomes of the event's outputs behind the first, which is told.
    """

    def decorated(event: Callable[..., Any]) -> Callable[..., Any]:
        def failed(error: Exception) -> Any:
            problem = shown.problem(line(error))
            return (problem, *deepcopy(others)) if others else problem

        @wraps(event)
        def now(*given: Any, **more: Any) -> Any:
            try:
                return event(*given, **more)
            except Exception as error:  # whatever it is: `line` tells the log what nobody foresaw
                return failed(error)

        @wraps(event)
        async def later(*given: Any, **more: Any) -> Any:
            try:
                return await event(*given, **more)
            except Exception as error:  # the same
                return failed(error)

        return later if iscoroutinefunction(event) else now

    return decorated
