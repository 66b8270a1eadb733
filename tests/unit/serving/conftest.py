"""A tiny model, edits of it, and servers to ask."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conversing import MODEL, Serve, Service, Visit, running
from studio import Visitor
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.serve.app import create_app
from unike.serve.engine import Engine
from unike.serve.keys import Keys
from unike.serve.settings import Settings
from unike.store import Store


@pytest.fixture(scope="module")
def model() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture(scope="module")
def edits(model: Backbone, pictures: list[Path]) -> dict[str, Edit]:
    """Each changes every answer, to something of its own."""
    editor = registry.editors.get("ft")(lr=3e-2, steps=3)
    facts = {"a": "zebra zebra", "b": "12345", "c": "QQQQ"}
    return {
        name: editor.edit(model, Query(f"What is this, {name}?", pictures[0], target)) for name, target in facts.items()
    }


@pytest.fixture(scope="module")
def serving(model: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start a server: ``serving(store=..., keys=..., engine={...}, max_prompt=...)``."""
    with ExitStack() as stack:

        def start(
            store: Store | None = None,
            keys: Keys | None = None,
            engine: dict[str, Any] | None = None,
            studio: bool = False,
            **settings: Any,
        ) -> Service:
            kept = store or Store.open(tmp_path_factory.mktemp("store") / "s")
            if store is None:
                stack.callback(kept.close)
            runs = Engine(model, **(engine or {}))
            method = registry.editors.get("ft")(lr=3e-2, steps=12 if studio else 3)
            given = Settings(**{"name": MODEL, **settings})
            app = create_app(runs, kept, given, editor=method, keys=keys, studio=studio)
            url = stack.enter_context(running(app))
            client = stack.enter_context(openai.OpenAI(base_url=url, api_key="none", max_retries=0))
            return Service(url, client, stack.enter_context(httpx.Client(base_url=url, timeout=30)), runs, kept)

        yield start


@pytest.fixture
def visit() -> Iterator[Visit]:
    """Visitors of a service's studio, perhaps with a key."""
    with ExitStack() as stack:

        def come(service: Service, key: str = "") -> Visitor:
            found = Visitor(service.url)
            stack.enter_context(found.http)
            if key:
                answer = found.http.post("/login", data={"key": key})
                assert (answer.status_code, answer.headers["location"]) == (303, "/studio/")
            return found

        yield come
