"""The door before several replicas, with replicas that end when they are told to."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conversing import JSON, MODEL, running, told, user, wait_for

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.errors import UnikeError
from unike.edits.edit import Edit
from unike.serve.app import create_app
from unike.serve.door import Door, joined, replayed
from unike.serve.engine import Engine
from unike.serve.guard import Guard
from unike.serve.keys import Keys
from unike.serve.metrics import Meter
from unike.serve.replicas import Replica, check_store, reason_of, resources
from unike.serve.settings import Settings
from unike.store import Store

KEY, ADMIN = "k" * 20, "a" * 20


class Ended(Exception):
    """A replica did."""


class Replicas:
    """The service as replicas: each of the next requests is ended behind as many messages as `ends` says.

    Args:
        app: What answers, if nothing ends it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.ends: list[int] = []
        self.asked: list[str] = []
        self.cancelled = 0

    def ask(self, scope: Any, body: bytes) -> Any:
        self.asked.append(f"{scope['method']} {scope['path']}")
        return Pieces(self, self.ends.pop(0) if self.ends else None, replayed(self.app, dict(scope), body))

    async def everyone(self) -> dict[str, bytes]:
        return {"one": Meter().text(), "two": Meter().text()}


class Pieces:
    """What a replica says, until it ends."""

    def __init__(self, of: Replicas, end: int | None, pieces: Any) -> None:
        self.of, self.left, self.pieces = of, end, pieces

    async def __anext__(self) -> Any:
        if self.left == 0:
            await self.pieces.aclose()
            raise Ended
        if self.left is not None:
            self.left -= 1
        return await self.pieces.__anext__()

    def cancel(self) -> None:
        self.of.cancelled += 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, edits: dict[str, Edit]) -> Iterator[Store]:
    store = Store.open(tmp_path_factory.mktemp("store") / "s")
    store.add(edits["a"], author="t")
    yield store
    store.close()


@pytest.fixture
def behind(model: Backbone, store: Store) -> Iterator[tuple[Replicas, httpx.Client]]:
    """Replicas, and who asks at the door."""
    settings = Settings(name=MODEL, any_host=True, timeout=20)
    keys = Keys()
    engine = Engine(model)
    engine.start()
    method = registry.editors.get("ft")(lr=3e-2, steps=3)
    replicas = Replicas(create_app(engine, store, settings, editor=method, keys=keys))
    door = Door(replicas.ask, replicas.everyone, (Ended,), settings, meter := Meter())
    with (
        running(Guard(door, keys=keys, settings=settings, meter=meter)) as url,  # type: ignore[arg-type]
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield replicas, client
    engine.close()


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/chat/completions", json={"model": MODEL, "messages": user("Who?"), **body})


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("ends", [[0], [1], [0, 1]], ids=["at once", "behind the head", "two of them"])
def test_a_completion_is_asked_again(behind: tuple[Replicas, httpx.Client], ends: list[int]) -> None:
    replicas, client = behind
    before, under = ask(client), ask(client, model=f"{MODEL}@default")
    replicas.asked.clear()
    replicas.ends += ends
    again = ask(client, model=f"{MODEL}@default")
    assert said(again) == said(under) != said(before)
    assert again.headers["x-unike-edits"] == "default:1"
    assert replicas.asked == ["POST /v1/chat/completions"] * (len(ends) + 1)


def test_what_ends_three_replicas_ends_no_more(behind: tuple[Replicas, httpx.Client]) -> None:
    replicas, client = behind
    replicas.ends += [0] * 5
    assert told(ask(client), 503) == "3 replicas ended while they answered this"
    assert len(replicas.asked) == 3 and len(replicas.ends) == 2


def test_readings_are_asked_again_and_changes_are_not(behind: tuple[Replicas, httpx.Client], store: Store) -> None:
    replicas, client = behind
    replicas.ends += [0]
    assert client.get("/sets").status_code == 200 and len(replicas.asked) == 2
    version, edit = store.version("default"), store.members("default", store.version("default"))[0]
    for method, path, body in (
        ("DELETE", f"/edits/{edit.id}", None),
        ("POST", f"/edits/{edit.id}/restore", {}),
        ("POST", "/edits", {"prompt": "Who?", "target": "me"}),
    ):
        replicas.asked.clear()
        replicas.ends += [0]
        answer = client.request(method, path, json=body)
        assert "before it said whether the change was made; see GET /v1/log" in told(answer, 503)
        assert len(replicas.asked) == 1
    assert store.version("default") == version


def test_a_stream_that_has_begun_is_broken_off_with_an_error(behind: tuple[Replicas, httpx.Client]) -> None:
    replicas, client = behind
    whole = ask(client, stream=True).text
    assert whole.endswith("data: [DONE]\n\n")
    replicas.asked.clear()
    replicas.ends += [1]  # it has not begun: another writes it
    assert ask(client, stream=True).text.count("data: ") == whole.count("data: ")
    replicas.ends += [3]
    events = ask(client, stream=True).text.split("\n\n")
    assert len(replicas.asked) == 3
    assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == (
        "the replica that wrote this ended; ask again"
    )
    replicas.ends += [3]
    with (
        openai.OpenAI(base_url=str(client.base_url), api_key="none", max_retries=0) as theirs,
        pytest.raises(openai.APIError, match="the replica that wrote this ended"),
    ):
        list(theirs.chat.completions.create(model=MODEL, messages=user("Who?"), stream=True))


def test_who_leaves_is_written_for_no_more(behind: tuple[Replicas, httpx.Client]) -> None:
    replicas, client = behind
    ended = threading.Event()

    async def forever(scope: Any, receive: Callable[[], Any], send: Any) -> None:
        assert (await receive())["body"] == b"{}"
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    replicas.app = forever
    with pytest.raises(httpx.ReadTimeout):
        client.post("/chat/completions", content=b"{}", headers=JSON, timeout=0.5)
    assert wait_for(lambda: replicas.cancelled == 1, 5) and len(replicas.asked) == 1
    assert ended.wait(5)


def test_metrics_are_those_of_all(behind: tuple[Replicas, httpx.Client]) -> None:
    _, client = behind
    said(ask(client))
    assert client.get("/nothing").status_code == 404
    address = str(client.base_url.join("/metrics"))
    counted = [
        'unike_requests_total{replica="door",route="/v1/chat/completions",status="200"} 1.0',
        'unike_requests_total{replica="door",route="other",status="404"} 1.0',
    ]
    assert wait_for(lambda: all(line in client.get(address).text for line in counted), 5)
    text = client.get(address).text
    assert 'unike_answers_waiting{replica="two"} 0.0' in text and text.count("# TYPE unike_answers_waiting") == 1


def test_joined_metrics_are_those_that_went_in() -> None:
    meters = {"a": Meter(), "b": Meter()}
    meters["b"].tokens.labels("read").inc(3)
    text = joined({name: meter.text() for name, meter in meters.items()}).decode()
    assert 'unike_tokens_total{kind="read",replica="b"} 3.0' in text
    assert 'unike_batch_rows_bucket{le="+Inf",replica="a"} 0.0' in text
    assert "# TYPE unike_batch_rows histogram" in text


def test_keys_are_asked_for_at_the_door(tmp_path: Path) -> None:
    from unike.serve.keys import read_keys

    (tmp_path / "keys").write_text(KEY)
    keys, settings = read_keys(tmp_path / "keys", environment=False), Settings(name=MODEL)
    replicas = Replicas(None)
    meter = Meter()
    door = Door(replicas.ask, replicas.everyone, (Ended,), settings, meter)
    with running(Guard(door, keys=keys, settings=settings, meter=meter)) as url:  # type: ignore[arg-type]
        assert "a key is needed" in told(httpx.post(f"{url}/chat/completions", json={}), 401)
        assert "a key is needed" in told(httpx.get(url.removesuffix("/v1") + "/metrics"), 401)
    assert replicas.asked == []


def test_a_replica_whose_engine_has_ended_is_not_well(model: Backbone, store: Store) -> None:
    engine = Engine(model)
    editor = registry.editors.get("ft")(lr=3e-2, steps=3)
    replica = Replica.__new__(Replica)
    replica.app = create_app(engine, store, Settings(name=MODEL), editor=editor)
    engine.start()
    asyncio.run(replica.check_health())
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is not running"):
        asyncio.run(replica.check_health())


# ---------------------------------------------------------------------- where replicas may run


def test_what_replicas_take() -> None:
    assert resources({"CPU": 2}, 2, "auto") == {"num_cpus": 1}
    assert resources({"CPU": 2, "GPU": 4}, 4, "auto") == {"num_gpus": 1, "num_cpus": 0}
    assert resources({"CPU": 2, "GPU": 4}, 2, "cpu") == {"num_cpus": 1}
    with pytest.raises(UnikeError, match=r"3 replicas need 3 CPUs, the Ray cluster has 2; give fewer --replicas"):
        resources({"CPU": 2}, 3, "cpu")
    with pytest.raises(UnikeError, match="1 replicas need 1 GPUs, the Ray cluster has 0"):
        resources({"CPU": 2}, 1, "cuda:0")


def test_a_folder_is_for_one_machine() -> None:
    check_store("store", 1)
    check_store("postgresql://host/name", 3)
    with pytest.raises(UnikeError, match="a folder of this machine, and the Ray cluster has 2 machines"):
        check_store("store", 2)


def test_why_a_replica_did_not_start_is_one_line() -> None:
    failure = "failed: The deployment failed\n  File x\nunike.core.errors.UnikeError: there is no model here\n"
    assert reason_of(failure) == "there is no model here"
    assert reason_of("failed:\n  File x\nMemoryError: much\n") == "a replica did not start: MemoryError: much"
