"""``unike serve --replicas 2`` on a local Ray: one replica is killed while many ask, and every one is answered."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from conversing import MODEL, user, wait_for

from unike.edits.edit import Edit
from unike.store import Store

ASKED, AT_ONCE = 80, 8


@pytest.fixture
def started(
    tiny_folder: Path, home: Path, tmp_path: Path, edits: dict[str, Edit]
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process, and its address."""
    pytest.importorskip("ray.serve")
    with closing(Store.open(tmp_path / "store")) as store:
        store.add(edits["a"], author="t")
    words = ["serve", "--model", tiny_folder, "--name", MODEL, "--port", 0, "--editor", "ft", "--json"]
    words += ["--store", tmp_path / "store", "--replicas", 2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "UNIKE_HOME": str(home)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "unike", *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            text = ""
            while not text.rstrip().endswith("}"):
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                text += line
            yield process, json.loads(text)["url"]
        finally:
            if process.poll() is None:
                process.kill()


def replicas_of(process: "subprocess.Popen[str]") -> list[int]:
    """Process ids of its replicas: of no other's."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(re.findall(r"PPid:\s+(\d+)", (folder / "status").read_text())[0])
            if (folder / "cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue

    def descends(pid: int) -> bool:
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return [pid for pid in found if descends(pid)]


@pytest.mark.service
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_no_request_is_lost_with_a_replica(started: tuple["subprocess.Popen[str]", str]) -> None:
    process, url = started
    models = [MODEL, f"{MODEL}@default"]

    def ask(number: int) -> tuple[int, str]:
        body = {"model": models[number % 2], "messages": user("Who?"), "max_tokens": 60}
        response = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
        assert response.status_code == 200, response.text
        return number % 2, response.json()["choices"][0]["message"]["content"]

    expected = [ask(0), ask(1)]
    assert expected[0][1] != expected[1][1]
    victims = replicas_of(process)
    assert len(victims) == 2
    begun = threading.Semaphore(0)

    def counted(number: int) -> tuple[int, str]:
        begun.release()
        return ask(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [pool.submit(counted, number) for number in range(ASKED)]
        for _ in range(ASKED // 4):
            begun.acquire(timeout=30)
        os.kill(victims[0], signal.SIGKILL)
        said = [answer.result(60) for answer in answers]
    assert said == [expected[number % 2] for number in range(ASKED)]
    assert wait_for(lambda: len(set(replicas_of(process)) - {victims[0]}) == 2, 40)

    edit = httpx.get(f"{url}/edits", params={"set": "default"}).json()
    assert httpx.delete(f"{url}/edits/{edit['data'][0]['id']}").status_code == 200  # by one, and both know it
    assert {ask(1)[1] for _ in range(6)} == {expected[0][1]}

    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert " lost=1" in err  # some were asked again: else the kill came to nothing


@pytest.mark.service
def test_why_replicas_do_not_start_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    words = ["serve", "--model", tmp_path / "nothing", "--port", 0, "--replicas", 2, "--store", tmp_path / "store"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "unike", *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=80)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: no folder '{tmp_path / 'nothing'}'") and ended.stderr.count("\n") == 1


def test_ray_is_named_if_it_is_missing(early: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = early("serve", "--port", 0, "--replicas", 2)
    assert result.is_error('ray is not installed; bring it with: pip install "unike-edit[ray]"')
