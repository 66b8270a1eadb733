"""Asking the studio as a browser does, without one, and what is looked for in a page with one."""

import json
import secrets
from pathlib import Path
from typing import Any

import httpx
from conversing import JSON


class Visitor:
    """Sends what the studio's page sends.

    Args:
        url: The server's, with ``/v1``.
        **more: As `httpx.Client` takes it.
    """

    def __init__(self, url: str, **more: Any) -> None:
        self.http = httpx.Client(base_url=f"{url.removesuffix('/v1')}/studio", timeout=30, **more)
        self.session = secrets.token_hex(6)

    def config(self) -> dict[str, Any]:
        """What the page is made of."""
        return self.http.get("/config").json()

    def upload(self, path: Path) -> dict[str, Any]:
        """A picture that is sent, as components take it."""
        sent = self.http.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes(), "image/png")})
        assert sent.status_code == 200, sent.text
        return {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}

    def join(self, name: str, *data: Any, event: Any = None) -> httpx.Response:
        """Press a button."""
        number = next(each["id"] for each in self.config()["dependencies"] if each["api_name"] == name)
        return self.send(data=data, fn_index=number, session_hash=self.session, event_data=event)

    def send(self, **body: Any) -> httpx.Response:
        """What a button sends, or whatever else."""
        return self.http.post("/gradio_api/queue/join", content=json.dumps(body), headers=JSON)

    def call(self, name: str, *data: Any, event: Any = None) -> dict[str, Any]:
        """What comes of a button's function: ``{"success": ..., "output": {"data": [...]}}``."""
        joined = self.join(name, *data, event=event)
        assert joined.status_code == 200, joined.text
        return self.outcome()

    def outcome(self) -> dict[str, Any]:
        """What comes of the button that was pressed last."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as events:
            for line in events.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    return dict(message)
        raise AssertionError("the studio did not answer")

    def said(self, name: str, *data: Any, event: Any = None) -> list[Any]:
        """The values that it puts into the page."""
        found = self.call(name, *data, event=event)
        assert found["success"], found
        return list(found["output"]["data"])


FAINT = """() => {
    const channels = color => color.match(/[\\d.]+/g).map(Number);
    const over = (top, below) => {
        const share = top.length > 3 ? top[3] : 1;
        return [0, 1, 2].map(i => top[i] * share + below[i] * (1 - share));
    };
    const light = color => {
        const [r, g, b] = color.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        const layers = [];
        for (let each = element; each; each = each.parentElement) {
            const color = channels(getComputedStyle(each).backgroundColor);
            layers.push(color);
            if (color.length < 4 || color[3] === 1) break;
        }
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement, words = walker.currentNode.textContent.trim();
        if (!words || !element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
        if (["SCRIPT", "STYLE"].includes(element.tagName)) continue;
        const below = ground(element), text = over(channels(getComputedStyle(element).color), below);
        const [less, more] = [light(text), light(below)].sort((a, b) => a - b);
        const ratio = (more + 0.05) / (less + 0.05);
        if (ratio < 4.5) found.push(`${words.slice(0, 40)}: ${ratio.toFixed(2)}`);
    }
    return found;
}"""
"""Texts of a page whose contrast is below 4.5 to 1, which is what WCAG asks for (AA)."""

NAMELESS = """() => [...document.querySelectorAll("input, textarea, select, button, [role=button], [tabindex='0']")]
    .filter(each => each.checkVisibility() && !each.closest("[aria-hidden=true]"))
    .filter(each => each.type !== "file" && each.type !== "hidden")
    .filter(each => !(each.getAttribute("aria-label") || each.title || each.textContent.trim()
        || [...(each.labels || [])].some(label => label.textContent.trim())
        || document.getElementById(each.getAttribute("aria-labelledby") || "-")))
    .map(each => each.outerHTML.slice(0, 120))"""
"""What can be used on a page and says nothing of what it is."""
