"""``unike serve`` as a process: it says where it is, sees what another process changes, and ends when it is told to."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conversing import Serve, told, user

import unike.serve
from unike.edits.edit import Edit
from unike.serve.run import listen
from unike.store import Store

Cli = Callable[..., Any]


KEY = "k" * 20


@pytest.fixture
def process(tiny_folder: Path, home: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """``unike serve`` with a tiny model and keys."""
    (tmp_path / "keys").write_text(KEY)
    words = ["serve", "--model", tiny_folder, "--name", "tiny", "--port", 0, "--editor", "ft", "--json"]
    words += ["--store", tmp_path / "store", "--api-key-file", tmp_path / "keys"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "UNIKE_HOME": str(home)}
    command = [sys.executable, "-m", "unike", *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as started:
        yield started
        if started.poll() is None:
            started.kill()


def address(process: "subprocess.Popen[str]") -> str:
    """Where it says that it is."""
    assert process.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        text += line
    return str(json.loads(text)["url"])


@pytest.mark.slow
def test_two_processes_of_one_store_and_an_end(
    process: "subprocess.Popen[str]", serving: Serve, edits: dict[str, Edit], tmp_path: Path
) -> None:
    url, key = address(process), {"authorization": f"Bearer {KEY}"}
    store = Store.open(tmp_path / "store")
    here = serving(store=store)

    def said() -> str:
        body = {"model": "tiny@default", "messages": user("Who?")}
        found = httpx.post(f"{url}/chat/completions", json=body, headers=key, timeout=30)
        return str(found.json()["choices"][0]["message"]["content"])

    before = said()
    changed = time.monotonic()
    added = here.store.add(edits["a"], author="t")
    assert said() == here.say("Who?", "tiny@default") != before
    assert here.http.delete(f"/edits/{added.id}").status_code == 200
    assert said() == before and time.monotonic() - changed < 4

    assert "a key is needed" in told(httpx.get(f"{url}/models"), 401)
    assert "an admin's key" in told(httpx.delete(f"{url}/edits/x", headers=key), 403)

    body = {"model": "tiny", "messages": user("Who?"), "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=body, headers=key, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert "[DONE]" in "".join(lines)  # what is being written has some seconds left
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in err and "POST /v1/chat/completions 200" in err
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")
    store.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_ends_when_it_is_told_to(cli: Cli, tiny_folder: Path, number: int, code: int) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    said: list[int] = []

    def ask_and_end() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(200):
                try:
                    said.append(client.get("/healthz").status_code)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            body = {"model": str(tiny_folder), "messages": user("a secret")}
            said.append(client.post("/v1/chat/completions", json=body, timeout=30).status_code)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    thread = threading.Thread(target=ask_and_end)
    thread.start()
    try:
        result = cli("serve", "--model", tiny_folder, "--port", port, "--editor", "ft", "--log-prompts", "--no-studio")
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert (result.code, said) == (code, [200, 200])
    assert result.out == f"serving {tiny_folder} at http://127.0.0.1:{port}/v1; stop with Ctrl-C\n"
    assert "prompt='a secret'" in result.err and "Traceback" not in result.err and "healthz" not in result.err


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


def test_replicas_find_a_store_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They have working folders of their own."""
    command = importlib.import_module("unike.cli.serve")
    monkeypatch.chdir(tmp_path)
    assert command.absolute("new/store") == str(tmp_path / "new" / "store")
    assert command.absolute("postgresql://x/y") == "postgresql://x/y" and command.from_anywhere("mini") == "mini"


def test_what_is_missing_is_named(early: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(unike.serve, "run")
    monkeypatch.delitem(sys.modules, "unike.serve.run")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert early("serve").is_error('uvicorn is not installed; bring it with: pip install "unike-edit[serve]"')
