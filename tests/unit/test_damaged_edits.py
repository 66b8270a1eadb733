"""Saved edits that are damaged, forged, of another model or of a newer version; and a disk that fills up meanwhile."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tinies import tiny_backbone

from unike.backbones import load_backbone
from unike.core.files import seal
from unike.data.queries import Query
from unike.editors.ft import FT, FTEdit
from unike.edits.edit import Edit
from unike.edits.files import CONFIG_FILE, TENSOR_FILE

Cli = Callable[..., Any]


def full(*args: object, **kwargs: object) -> None:
    """A disk without space."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def saved(cli: Cli, tiny_folder: Path, tmp_path: Path) -> Path:
    """An edit in a folder, good as yet."""
    edit = FT(steps=1).edit(load_backbone(tiny_folder), Query("2 + 2?", None, "five"))
    edit.save_pretrained(tmp_path / "edit")
    return tmp_path / "edit"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(**changes: object) -> Callable[[Path], None]:
    """By hand: the seal no longer fits."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forge(**changes: object) -> Callable[[Path], None]:
    """By a program that seals what it writes, a newer version for example."""

    def damage(path: Path) -> None:
        described = json.loads(path.read_text()) | changes
        sealed = described | {"sha256": seal(described, path.with_name(TENSOR_FILE).read_bytes())}
        path.write_text(json.dumps(sealed))

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "messages"),
    [
        (TENSOR_FILE, flip_a_byte, ["the edit in", "is damaged"]),
        (TENSOR_FILE, cut, ["the edit in", "is damaged"]),
        (TENSOR_FILE, Path.unlink, ["cannot read", TENSOR_FILE]),
        (CONFIG_FILE, Path.unlink, ["no edit in", CONFIG_FILE]),
        (CONFIG_FILE, cut, [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, lambda path: path.write_bytes(b"\xff\xfe\x00"), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, lambda path: path.write_text("[]"), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, change(config={"layer": -2}), ["the edit in", "is damaged"]),
        (CONFIG_FILE, forge(format=3), ["format 3", "update unike"]),
        (CONFIG_FILE, forge(facts=[{}]), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, forge(facts=3), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, forge(backbone={}), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, forge(editor=3), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, forge(editor="fd"), ["unknown editor 'fd'", "did you mean 'ft'?"]),
        (CONFIG_FILE, forge(config={"layers": 1}), ["unknown setting 'layers'", "did you mean 'layer'?"]),
    ],
)
def test_damaged_edits(early: Cli, saved: Path, name: str, damage: Callable[[Path], None], messages: list[str]) -> None:
    damage(saved / name)
    result = early("ask", "--prompt", "2 + 2?", "--edit", saved)
    assert result.is_error(*messages), result


def test_an_edit_is_fine_before_it_is_damaged(cli: Cli, saved: Path, tiny_folder: Path) -> None:
    assert cli("ask", "--prompt", "2 + 2?", "--edit", saved, "--model", tiny_folder).code == 0


def test_an_edit_made_for_another_backbone(cli: Cli, saved: Path, tmp_path: Path) -> None:
    tiny_backbone("llava", seed=1).save_pretrained(tmp_path / "other")
    result = cli("ask", "--prompt", "2 + 2?", "--edit", saved, "--model", tmp_path / "other")
    assert result.is_error("was made for", f"not for '{tmp_path / 'other'}'"), result


def test_several_edits_in_one_folder(early: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    facts = [Query("2 + 2?", None, "five"), Query("3 + 3?", None, "seven")]
    FT(steps=1).edit(load_backbone(tiny_folder), facts).save_pretrained(tmp_path / "two")
    result = early("ask", "--prompt", "2 + 2?", "--edit", tmp_path / "two")
    assert result.is_error("holds 2 independent edits"), result


def test_a_disk_that_fills_up_leaves_the_old_edit_whole(
    cli: Cli, saved: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    beside = sorted(saved.parent.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    result = cli("edit", "--model", tiny_folder, "--prompt", "2 + 2?", "--target", "six", "--out", saved)
    assert result.is_error("cannot write", "No space left on device", "nothing was changed"), result
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert sorted(saved.parent.iterdir()) == beside
    assert isinstance(Edit.from_pretrained(saved), FTEdit)
