"""What `check` notices that was changed behind a store's back, and what `gc` leaves to writers that are at work."""

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.store import Store, upkeep
from unike.store.blobs import Blobs

HOURS = 7200


@pytest.fixture
def store(made: list[Edit], tmp_path: Path) -> Store:
    """One in which everything was done that can be, and whose triggers are gone."""
    found, other = Store.open(tmp_path / "store"), Store.open(tmp_path / "other")
    first = found.add(made[0], tags=["t"])
    found.add(made[1])
    found.add(made[3], replaces=[first.id])
    found.roll_back("default", 1)
    found.roll_back("default", 0)
    found.restore(first.id)
    found.revoke(first.id)
    found.restore(first.id)
    other.add(made[2])
    upkeep.copy_set(other, found)
    found.drop_canary(found.add_canary(Query("Who?")).id)
    found.add_canary(Query("What?"))
    with found.database.writing() as connection:
        rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all()
        for (name,) in rows:
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
    return found


def change(store: Store, *changes: str) -> list[str]:
    """What is wrong after a change that no version of this makes."""
    assert upkeep.damage(store) == []
    with store.database.writing() as connection:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        for each in changes:
            connection.exec_driver_sql(each)
    return upkeep.damage(Store.open(Path(str(store.database.file)).parent))


NEWEST = "(SELECT max(version) FROM unike_changes)"
LAST = "(SELECT max(number) FROM unike_log)"
FIRST = "(SELECT edit FROM unike_changes WHERE version = 1)"


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (f"DELETE FROM unike_log WHERE number = {LAST}", "the canary .* is not what the log says"),
        (f"DELETE FROM unike_log WHERE number > {LAST} - 4", "version 9 of the set 'default' has no line in the log"),
        (f"DELETE FROM unike_changes WHERE version = {NEWEST}", "version 9 of the set 'default' is not what line 9"),
        ("DELETE FROM unike_changes WHERE version = 3 AND position IS NULL", "version 3 .* is not what line 3"),
        ("UPDATE unike_changes SET position = 7 WHERE version = 2", "version 2 .* is not what line 2"),
        ("UPDATE unike_changes SET position = 'x' WHERE version = 2", "version 2 .* is not what line 2"),
        *(
            (f"INSERT INTO unike_changes SELECT 'default', {version}, edit, 9 FROM unike_changes LIMIT 1", says)
            for version, says in {
                "0": "the set 'default' has a version 0, which there cannot be",
                "-1": "the set 'default' has a version -1, which there cannot be",
                "4000000000000": "of the set 'default' the versions 10 to 3999999999999 are missing",
            }.items()
        ),
        ("DELETE FROM unike_changes", "version 1 .* is not what line 1"),
        ("DELETE FROM unike_canaries", "the canary .* is not what the log says"),
        ("UPDATE unike_canaries SET prompt = 'else'", "the canary .* is not what the log says"),
        (
            f"UPDATE unike_edits SET target = 'cow' WHERE id = {FIRST}",
            "was changed: its target is 'cat', and not 'cow'",
        ),
        (f"UPDATE unike_edits SET prompt = 'x' WHERE id = {FIRST}", "was changed: its prompt is"),
        (f"UPDATE unike_edits SET editor = 'ke' WHERE id = {FIRST}", "was changed: its editor is 'ft', and not 'ke'"),
        (f"UPDATE unike_edits SET fingerprint = 'x' WHERE id = {FIRST}", "was changed: its model is"),
        (f"UPDATE unike_edits SET picture = NULL WHERE id = {FIRST}", "was changed: its picture is"),
        (
            "UPDATE unike_edits SET target = 'cow', described = replace(described, '\"cat\"', '\"cow\"') "
            f"WHERE id = {FIRST}",
            "was changed: its settings, tensors or facts are not those that it is called by",
        ),
        (
            f"UPDATE unike_edits SET described = replace(described, '\"steps\": 2', '\"steps\": 3') WHERE id = {FIRST}",
            "was changed: its settings, tensors or facts are not",
        ),
        (
            "INSERT INTO unike_edits SELECT 'beef', described, prompt, target, picture, picture_name, editor, source, "
            f"fingerprint, tensors, tags, author, reason, added_at FROM unike_edits WHERE id = {FIRST}",
            "the edit beef has no line in the log",
        ),
    ],
)
def test_what_the_log_does_not_say_is_damage(store: Store, sql: str, says: str) -> None:
    wrong = change(store, sql)
    assert any(re.search(says, line) for line in wrong), wrong


@pytest.mark.parametrize("key", ["'default', 'x'", "x'ff00', 1"])
def test_changes_that_are_none_are_one_line(store: Store, key: str) -> None:
    with pytest.raises(UnikeError, match="is damaged: a change of a set is"):
        change(store, f"INSERT INTO unike_changes SELECT {key}, edit, 9 FROM unike_changes LIMIT 1")


# ---------------------------------------------------------------------- what nothing names


def grow_old(folder: Path) -> None:
    """Every blob in a folder was put hours ago."""
    for file in folder.rglob("*"):
        os.utime(file, (time.time() - HOURS,) * 2)


def test_a_blob_that_is_put_again_is_young(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path / "blobs"))
    name = blobs.put(b"it")
    grow_old(tmp_path / "blobs")
    assert blobs.age(name) > HOURS - 60
    assert blobs.put(b"it") == name and blobs.age(name) < 60
    assert blobs.age("0" * 64) == 0


def test_a_blob_elsewhere_that_is_put_again_is_young(tmp_path: Path) -> None:
    blobs = Blobs(f"memory://{tmp_path.name}")
    name = blobs.put(b"it")
    before = blobs.age(name)
    time.sleep(0.01)
    assert blobs.age(name) > before
    before = blobs.age(name)
    blobs.put(b"it")
    assert blobs.age(name) < before


def left_half_way(edit: Edit, folder: Path) -> tuple[Store, Store]:
    """A store, opened twice, with the blobs of an edit whose writer was killed before it named them."""
    source, store, other = Store.open(folder / "source"), *(Store.open(folder / "store") for _ in range(2))
    stored = source.add(edit)
    store.add_canary(Query("Who?"))
    for name in (stored.tensors, str(stored.picture)):
        store.blobs.put(source.blobs.get(name))
    return store, other


def test_gc_leaves_what_a_writer_names_meanwhile(
    made: list[Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, writer = left_half_way(made[0], tmp_path)
    left = store.blobs.put(b"left")
    grow_old(tmp_path / "store" / "blobs")
    usual = store.database.writing

    def once_another_wrote() -> Any:
        writer.add(made[0])
        return usual()

    monkeypatch.setattr(store.database, "writing", once_another_wrote)
    assert upkeep.collect(store) == (1, 4) and not store.blobs.has(left)
    assert upkeep.damage(Store.open(tmp_path / "store")) == []


def test_a_writer_that_puts_what_lies_there_is_not_run_over_by_gc(
    made: list[Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = left_half_way(made[0], tmp_path)
    grow_old(tmp_path / "store" / "blobs")
    usual = store.database.writing
    removed: list[tuple[int, int]] = []

    def once_gc_was_there() -> Any:
        removed.append(upkeep.collect(other))
        return usual()

    monkeypatch.setattr(store.database, "writing", once_gc_was_there)
    store.add(made[0])
    assert removed == [(0, 0)] and upkeep.damage(Store.open(tmp_path / "store")) == []
