"""A folder is there, whole, whatever happens to those that write it; and nothing of them is left."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unike.core import folders, scratch
from unike.core.errors import UnikeError
from unike.core.files import SealedFolder, replace_file
from unike.core.folders import replace_folder, settle

SEALED = SealedFolder("thing", "thing.json", "thing.bin", version=1, keys=frozenset({"n"}))

WRITER = """
import sys
from pathlib import Path
from unike.core import folders
from unike.core.files import SealedFolder
from unike.core.folders import replace_folder

if sys.argv[2] == "two":
    folders.exchange = lambda one, other: False
sealed = SealedFolder("thing", "thing.json", "thing.bin", version=1, keys=frozenset({"n"}))
n = 0
print("ready", flush=True)
while True:
    n += 1
    replace_folder(Path(sys.argv[1]), sealed.files({"n": n}, bytes([n % 256]) * 4096), known_by="thing.json")
"""


def write(folder: Path, n: int) -> None:
    replace_folder(folder, SEALED.files({"n": n}, bytes([n % 256]) * 4096), known_by="thing.json")


@pytest.fixture(params=["one", "two"], ids=["one step", "two renames"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the system can exchange two folders."""
    if request.param == "two":
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    return str(request.param)


def start_writer(folder: Path, steps: str) -> "subprocess.Popen[str]":
    writer = subprocess.Popen([sys.executable, "-c", WRITER, folder, steps], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    return writer


def kill_and_read(folder: Path, steps: str, times: int) -> None:
    draw = random.Random(times)
    write(folder, 0)
    for _ in range(times):
        writer = start_writer(folder, steps)
        time.sleep(draw.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        described, content = SEALED.read(folder)
        assert content == bytes([described["n"] % 256]) * 4096
    write(folder, 0)
    assert list(folder.parent.iterdir()) == [folder], "what killed writers left is swept"


def test_a_writer_that_is_killed(tmp_path: Path, steps: str) -> None:
    kill_and_read(tmp_path / "thing", steps, 15)


@pytest.mark.slow
def test_many_writers_that_are_killed(tmp_path: Path, steps: str) -> None:
    kill_and_read(tmp_path / "thing", steps, 200)


def test_a_writer_that_was_killed_between_two_renames(tmp_path: Path) -> None:
    write(tmp_path / "thing", 1)
    hidden = scratch.new_name(tmp_path / "thing")
    (hidden / "new").mkdir(parents=True)
    (tmp_path / "thing").rename(hidden / "old")
    assert SEALED.lies_in(tmp_path / "thing")
    assert SEALED.read(tmp_path / "thing")[0]["n"] == 1
    write(tmp_path / "thing", 2)
    assert list(tmp_path.iterdir()) == [tmp_path / "thing"]


def test_readers_beside_writers(tmp_path: Path, steps: str) -> None:
    folder = tmp_path / "thing"
    write(folder, 0)
    writers = [start_writer(folder, steps) for _ in range(2)]
    try:
        seen = set()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            described, content = SEALED.read(folder)
            assert content == bytes([described["n"] % 256]) * 4096
            assert SEALED.describe(folder)["n"] >= 0
            seen.add(described["n"])
        assert len(seen) > 10
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_a_writer_that_lives_is_not_swept(tmp_path: Path, steps: str) -> None:
    with folders.new_folder(tmp_path / "thing", known_by="thing.json") as new:
        (new / "thing.json").write_text("mine")
        write(tmp_path / "thing", 1)
        assert (new / "thing.json").read_text() == "mine"
    assert (tmp_path / "thing" / "thing.json").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "thing"]


def test_files_that_killed_writers_left_are_swept(tmp_path: Path) -> None:
    scratch.new_name(tmp_path / "file").write_text("half")
    other = scratch.new_name(tmp_path / "other")
    other.write_text("of another file")
    replace_file(tmp_path / "file", b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", other])


def test_nothing_to_wait_for(tmp_path: Path) -> None:
    start = time.monotonic()
    settle(tmp_path / "missing")
    settle(tmp_path / "no" / "folder")
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk(tmp_path: Path, steps: str, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write(tmp_path / "thing", 1)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UnikeError, match=r"cannot write .*: No space left on device; nothing was changed"):
            write(tmp_path / "thing", 2)
    assert SEALED.read(tmp_path / "thing")[0]["n"] == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "thing"]
