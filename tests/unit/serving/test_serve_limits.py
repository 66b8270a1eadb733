"""Who may come in, and with how much: keys, pictures, sizes, times, and too much at once."""

import base64
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from conversing import MODEL, Serve, Service, data_url, told, user, wait_for
from PIL import Image

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.serve import run
from unike.serve.errors import ApiError
from unike.serve.jobs import Job
from unike.serve.keys import Keys, read_keys
from unike.serve.pictures import Pictures
from unike.store import admission

USER, ADMIN = "u" * 20, "a" * 20


@pytest.fixture(scope="module")
def plain(serving: Serve) -> Service:
    return serving(max_body_mb=2, max_picture_mb=1)


# ---------------------------------------------------------------------- keys


@pytest.fixture(scope="module")
def locked(serving: Serve, tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys").write_text(f"# of users\n{USER}\n\n")
    (folder / "admins").write_text(f"{ADMIN}\n")
    return serving(keys=read_keys(folder / "keys", folder / "admins"), any_host=True)


@pytest.mark.parametrize(
    ("method", "path", "user", "admin"),
    [
        ("GET", "/models", 200, 200),
        ("GET", "/edits", 200, 200),
        ("GET", "/log", 200, 200),
        ("GET", "/../metrics", 200, 200),
        ("POST", "/edits", 403, 400),
        ("DELETE", "/edits/ffff", 403, 404),
        ("POST", "/edits/ffff/restore", 403, 404),
        ("POST", "/sets/x/roll-back", 403, 400),
    ],
)
def test_each_key_opens_what_it_is_for(locked: Service, method: str, path: str, user: int, admin: int) -> None:
    def status(**headers: str) -> int:
        return locked.http.request(method, path, headers=headers).status_code

    assert status() == status(authorization="Bearer wrong") == status(authorization=f"Basic {ADMIN}") == 401
    assert status(authorization=f"Bearer {USER}") == user
    assert status(authorization=f"Bearer {ADMIN}") == admin


def test_the_client_sends_its_key(locked: Service) -> None:
    with pytest.raises(Exception, match="a key is needed") as caught:
        locked.say("Who?")
    assert type(caught.value).__name__ == "AuthenticationError"
    assert locked.client.with_options(api_key=USER).models.list().data[0].id == MODEL
    assert httpx.get(locked.url.replace("/v1", "/healthz")).status_code == 200


def test_without_keys_only_this_machine_is_served() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        run.check_host(host, Keys(), no_auth=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(UnikeError, match="without keys, whoever reaches"):
            run.check_host(host, Keys(), no_auth=False)
        run.check_host(host, Keys(), no_auth=True)
        run.check_host(host, Keys((b"x",)), no_auth=False)


def test_without_keys_pages_of_other_sites_may_not_ask(plain: Service, locked: Service) -> None:
    own = plain.url.removeprefix("http://").removesuffix("/v1")
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}, {"host": ""}):
        assert "without keys" in told(plain.http.get("/models", headers=headers), 403)
    assert plain.http.get("/models", headers={"origin": f"http://{own}"}).status_code == 200
    key = {"authorization": f"Bearer {USER}"}
    assert locked.http.get("/models", headers={"host": "served.example", **key}).status_code == 200


def test_the_log_has_a_line_for_each_request_and_no_prompt(plain: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="unike.serve"):
        plain.say("a secret question")
        plain.http.get("/x%0Ainjected")

        def lines() -> list[str]:  # a request of before may be written down only now, for that comes after its answer
            return [line for line in caplog.messages if not line.startswith("GET /v1/models ")]

        assert wait_for(lambda: len(lines()) >= 2)
    first, second = lines()
    assert first.startswith("POST /v1/chat/completions 200 ") and "edits=none rows=1 tokens=" in first
    assert "secret" not in caplog.text and second.startswith("GET /v1/x") and "\n" not in second


# ---------------------------------------------------------------------- pictures


def shown(service: Service, url: str) -> httpx.Response:
    return service.post(
        messages=user([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}])
    )


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_pictures_of_every_kind_are_read(
    plain: Service, model: Backbone, pictures: list[Path], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"picture.{kind}"
    Image.open(pictures[0]).save(path)
    url = f"data:image/{kind};base64," + base64.b64encode(path.read_bytes()).decode()
    answer = shown(plain, url).json()["choices"][0]["message"]["content"]
    assert answer == model.ask(path, "?")


def png(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says that it is so large."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_bad_pictures_are_refused_in_a_line(plain: Service, pictures: list[Path]) -> None:
    large = BytesIO()
    Image.new("L", (9000, 8000)).save(large, "PNG")
    for url, status, says in (
        ("https://example.org/a.png", 400, "is not fetched; send it along as a data URL"),
        ("http://169.254.169.254/latest", 400, "is not fetched"),
        ("ftp://x/y", 400, "is not fetched"),
        ("/etc/passwd", 400, "is not fetched"),
        ("file:///etc/passwd", 400, "is in no folder that this server may read"),
        ("data:image/png;base64,!!!", 400, "is not base64"),
        ("data:image/png;base64,AAA", 400, "is not base64"),
        ("data:image/png,AAAA", 400, "give data:TYPE;base64"),
        ("data:text/html;base64,AAAA", 400, "give data:TYPE;base64"),
        ("data:image/svg+xml;base64,AAAA", 400, "give data:TYPE;base64"),
        (encoded(b""), 400, "not an image"),
        (encoded(b"%!PS-Adobe-3.0 EPSF-3.0"), 400, "not an image"),
        (encoded(pictures[0].read_bytes()[:200]), 400, "broken image: the picture of the request"),
        (encoded(png(100_000, 100_000)), 400, "image too large"),
        (encoded(large.getvalue()), 400, "image too large"),
        (encoded(png(1, 60_000_000)), 400, "image too long: the picture of the request has 1 x 60000000 pixels"),
        (encoded(b"\0" * (1 << 20) + b"\0"), 413, "a picture has at most 1,048,576 bytes here"),
    ):
        message = told(shown(plain, url), status)
        assert says in message and "/tmp" not in message, (url[:40], message)
    assert says_of_two(plain, pictures) == "2 pictures were given; a conversation is about one, or none"


def test_what_the_model_dislikes_of_a_picture_is_told_without_its_file(
    plain: Service, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(path: Path) -> None:
        raise UnikeError(f"image of a size that tiny cannot read: {path} has 1 x 1 pixels")

    monkeypatch.setattr(type(plain.engine.backbone), "check_image", lambda self, path: check(path))
    monkeypatch.setattr(admission, "admit_all", lambda store, model, editor, facts, **terms: check(facts[0].image))
    edit = {"prompt": "What is this?", "target": "a dog", "image": data_url(pictures[0])}
    for answer in (shown(plain, data_url(pictures[0])), plain.http.post("/edits", json=edit)):
        assert "cannot read: the picture of the request has 1 x 1 pixels" in told(answer, 400)


def test_an_edits_question_has_an_end(plain: Service) -> None:
    """All others wait while an edit is made, for minutes if it is about a book."""
    said = told(plain.http.post("/edits", json={"prompt": "x" * 2001, "target": "y"}), 400)
    assert said == "the prompt has more than 2,000 characters; shorten it"


def says_of_two(service: Service, pictures: list[Path]) -> str:
    urls = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in pictures[:2]]
    return told(service.post(messages=user([*urls, {"type": "text", "text": "?"}])), 400)


@pytest.fixture
def kept(tmp_path: Path, pictures: list[Path]) -> Iterator[Pictures]:
    allowed = tmp_path / "allowed"
    (allowed / "below").mkdir(parents=True)
    (allowed / "below" / "a b.png").write_bytes(pictures[0].read_bytes())
    (tmp_path / "outside.png").write_bytes(pictures[1].read_bytes())
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed-not" / "a.png").write_bytes(pictures[1].read_bytes())
    (allowed / "link.png").symlink_to(tmp_path / "outside.png")
    (allowed / "up").symlink_to(tmp_path)
    (allowed / "within.png").symlink_to(allowed / "below" / "a b.png")
    found = Pictures(1 << 20, [allowed])
    yield found
    found.close()


@pytest.mark.parametrize("path", ["below/a%20b.png", "below/../below/a b.png", "within.png"])
def test_pictures_in_an_allowed_folder_may_be_named(
    kept: Pictures, tmp_path: Path, pictures: list[Path], path: str
) -> None:
    for host in ("", "localhost"):
        found = kept.keep(f"file://{host}{tmp_path}/allowed/{path}")
        assert found.read_bytes() == pictures[0].read_bytes()
        kept.drop(found)
        assert not found.exists() and not found.parent.exists()


@pytest.mark.parametrize(
    "path",
    [
        "allowed/../outside.png", "allowed/%2e%2e/outside.png", "allowed/link.png", "allowed/up/outside.png",
        "allowed-not/a.png", "outside.png", "allowed/missing.png", "allowed/below", "allowed/a%00b.png",
        "allowed/%ff.png", "allowed", "",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_it(kept: Pictures, tmp_path: Path, path: str) -> None:
    with pytest.raises(ApiError, match="is in no folder that this server may read"):
        kept.keep(f"file://{tmp_path}/{path}")


@pytest.mark.parametrize("url", ["file:relative.png", "file://evil.example/etc/passwd", "file:", "file://[x"])
def test_odd_file_urls_are_refused(kept: Pictures, url: str) -> None:
    with pytest.raises(ApiError, match="is in no folder that this server may read"):
        kept.keep(url)


def test_pictures_of_answered_requests_are_gone(
    plain: Service, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    usual = Pictures.keep

    def keep(self: Pictures, url: str) -> Path:
        seen.append(usual(self, url))
        return seen[-1]

    monkeypatch.setattr(Pictures, "keep", keep)
    assert shown(plain, data_url(pictures[0])).status_code == 200
    assert shown(plain, data_url(pictures[1])).status_code == 200
    too_long = [
        {"type": "image_url", "image_url": {"url": data_url(pictures[0])}},
        {"type": "text", "text": "x " * 2000},
    ]
    assert plain.post(messages=user(too_long)).status_code == 400
    assert len(seen) == 3 and wait_for(lambda: not any(path.exists() for path in seen))


# ---------------------------------------------------------------------- sizes and times


def test_a_huge_body_is_refused_before_it_is_read(plain: Service) -> None:
    assert "at most 2,097,152 bytes" in told(plain.post(messages=user("x" * (3 << 20))), 413)

    def pieces() -> Iterator[bytes]:
        for _ in range(4):
            yield b" " * (1 << 20)

    assert "at most 2,097,152 bytes" in told(plain.http.post("/chat/completions", content=pieces()), 413)


def test_a_body_that_never_comes_is_not_waited_for(serving: Serve) -> None:
    service = serving(timeout=0.3)
    host, port = service.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: 100\r\n\r\n{{".encode()
        )
        said = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert said.startswith("HTTP/1.1 408") and "took too long to arrive" in said


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token takes a hundredth of a second at least."""
    usual = Job.is_unwanted
    monkeypatch.setattr(Job, "is_unwanted", lambda self: (time.sleep(0.01), usual(self))[1])


def test_an_answer_that_takes_too_long_is_not_waited_for(serving: Serve, slow: None) -> None:
    service = serving(timeout=0.5)
    assert "not there in time" in told(service.post(max_tokens=400), 504)
    stream = service.post(max_tokens=400, stream=True)
    assert stream.status_code == 200 and "not there in time" in stream.text and "[DONE]" not in stream.text
    assert service.post(max_tokens=1).status_code == 200


def test_a_client_that_leaves_is_not_written_for(serving: Serve, slow: None) -> None:
    service = serving()
    ended: list[float] = []
    usual = service.engine.on_batch
    service.engine.on_batch = lambda rows, sets, seconds: (ended.append(seconds), usual(rows, sets, seconds))[1]
    body = {"model": MODEL, "messages": user("Who?"), "max_tokens": 400}
    with pytest.raises(httpx.ReadTimeout):
        service.http.post("/chat/completions", json=body, timeout=0.3)
    assert wait_for(lambda: len(ended) == 1)
    with service.http.stream("POST", "/chat/completions", json=body | {"stream": True}) as response:
        next(response.iter_lines())
    assert wait_for(lambda: len(ended) == 2) and max(ended) < 3.0, "400 tokens would have taken longer"


def test_too_much_at_once_is_told_to_come_again(serving: Serve) -> None:
    service = serving(engine={"max_waiting": 2})
    held, go = threading.Event(), threading.Event()
    service.engine.between(lambda: (held.set(), go.wait(20)))
    assert held.wait(10)
    results: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: results.append(service.post())) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert wait_for(lambda: service.engine.n_waiting == 2)
    refused = service.post()
    go.set()
    for thread in threads:
        thread.join()
    assert "2 answers wait to be written; try again later" in told(refused, 429)
    assert refused.headers["retry-after"] == "1"
    assert [each.status_code for each in results] == [200, 200]


def test_more_open_requests_than_allowed_are_refused(serving: Serve) -> None:
    service = serving(max_open=1)
    held, go = threading.Event(), threading.Event()
    service.engine.between(lambda: (held.set(), go.wait(20)))
    assert held.wait(10)
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(service.post()))
    thread.start()
    assert wait_for(lambda: service.engine.n_waiting == 1)
    refused = service.http.get("/models")
    go.set()
    thread.join()
    assert "1 requests are open; try again later" in told(refused, 429) and result[0].status_code == 200


def test_a_bug_is_told_without_its_traceback(
    plain: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plain.store, "sets", lambda: {}["secret"])
    message = told(plain.http.get("/models"), 500)
    assert message == "something went wrong in the server; its log says what"
    assert "KeyError: 'secret'" in caplog.text
