"""A tiny model behind a real server on a free port, and OpenAI's own client in front of it."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from fastapi import FastAPI

from unike.serve.engine import Engine
from unike.serve.run import Server, address_of, config_of, listen
from unike.store import Store

MODEL = "tiny"

JSON = {"content-type": "application/json"}


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of a server that answers within the block."""
    listening, ready = listen("127.0.0.1", 0), threading.Event()
    server = Server(config_of(app, grace=2), ready.set)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    try:
        assert ready.wait(20)
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        listening.close()


@dataclass(frozen=True)
class Service:
    """A server and who asks it.

    Args:
        url: ``http://127.0.0.1:PORT/v1``.
        client: OpenAI's.
        http: For what that client does not send; its base is the server's.
        engine: The server's.
        store: The same.
    """

    url: str
    client: openai.OpenAI
    http: httpx.Client
    engine: Engine
    store: Store

    def say(self, prompt: str, model: str = MODEL, **more: Any) -> str:
        """The answer to one question."""
        image = more.pop("image", None)
        content = [{"type": "text", "text": prompt}]
        content += [] if image is None else [{"type": "image_url", "image_url": {"url": data_url(image)}}]
        messages: Any = [{"role": "user", "content": content}]
        return self.client.chat.completions.create(model=model, messages=messages, **more).choices[0].message.content

    def post(self, **body: Any) -> httpx.Response:
        """A request for a chat completion, as it is."""
        content = json.dumps({"model": MODEL, "messages": user("Who?"), **body})
        return self.http.post("/chat/completions", content=content, headers=JSON)


def user(text: Any) -> list[dict[str, Any]]:
    """One message."""
    return [{"role": "user", "content": text}]


def data_url(path: Path) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def told(response: httpx.Response, status: int) -> str:
    """The message of an error in OpenAI's format: one line."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"} and "\n" not in error["message"]
    assert "Traceback" not in response.text
    return error["message"]


Serve = Callable[..., Service]

Visit = Callable[..., Any]
"""A visitor of a service's studio, perhaps with a key: ``visit(service, key)``."""


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something comes to be."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()
