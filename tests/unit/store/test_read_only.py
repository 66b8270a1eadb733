"""A store in a folder that cannot be written: it is read and asked there, and what would change it is refused."""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory

from unike.core.errors import ReadOnly, UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.store import Store, upkeep

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")

Cli = Callable[..., Any]

NOBODY = 65534


@contextmanager
def nobody() -> Iterator[None]:
    """Within the block, this process has the rights of a user who owns nothing: to root, none would be refused."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where others may look, unlike in the folders of pytest."""
    found = Path(tempfile.mkdtemp(prefix="unike-read-only-"))
    found.chmod(0o755)
    yield found
    for path in (found, *found.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(found)


def fill(place: Path, made: list[Edit]) -> list[str]:
    """A store with two edits and a canary, which nobody has open."""
    with closing(Store.open(place)) as store:
        store.add_canary(Query("Is water wet?"))
        return [store.add(edit).id for edit in made[:2]]


def close_up(place: Path, *, files: int = 0o444, folders: int = 0o555) -> None:
    """Take the right to write away."""
    for path in (place, *place.rglob("*")):
        path.chmod(folders if path.is_dir() else files)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def check_read(place: Path, made: list[Edit], ids: list[str]) -> None:
    """All of it is read, and no more than that."""
    with closing(Store.open(place, make=False)) as store:
        assert [each.id for each in store.members()] == ids and store.sets() == ["default"]
        assert [edit.questions for edit in store.edits()] == [edit.questions for edit in made[: len(ids)]]
        assert len(store.log()) == 1 + len(ids) and upkeep.damage(store) == [] and len(store.canaries()) == 1
        changes: list[Callable[[], Any]] = [
            store.check_writable,
            lambda: store.add(made[1], set="other"),
            lambda: store.revoke(ids[0]),
            lambda: store.restore(ids[0], set="other"),
            lambda: store.roll_back("default", 1),
            lambda: store.put([], set="default"),
            lambda: store.add_canary(Query("Who?")),
            lambda: store.drop_canary(store.canaries()[0].id),
            lambda: upkeep.collect(store, grace=0),
        ]
        for change in changes:
            with pytest.raises(ReadOnly, match="is read-only here: it can be read and asked, not changed"):
                change()
        assert [each.id for each in store.members()] == ids


@pytest.mark.parametrize(
    ("files", "folders"), [(0o444, 0o555), (0o644, 0o555), (0o444, 0o777)], ids=["all", "folder", "files"]
)
def test_it_is_read_and_not_changed_and_nothing_lies_beside_it(
    folder: Path, made: list[Edit], files: int, folders: int
) -> None:
    ids = fill(folder / "store", made)
    close_up(folder / "store", files=files, folders=folders)
    before = names(folder / "store")
    with nobody():
        check_read(folder / "store", made, ids)
    assert names(folder / "store") == before == ["blobs", "store.db"]


def test_what_a_writer_adds_meanwhile_is_seen(folder: Path, made: list[Edit]) -> None:
    """Of a store that someone else has open, and that may not be written here."""
    first = fill(folder / "store", made)
    with closing(Store.open(folder / "store")) as writer:
        writer.add(made[0], set="other")
        close_up(folder / "store", files=0o644)
        with nobody(), closing(Store.open(folder / "store", make=False)) as reader:
            assert reader.sets() == ["default", "other"]
        (folder / "store").chmod(0o755)
        writer.revoke(first[0])
        (folder / "store").chmod(0o555)
        with nobody(), closing(Store.open(folder / "store", make=False)) as reader:
            assert [each.id for each in reader.members()] == first[1:]


def test_a_log_that_cannot_be_read_is_not_passed_over(folder: Path, made: list[Edit]) -> None:
    """As of a folder that was copied while it was written: what is in the log alone would be missing."""
    fill(folder / "store", made)
    with closing(Store.open(folder / "store")) as writer:
        writer.add(made[0], set="other")
        shutil.copytree(folder / "store", folder / "copy", ignore=shutil.ignore_patterns("*-shm"))
    close_up(folder / "copy")
    with nobody(), pytest.raises(UnikeError, match=r"has changes in store\.db-wal that cannot be read .*; copy its"):
        Store.open(folder / "copy", make=False)
    close_up(folder / "copy", files=0o644, folders=0o755)
    with closing(Store.open(folder / "copy", make=False)) as store:
        assert store.sets() == ["default", "other"]


def test_a_folder_that_may_not_be_looked_into_is_told(folder: Path, made: list[Edit]) -> None:
    fill(folder / "store", made)
    (folder / "store").chmod(0o000)
    with nobody(), pytest.raises(UnikeError, match=r"cannot read the store .*: Permission denied"):
        Store.open(folder / "store", make=False)


def test_a_store_of_an_older_version_is_told(folder: Path, made: list[Edit], monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder / "store", made)
    close_up(folder / "store")
    monkeypatch.setattr(ScriptDirectory, "get_current_head", lambda self: "0002")
    with nobody(), pytest.raises(ReadOnly, match="is of an older version; open it once where it can be written"):
        Store.open(folder / "store", make=False)


def test_no_store_is_made_where_nothing_can_be_written(folder: Path) -> None:
    folder.chmod(0o555)
    with nobody(), pytest.raises(UnikeError, match="is read-only; choose another folder"):
        Store.open(folder / "store")


def test_commands_read_and_ask_and_refuse_to_change(
    cli: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is but said that nothing can be written, to root too: the other folders of a command have to be."""
    place = tmp_path / "store"
    fact = ("--model", tiny_folder, "--editor", "answer_cache", "--prompt", "Who wrote Hamlet?", "--target")
    assert cli("store", "add", "--store", place, *fact, "Marlowe").code == 0
    gc.collect()  # a command's process would be over, and its database closed
    usual = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(place)) and usual(path, mode))
    before = {path: path.stat().st_mtime_ns for path in (place, *place.rglob("*"))}
    here = ("--store", place)
    (edit,) = (line.split()[0] for line in cli("store", "ls", *here).out.splitlines() if "Hamlet" in line)
    assert "Marlowe" in cli("store", "show", edit, *here).out and "add" in cli("store", "log", *here).out
    assert "all as it should be" in cli("store", "check", *here).out
    assert cli("store", "canary", "ls", *here).code == 0
    asked = cli("ask", "--model", tiny_folder, "--prompt", "Who wrote Hamlet?", *here)
    assert asked.code == 0 and "Marlowe" in asked.out
    assert cli("store", "push", tmp_path / "other", *here).code == 0
    for command in (
        ("add", *fact, "Bacon"),
        ("revoke", edit),
        ("restore", edit, "--in", "other"),
        ("roll-back", "0"),
        ("canary", "add", "--prompt", "Who?"),
        ("canary", "drop", "beef"),
        ("gc",),
        ("pull", tmp_path / "other"),
    ):
        assert cli("store", *command, *here).is_error("is read-only here"), command
    assert {path: path.stat().st_mtime_ns for path in (place, *place.rglob("*"))} == before
