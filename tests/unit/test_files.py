"""Folders are written as a whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from unike.core import folders
from unike.core.errors import UnikeError
from unike.core.folders import check_folder, replace_folder

OLD, NEW = {"known": b"old", "data": b"1"}, {"known": b"new"}


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_makes_parents_and_leaves_nothing_else(tmp_path: Path) -> None:
    replace_folder(tmp_path / "a" / "b", OLD, known_by="known")
    assert read(tmp_path / "a" / "b") == OLD
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]


def test_replaces_its_own_and_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    replace_folder(tmp_path / "empty", OLD, known_by="known")
    replace_folder(tmp_path / "empty", NEW, known_by="known")
    assert read(tmp_path / "empty") == NEW  # "data" of the old one is gone
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace_folder(Path("here"), OLD, known_by="known")
    assert read(tmp_path / "here") == OLD


@pytest.mark.parametrize("write", [True, False])
def test_refuses_what_is_not_its_own(tmp_path: Path, write: bool) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years of work")
    for folder in (tmp_path / "file", tmp_path / "mine", tmp_path / "file" / "below"):
        with pytest.raises(UnikeError, match="choose another folder"):
            if write:
                replace_folder(folder, NEW, known_by="known")
            else:
                check_folder(folder, known_by="known")
    assert (tmp_path / "file").read_text() == "x"
    assert read(tmp_path / "mine") == {"thesis": b"years of work"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


def test_checking_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path / "a" / "b" / "c", known_by="known")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UnikeError, match=f"{tmp_path} is read-only"):
        check_folder(tmp_path / "a" / "b", known_by="known")


@pytest.mark.parametrize("exists", [True, False])
def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if exists:
        replace_folder(tmp_path / "x", OLD, known_by="known")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnikeError, match="No space left on device; nothing was changed"):
        replace_folder(tmp_path / "x", NEW, known_by="known")
    assert [read(path) for path in tmp_path.iterdir()] == ([OLD] if exists else [])


def test_ctrl_c_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    replace_folder(tmp_path / "x", OLD, known_by="known")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "x", NEW, known_by="known")
    assert [read(path) for path in tmp_path.iterdir()] == [OLD]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
def test_the_old_one_comes_back_if_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Between the two renames the folder is not there; whatever happens then must bring it back."""
    replace_folder(tmp_path / "x", OLD, known_by="known")
    rename = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise error
        return rename(self, target)

    monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises((UnikeError, KeyboardInterrupt)):
        replace_folder(tmp_path / "x", NEW, known_by="known")
    assert [read(path) for path in tmp_path.iterdir()] == [OLD]
