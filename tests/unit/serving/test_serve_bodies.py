"""What is sent by those who mean no good, or do not wait: heads and bodies that are too large, and broken off."""

import json
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from conversing import JSON, Serve, Service, told, wait_for

from unike.serve.bodies import MOST_PARTS
from unike.serve.keys import read_keys

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def service(serving: Serve) -> Service:
    return serving(max_body_mb=2)


def connected(service: Service) -> socket.socket:
    host, port = service.url.removeprefix("http://").removesuffix("/v1").split(":")
    return socket.create_connection((host, int(port)), 10)


def test_a_head_without_end_is_not_kept(service: Service) -> None:
    sent, said = 0, b""
    with connected(service) as connection, suppress(OSError):  # it is closed while this is sent
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-long: ")
        while sent < 20 * MEGABYTE:
            connection.sendall(b"a" * MEGABYTE)
            sent += MEGABYTE
        said = connection.recv(4096)
    assert sent < 20 * MEGABYTE or said.startswith(b"HTTP/1.1 400")
    assert service.http.get("/models", headers={"x-long": "a" * 30_000}).status_code == 200


def test_json_of_too_many_values_is_refused_unread(service: Service) -> None:
    values = [[]] * (MOST_PARTS // 2)
    body = json.dumps({"messages": [{"role": "user", "content": "?"}], "model": "tiny", "metadata": values})
    for path in ("/chat/completions", "/edits"):
        answer = service.http.post(path, content=body, headers=JSON)
        assert "the body has more than 100,000 brackets and commas" in told(answer, 400)
    short = json.dumps({"messages": [{"role": "user", "content": "?" + "," * 10_000}], "metadata": [[]] * 1000})
    assert "model: Field required" in told(service.http.post("/chat/completions", content=short, headers=JSON), 400)


@pytest.mark.parametrize("path", ["/edits/ffff/restore", "/sets/default/roll-back"])
def test_a_change_is_said_in_few_words(service: Service, path: str) -> None:
    answer = service.http.post(path, json={"reason": "x" * 200_000})
    assert "a request has at most 131,072 bytes here" in told(answer, 413)
    assert "at most 4096 characters" in told(
        service.http.post(path, json={"reason": "\u2013" * 5000, "version": 0}), 400
    )


def test_a_key_is_no_novel(serving: Serve, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    key = "k" * 20
    (tmp_path / "keys").write_text(f"{key}\n")
    service = serving(studio=True, keys=read_keys(tmp_path / "keys", None), any_host=True)
    login = service.url.replace("/v1", "/studio/login")
    form = {"content-type": "application/x-www-form-urlencoded"}

    def status(content: str) -> int:
        return service.http.post(login, content=content, headers=form).status_code

    assert status("a=b&" * 100_000) == 413 and status("key=" + "%41" * 2000) == 413
    assert status("a=b&" * 100 + f"key={key}") == 401 and status(f"key={key}") == 303


def test_a_client_that_sends_all_before_it_reads_is_told(service: Service) -> None:
    request = urllib.request.Request(f"{service.url}/chat/completions", b"x" * 6 * MEGABYTE, JSON)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 413
    assert json.load(refused.value)["error"]["message"] == "a request has at most 2,097,152 bytes here"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/edits", "/v1/sets/default/roll-back"])
def test_a_client_that_leaves_while_it_sends_is_one_line(
    service: Service, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    with caplog.at_level("INFO", logger="unike.serve"):
        with connected(service) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{".encode())
        assert wait_for(lambda: any(f"POST {path} 499 " in line for line in caplog.messages)), caplog.messages
    assert len(caplog.messages) == 1 and not any(record.exc_info for record in caplog.records)
    counted = service.http.get(service.url.replace("/v1", "/metrics")).text
    assert 'status="499"' in counted
