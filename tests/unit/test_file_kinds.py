"""Files are read and replaced only if they are files: no pipe makes a reader wait, no device or link is overwritten."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unike.bench.results import read_run
from unike.core import scratch
from unike.core.errors import UnikeError
from unike.core.files import NotAFile, check_replaceable, open_file, read_file, replace_file
from unike.core.folders import replace_folder
from unike.edits.edit import Edit

Cli = Callable[..., Any]

RUNS = Path(__file__).parents[2] / "results" / "studies"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("mode", ["rb", "ab", "ab+", "wb"])
def test_what_is_not_a_file_is_not_opened(pipe: Path, mode: str) -> None:
    for path, what in ((pipe, "a pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(NotAFile, match=f"it is {what}, not a file"):
            open_file(path, mode)
    with pytest.raises(IsADirectoryError):
        open_file(pipe.parent, mode)


def test_what_becomes_something_else_meanwhile_is_not_waited_for(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unike.core.files.check_file", lambda path: None)
    with pytest.raises(NotAFile, match="a pipe"):
        read_file(pipe)


def test_what_is_not_a_file_is_not_replaced(pipe: Path) -> None:
    link = pipe.with_name("link")
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/null")):
        for write in (check_replaceable, lambda path: replace_file(path, b"x")):
            with pytest.raises(UnikeError, match="not a file"):
                write(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and link.is_symlink()
    assert sorted(pipe.parent.iterdir()) == [link, pipe]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    target, link = tmp_path / "below" / "file", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    replace_file(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert list(target.parent.iterdir()) == [target]
    (tmp_path / "folder").symlink_to(tmp_path / "below" / "real")
    replace_folder(tmp_path / "folder", {"known": b""}, known_by="known")
    assert (tmp_path / "folder").is_symlink() and (tmp_path / "below" / "real" / "known").is_file()


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    replace_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_that_was_planted_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even by whoever guesses the name."""
    names = iter([tmp_path / "planted", tmp_path / "free"])
    monkeypatch.setattr(scratch, "new_name", lambda path: next(names))
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "planted").symlink_to(tmp_path / "precious")
    with pytest.raises(UnikeError, match="cannot write"):
        replace_file(tmp_path / "file", b"x")
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_names_cannot_be_guessed(tmp_path: Path) -> None:
    assert len({scratch.new_name(tmp_path / "file") for _ in range(50)}) == 50


@pytest.mark.parametrize("length", [200, 255])
def test_names_as_long_as_they_may_be(tmp_path: Path, length: int) -> None:
    replace_file(tmp_path / ("f" * length), b"x")
    replace_folder(tmp_path / ("d" * length), {"known": b""}, known_by="known")
    replace_folder(tmp_path / ("d" * length), {"known": b"new"}, known_by="known")
    assert (tmp_path / ("d" * length) / "known").read_bytes() == b"new"
    with pytest.raises(UnikeError, match="File name too long"):
        replace_file(tmp_path / ("f" * 256), b"x")
    with pytest.raises(UnikeError, match="File name too long"):
        replace_folder(tmp_path / ("d" * 256), {"known": b""}, known_by="known")


@pytest.mark.parametrize("file", ["edit_config.json", "edit.safetensors"])
def test_an_edit_with_a_pipe(pipe: Path, file: str) -> None:
    folder = pipe.parent / "edit"
    folder.mkdir()
    for name in ("edit_config.json", "edit.safetensors"):
        (folder / name).write_text('{"format": 1, "sha256": 0, "editor": 0, "config": 0, "backbone": 0, "facts": 0}')
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(UnikeError, match=f"cannot read .*{file}: it is a pipe, not a file"):
        Edit.from_pretrained(folder)


def test_results_with_a_pipe(pipe: Path) -> None:
    folder = pipe.parent / "run"
    folder.mkdir()
    os.mkfifo(folder / "results.jsonl")
    with pytest.raises(UnikeError, match=r"cannot read .*results.jsonl: it is a pipe, not a file"):
        read_run(folder)


def test_a_report_into_something_else(early: Cli, pipe: Path) -> None:
    run = next(RUNS.rglob("results.jsonl.gz")).parent
    shutil.copytree(run, pipe.parent / "run")
    link = pipe.with_name("link")
    link.symlink_to("/dev/null")
    for out in (pipe, link, "/dev/null"):
        result = early("report", pipe.parent / "run", "--out", out)
        assert result.is_error(f"cannot write {out}: it is a", "not a file; give another name"), result
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode) and link.is_symlink()
