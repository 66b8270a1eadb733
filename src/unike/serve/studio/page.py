"""The page: its tabs, its looks, and its place on the service."""

from __future__ import annotations

import asyncio
import atexit
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from unike.serve.editing import Clerk
from unike.serve.keys import Keys
from unike.serve.sessions import STUDIO, Sessions
from unike.serve.studio import parts, shown
from unike.serve.studio.asking import AskTab
from unike.serve.studio.browsing import EditsTab
from unike.serve.studio.counter import Counter, in_thread
from unike.serve.studio.door import Door, login_routes
from unike.serve.studio.records import CanariesTab, LogTab
from unike.serve.studio.rolling import RollBack
from unike.serve.studio.sent import Sent

CSS = Path(__file__).with_name("studio.css")

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")
"""What the visitor's own machine has; nothing is fetched."""

KEPT = 3600
"""Seconds for which a picture that a visitor sent is kept."""


def mount(app: FastAPI, clerk: Clerk, keys: Keys, sessions: Sessions) -> None:
    """Put the studio on a service, at ``/studio``.

    Args:
        app: The service; its lifespan becomes the studio's too.
        clerk: Who changes its store.
        keys: Of those who may use it.
        sessions: Those who have signed in.
    """
    app.include_router(login_routes(keys, sessions))

    async def put() -> None:
        _put(app, Counter(clerk, uploads()), bool(keys))

    with ThreadPoolExecutor(1) as pool:  # outside of a loop gradio makes loops of its own, and closes none of them
        pool.submit(asyncio.run, put()).result()


def _put(app: FastAPI, counter: Counter, asks_for_keys: bool) -> None:
    """Build the page, and mount it."""
    settings = counter.desk.settings
    blocks = build(counter, asks_for_keys)
    blocks.queue(max_size=settings.max_waiting, default_concurrency_limit=settings.max_waiting, api_open=False)
    gr.mount_gradio_app(
        app,
        blocks,
        STUDIO,
        app_kwargs={"middleware": [Middleware(Door, sent=Sent(blocks, counter.uploads))]},
        allowed_paths=[],
        show_error=False,
        max_file_size=settings.max_picture,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        theme=theme(),
        css_paths=[CSS],
    )
    blocks.has_launched = True  # gradio asks no page that is only mounted whether a file was sent to it
    mounted: Any = app.routes[-1]
    app.state.at_shutdown = [mounted.app.stop_event.set]


@cache
def uploads() -> Path:
    """Where gradio keeps what visitors send: a folder of this process alone, which goes with it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    folder = os.environ["GRADIO_TEMP_DIR"] = mkdtemp(prefix="unike-studio-")
    atexit.register(rmtree, folder, ignore_errors=True)
    return Path(folder).resolve()


def build(counter: Counter, asks_for_keys: bool) -> gr.Blocks:
    """The page."""
    with gr.Blocks(analytics_enabled=False, title="unike studio", delete_cache=(KEPT // 6, KEPT)) as page:
        head = parts.html(elem_id="u-head")
        with gr.Tabs():
            with gr.Tab("Ask & correct"):
                ask = AskTab(counter)
            with gr.Tab("Edits") as edits_tab:
                edits = EditsTab(counter)
            with gr.Tab("Log") as log_tab:
                log = LogTab(counter)
                with gr.Accordion("Roll a set back", open=False):
                    rolling = RollBack(counter)
            with gr.Tab("Canaries") as canaries_tab:
                canaries = CanariesTab(counter)

        async def on_load(request: gr.Request) -> Any:
            served = parts.served(counter, request)
            sets = await in_thread(served.sets)
            chosen = gr.update(choices=sets, value=sets[0])
            return header(counter.name, served.holder.role, asks_for_keys), chosen, chosen

        page.load(on_load, None, [head, ask.set, rolling.set])
        edits_tab.select(
            edits.on_open,
            [edits.text, edits.set, edits.tag, edits.start],
            [edits.cards, edits.start, edits.newer, edits.older, edits.set, edits.tag],
        )
        log_tab.select(log.on_look, [log.set, log.limit], [log.lines, log.set])
        log_tab.select(rolling.on_choices, rolling.set, rolling.opening)
        canaries_tab.select(canaries.on_open, None, canaries.list)
    return page


def header(model: str, role: str, asks_for_keys: bool) -> str:
    """Which model it is, and what the visitor may do."""
    may = "" if role == "admin" else " You may ask and look; edits are changed with an admin's key."
    out = shown.SIGN_OUT if asks_for_keys else ""
    words = "<h1>unike studio</h1><p>Asks and corrects <strong>{model}</strong>.{may}</p>{out}"
    return shown.fill(words, model=model, may=may, out=out)


def theme() -> gr.themes.Base:
    """Looks with enough contrast in the light and in the dark."""
    found = gr.themes.Default(primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)
    muted, muted_dark = "*neutral_600", "*neutral_300"
    return found.set(
        body_text_color_subdued=muted,
        body_text_color_subdued_dark=muted_dark,
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_info_text_color=muted,
        block_info_text_color_dark=muted_dark,
        input_placeholder_color=muted,
        input_placeholder_color_dark=muted_dark,
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        input_border_color="*neutral_500",
        input_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_hover_dark="#991b1b",
        button_cancel_text_color="white",
        button_cancel_text_color_dark="white",
    )
