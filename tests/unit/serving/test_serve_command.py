"""``unike serve`` as a process: it says where it is, sees what another process changes, and ends when it is told to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conversing import told, user
from tinies import tiny_backbone

import unike.serve
from unike.core import registry
from unike.data.queries import Query
from unike.serve.run import listen
from unike.store import Store

Cli = Callable[..., Any]


KEY = "k" * 20


@pytest.fixture
def start(tiny_folder: Path, home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``unike serve`` with a tiny model."""
    started: list[subprocess.Popen[str]] = []

    def begin(*args: object) -> subprocess.Popen[str]:
        words = ["serve", "--model", tiny_folder, "--name", "tiny", "--port", 0, "--editor", "ft", "--json", *args]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "UNIKE_HOME": str(home)}
        command = [sys.executable, "-m", "unike", *map(str, words)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def address(process: "subprocess.Popen[str]") -> str:
    """Where it says that it is."""
    assert process.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        text += line
    return str(json.loads(text)["url"])


def test_two_servers_of_one_store_and_their_ends(start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    one = start("--store", tmp_path / "store")
    other = start("--store", tmp_path / "store", "--api-key-file", tmp_path / "keys")
    url, other_url, key = address(one), address(other), {"authorization": f"Bearer {KEY}"}

    def said(at: str) -> str:
        body = {"model": "tiny@default", "messages": user("Who?")}
        found = httpx.post(f"{at}/chat/completions", json=body, headers=key, timeout=30)
        return str(found.json()["choices"][0]["message"]["content"])

    before = said(url)
    model = tiny_backbone("llava")
    edit = registry.editors.get("ft")(lr=3e-2, steps=3).edit(model, Query("What is this?", None, "zebra zebra"))
    store = Store.open(tmp_path / "store")
    added = store.add(edit, author="t")
    store.close()
    changed = time.monotonic()
    assert said(url) == said(other_url) != before
    assert httpx.delete(f"{url}/edits/{added.id}").status_code == 200
    assert said(other_url) == before and time.monotonic() - changed < 2

    assert "a key is needed" in told(httpx.get(f"{other_url}/models"), 401)
    assert "an admin's key" in told(httpx.delete(f"{other_url}/edits/x", headers=key), 403)

    code, err = end(one, signal.SIGINT)
    assert code == 130 and "Traceback" not in err and "POST /v1/chat/completions 200" in err
    body = {"model": "tiny", "messages": user("Who?"), "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{other_url}/chat/completions", json=body, headers=key, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        other.send_signal(signal.SIGTERM)
        assert "[DONE]" in "".join(lines)  # what is being written has some seconds left
    _, err = other.communicate(timeout=20)
    assert other.returncode == 0 and "Traceback" not in err
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def end(process: "subprocess.Popen[str]", number: int) -> tuple[int, str]:
    """The exit code, and what it wrote to stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    return process.returncode, err


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--host", "0.0.0.0"], ["without keys, whoever reaches 0.0.0.0", "--no-auth"]),
        (["--host", "no.such.host.example", "--no-auth"], ["cannot listen on no.such.host.example:8000"]),
        (["--api-key-file", "missing"], ["cannot read the keys in missing"]),
        (["--allow-images", "missing"], ["missing is no folder; --allow-images names one with pictures"]),
        (["--max-new-tokens", "2000"], ["--max-new-tokens 2000 is more than --most-tokens 1024"]),
        (["--editor", "nothing"], ["unknown editor 'nothing'"]),
        (["--set", "nothing=1"], ["unknown setting 'nothing'"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_loaded(early: Cli, args: list[str], parts: list[str]) -> None:
    assert early("serve", *args).is_error(*parts)


def test_a_port_that_is_taken_is_told(early: Cli) -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert early("serve", "--port", port).is_error(
            f"cannot listen on 127.0.0.1:{port}: another program listens there"
        )


def test_a_store_that_is_none_is_told(early: Cli, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").touch()
    assert early("serve", "--port", 0, "--store", tmp_path / "x").is_error("exists and is no store")


def test_what_is_missing_is_named(early: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(unike.serve, "run")
    monkeypatch.delitem(sys.modules, "unike.serve.run")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert early("serve").is_error('uvicorn is not installed; bring it with: pip install "unike[serve]"')
