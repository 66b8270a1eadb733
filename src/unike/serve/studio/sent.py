"""What the page's buttons send: values of the kinds that its components have, and nothing else.

Gradio takes what it is sent, and what a component cannot make anything of ends in a traceback. So what is sent is read
here first; gradio gets what was read, in the one shape that the page has it in.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gradio as gr

from unike.serve.chat import read_body
from unike.serve.errors import invalid

SESSION = re.compile(r"\w{1,64}", re.ASCII)


class Sent:
    """Reads what is sent to a page.

    Args:
        page: Whose functions are called.
        uploads: The folder with visitors' pictures; no other file is named.
    """

    def __init__(self, page: gr.Blocks, uploads: Path) -> None:
        self.page, self.uploads = page, uploads.resolve()

    def read(self, body: bytes) -> bytes:
        """The press of a button, as gradio takes it.

        Raises:
            ApiError: The page has no such button, or it sends something else.
        """
        given = read_body(body)
        function = self._function(given.get("fn_index"))
        session, data = given.get("session_hash"), given.get("data")
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise invalid("session_hash names a session of the page; load it again", "session_hash")
        if not isinstance(data, list) or len(data) != len(function.inputs):
            raise invalid(f"data is a list of {len(function.inputs)} values for this button", "data")
        trigger, event = given.get("trigger_id"), given.get("event_data")
        sent = {
            "fn_index": given["fn_index"],
            "session_hash": session,
            "data": [self._value(component, value) for component, value in zip(function.inputs, data, strict=True)],
            "trigger_id": trigger if type(trigger) is int and trigger in self.page.blocks else None,
            # Of what browsers say of an event, the page has one use: which button of a list it was.
            "event_data": {"edit": _text("edit", event.get("edit") if isinstance(event, dict) else None)},
        }
        return json.dumps(sent).encode()

    def _function(self, number: object) -> Any:
        """What a button does."""
        if type(number) is int:
            found = self.page.fns.get(number)
            if found is not None and found.fn is not None:
                return found
        raise invalid("fn_index names nothing that this page does; load it again", "fn_index")

    def _value(self, component: Any, value: Any) -> Any:
        """What is in a component, as it is sent.

        Raises:
            ApiError: That cannot be in it.
        """
        label = str(component.label)
        if isinstance(component, gr.State):
            return None  # the server has it
        if isinstance(component, gr.Image):
            return None if value is None else self._picture(value)
        if isinstance(component, gr.Checkbox):
            if value is not None and not isinstance(value, bool):
                raise invalid(f"{label!r} is true or false", "data")
            return bool(value)
        if isinstance(component, gr.Dropdown) and not component.allow_custom_value:
            for _, choice in component.choices:
                if type(choice) is type(value) and choice == value:
                    return choice
            raise invalid(f"{label!r} is one of {', '.join(str(choice) for _, choice in component.choices)}", "data")
        return _text(label, value)

    def _picture(self, value: Any) -> dict[str, Any]:
        """A picture that a visitor sent: gradio copies what is named to where it is shown from, or fetches it."""
        path = value.get("path") if isinstance(value, dict) else None
        if not is_upload(path, self.uploads):
            raise invalid("the picture is no longer there; choose it again", "data")
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


def is_upload(path: object, uploads: Path) -> bool:
    """Whether a path names a file that a visitor sent, wherever links lead."""
    try:
        if not isinstance(path, str) or not Path(path).is_absolute():
            return False
        place = Path(path).resolve()
        return place.is_relative_to(uploads) and place.is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _text(label: str, value: Any) -> str:
    """A text; an empty one where nothing was written.

    Raises:
        ApiError: It is something else.
    """
    if value is not None and not isinstance(value, str):
        raise invalid(f"{label!r} is a text, not {type(value).__name__}", "data")
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise invalid(f"{label!r} is not valid Unicode", "data") from None
    return value or ""
