"""A store of edits: sets and their versions, the log, blobs; what is the same, what is refused, what is kept."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tinies import tiny_backbone

from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.store import Store, journal, upkeep
from unike.store.blobs import Blobs
from unike.store.store import Moved

Open = Callable[[], Store]


def ids(store: Store, set: str = "default", version: int | None = None) -> list[str]:
    return [stored.id for stored in store.members(set, version)]


def same(one: Edit, other: Edit) -> bool:
    names = one.tensors.keys() == other.tensors.keys()
    bits = all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    return names and bits and one.questions == other.questions and one.config == other.config


def test_what_is_added_is_in_force_as_it_was_made(store: Store, opened: Open, made: list[Edit]) -> None:
    assert store.version() == 0 and store.members() == [] and store.sets() == []
    first = store.add(made[0], author="ann", reason="it said dog", tags=("zoo", "zoo", "urgent"))
    second = store.add(made[1])
    assert ids(store) == [first.id, second.id] and store.version() == 2
    assert (first.author, first.reason, first.tags) == ("ann", "it said dog", ("zoo", "urgent"))
    again = opened()
    for kept, edit in zip(again.edits(), made, strict=False):
        assert same(kept, edit)
    found = again.edits()[0].facts[0]
    assert found.image is not None and found.image.read_bytes() == Path(str(made[0].facts[0].image)).read_bytes()
    assert store.all(tag="zoo") == [first] and store.all(text="ADA") == [second] and len(store.all()) == 2


def test_a_picture_need_not_stay_where_it_was(store: Store, opened: Open, pictures: list[Path], tmp_path: Path) -> None:
    image = tmp_path / "moving.png"
    shutil.copy(pictures[0], image)
    backbone = tiny_backbone("llava")
    edit = registry.editors.get("ft")(lr=1e-2, steps=2).edit(backbone, Query("What is this?", image, "cat"))
    stored = store.add(edit)
    assert stored.picture_name == "moving.png"
    image.unlink()
    assert same(opened().edits()[0], edit)
    with pytest.raises(UnikeError, match="image not found"):
        store.add(edit, set="other")
    Image.new("RGB", (9, 9)).save(image)
    with pytest.raises(UnikeError, match="is not the one that the edit was made with"):
        store.add(edit, set="other")


def test_a_picture_may_be_called_whatever_files_are(store: Store, pictures: list[Path], tmp_path: Path) -> None:
    image = tmp_path / "b\udcff.png"
    shutil.copy(pictures[0], image)
    backbone = tiny_backbone("llava")
    stored = store.add(
        registry.editors.get("ft")(lr=1e-2, steps=2).edit(backbone, Query("What is this?", image, "cat"))
    )
    assert stored.picture_name == "b?.png" and store.members() == [stored]


def test_the_same_fact_is_one_and_another_answer_is_refused(store: Store, made: list[Edit]) -> None:
    first = store.add(made[0])
    assert store.add(made[0], author="bob") == first and store.version() == 1 and len(store.log()) == 1
    with pytest.raises(UnikeError, match=r"answers 'What is this\?' with 'cat' in 'default'; revoke it first"):
        store.add(made[3])
    assert store.version() == 1 and len(store.all()) == 1
    second = store.add(made[3], replaces=[first.id])
    assert ids(store) == [second.id] and ids(store, version=1) == [first.id]
    assert store.log()[-1].detail == {"replaced": [first.id]}
    assert store.add(made[0], set="tenant-a").id == first.id  # another set has its own


def test_what_is_revoked_is_kept_and_restored_on_top(store: Store, made: list[Edit]) -> None:
    first, second = store.add(made[0]), store.add(made[2])
    assert store.revoke(first.id[:6], author="eve", reason="wrong after all") == 3
    assert ids(store) == [second.id] and store.find(first.id) == first
    with pytest.raises(UnikeError, match="is not in force in the set 'default'"):
        store.revoke(first.id)
    assert store.restore(first.id) == 4 and ids(store) == [second.id, first.id]
    with pytest.raises(UnikeError, match="is in force in the set 'default'"):
        store.restore(first.id)
    store.revoke(first.id)
    third = store.add(made[3])
    with pytest.raises(UnikeError, match=f"the edit {third.id} answers the same question"):
        store.restore(first.id)
    assert [entry.action for entry in store.log(edit=first.id)] == ["add", "revoke", "restore", "revoke"]
    entry = store.log(edit=first.id)[1]
    assert (entry.author, entry.reason, entry.set, entry.version) == ("eve", "wrong after all", "default", 3)


def test_any_version_comes_back_bit_for_bit(store: Store, made: list[Edit]) -> None:
    history = [[]]
    for action in (
        lambda: store.add(made[0]),
        lambda: store.add(made[1]),
        lambda: store.add(made[2]),
        lambda: store.revoke(ids(store)[0]),
        lambda: store.revoke(ids(store)[0]),
        lambda: store.restore(store.all()[0].id),
        lambda: store.add(made[3], replaces=[store.all()[0].id]),
    ):
        action()
        history.append(ids(store))
    for version, then in enumerate(history):
        assert ids(store, version=version) == then
        if ids(store) != then:
            store.roll_back("default", version)
        assert ids(store) == then
        for stored, edit in zip(store.members(), store.edits(), strict=True):
            assert any(same(edit, each) for each in made) and edit.facts[0].target == stored.target
    with pytest.raises(UnikeError, match="is what is in force"):
        store.roll_back("default", len(history) - 1)
    with pytest.raises(UnikeError, match=r"has the versions 0 to \d+, and no 99"):
        store.roll_back("default", 99)
    with pytest.raises(UnikeError, match="and no 99"):
        store.members(version=99)


def test_a_set_that_has_changed_is_not_added_to(store: Store, made: list[Edit]) -> None:
    seen = store.version()
    store.add(made[0])
    with pytest.raises(Moved, match="has changed since it was looked at"):
        store.add(made[1], seen=seen)
    with pytest.raises(Moved, match="has changed since it was looked at"):
        store.roll_back("default", 0, seen=seen)
    assert store.version() == 1 and len(store.all()) == 1
    assert store.roll_back("default", 0, seen=1) == 2


def test_what_a_store_refuses(store: Store, made: list[Edit], tmp_path: Path) -> None:
    backbone = tiny_backbone("llava")
    two = registry.editors.get("ft")(lr=1e-2, steps=2).edit(backbone, [Query("a", None, "b"), Query("c", None, "d")])
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: store.add(two), "is of 2 facts; add each alone"),
        (lambda: store.add(made[0], set="a b"), "is no name of a set"),
        (lambda: store.add(made[0], set="a:1"), "is no name of a set"),
        (lambda: store.add(made[0], author=" "), "the author is empty"),
        (lambda: store.add(made[0], tags=[""]), "the tag is empty"),
        (lambda: store.add(made[0], tags=[str(n) for n in range(101)]), "an edit has at most 100 tags, and not 101"),
        (lambda: store.add(made[0], reason="x" * 5000), "more than 4,096 characters"),
        (lambda: store.add(made[0], reason="\ud83d"), "is not valid Unicode"),
        (lambda: store.add(made[0], reason="a\0b"), "or a null"),
        (lambda: store.find(""), "there is no edit that begins with ''"),
        (lambda: store.find("0" * 99_999), f"there is no edit that begins with '{'0' * 64}' in this store"),
        (lambda: store.drop_canary("0" * 99_999), f"no canary begins with '{'0' * 64}'"),
        (lambda: store.roll_back("nobody", 0), "there is no set 'nobody'"),
        (lambda: store.find("%"), "there is no edit that begins with '%'"),
        (lambda: store.revoke("beef"), "there is no edit that begins with 'beef'"),
        (lambda: Store.open("mysql://root@localhost/x"), "SQLite or PostgreSQL, not in mysql"),
        (lambda: Store.open("://"), "is no address of a database"),
    ]
    for call, says in calls:
        with pytest.raises(UnikeError, match=says):
            call()
    assert store.version() == 0 and store.log() == [] and store.all() == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UnikeError, match="exists and is no store"):
        Store.open(tmp_path / "full")


@pytest.mark.parametrize("name", ["tea%41", "odd?x=1", "odd#y%41", "a b"])
def test_a_folder_is_where_its_name_says(made: list[Edit], tmp_path: Path, name: str) -> None:
    stored = Store.open(tmp_path / name).add(made[1])
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert Store.open(tmp_path / name, make=False).members() == [stored]


def test_a_place_that_takes_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing" / "there")
    with pytest.raises(UnikeError, match="cannot make a store in"):
        Store.open(tmp_path / "link")


def test_an_edit_that_is_added_again_says_why_anew(store: Store, made: list[Edit]) -> None:
    first = store.add(made[0], tags=["t1"], reason="r1", author="ann")
    store.revoke(first.id)
    again = store.add(made[0], tags=["t2"], reason="r2", author="bob")
    assert (again.id, again.tags, again.reason, again.author) == (first.id, ("t2",), "r2", "bob")
    assert [entry.author for entry in store.log(edit=first.id) if entry.action == "add"] == ["ann", "bob"]


@pytest.mark.parametrize("name", ["\udcff", "\ud800", "a\nb", "\0"])
def test_names_that_no_set_or_edit_has(store: Store, name: str) -> None:
    assert store.version(name) == 0
    for call in (lambda: store.members(name), lambda: store.log(name), lambda: store.find(name)):
        with pytest.raises(UnikeError):
            call()


def test_several_edits_that_begin_alike_are_not_guessed_at(store: Store, made: list[Edit]) -> None:
    for edit in made[:3]:
        store.add(edit)
    beginnings = [stored.id[0] for stored in store.all()]
    twice = [digit for digit in beginnings if beginnings.count(digit) > 1]
    for digit in twice:
        with pytest.raises(UnikeError, match="several edits begin"):
            store.find(digit)
    assert all(store.find(stored.id) == stored for stored in store.all())


def test_what_was_ever_in_some_sets_is_found_apart(store: Store, made: list[Edit]) -> None:
    first, second = store.add(made[0], set="a"), store.add(made[1], set="b")
    store.revoke(first.id, set="a")
    store.add_canary(Query("Who?"))
    assert (
        store.all(within=["a"]) == [first] and store.all(within=["a", "b"]) == store.all() and not store.all(within=[])
    )
    assert store.find(first.id, ["a"]) == first and store.find(second.id[:8], {"b"}) == second
    for name, within in ((first.id, ["b"]), (second.id, ["a"]), (first.id, [])):
        with pytest.raises(UnikeError, match="there is no edit that begins with"):
            store.find(name, within)
    assert [(line.set, line.action) for line in store.log(within=["a"])] == [("a", "add"), ("a", "revoke")]
    assert [line.action for line in store.log(within=["a"], limit=1)] == ["revoke"]
    assert not store.log("b", within=["a"]) and len(store.log()) == 4


# ---------------------------------------------------------------------- the log, and damage


def test_the_log_only_grows(store: Store, made: list[Edit]) -> None:
    store.add(made[0])
    for table in ("unike_log", "unike_changes"):
        for change in (f"DELETE FROM {table}", f"UPDATE {table} SET version = 9"):
            with pytest.raises(UnikeError, match="only grows"), store.database.writing() as connection:
                connection.exec_driver_sql(change)
    assert len(store.log()) == 1 and journal.broken(store.log()) is None


@pytest.mark.parametrize(
    "change",
    ["DELETE FROM unike_log WHERE number = 1", "UPDATE unike_log SET author = 'nobody' WHERE number = 2"],
)
def test_a_log_that_was_tampered_with_is_noticed(made: list[Edit], change: str, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    for edit in made[:3]:
        store.add(edit)
    assert upkeep.damage(store) == []
    with store.database.writing() as connection:
        for name in ("unike_log_no_delete", "unike_log_no_update"):
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql(change)
    line = change[-1]
    assert upkeep.damage(store)[0] == f"line {line} of the log is missing or was changed"


def test_blobs_that_are_missing_or_changed_are_named(store: Store, opened: Open, made: list[Edit]) -> None:
    first, second = store.add(made[0]), store.add(made[1])
    tensors, picture = (store.blobs.path(name) for name in (second.tensors, str(first.picture)))
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    picture.unlink()
    store = opened()
    missing, changed = upkeep.damage(store)
    assert "is missing" in missing and "was changed" in changed
    with pytest.raises(UnikeError, match="was changed"):
        store.edit(second)
    assert store.add(made[1], set="other").id == second.id  # puts the blob right
    assert len(upkeep.damage(opened())) == 1


def test_what_nothing_names_is_removed_and_nothing_else(store: Store, made: list[Edit]) -> None:
    stored = store.add(made[0])
    store.revoke(stored.id)
    store.add_canary(Query("What?", made[2].facts[0].image))
    left = store.blobs.put(b"of a writer that was killed")
    assert upkeep.collect(store) == (0, 0)  # it may still be at work
    assert upkeep.collect(store, grace=0) == (1, 27)
    assert not store.blobs.has(left) and upkeep.damage(store) == []
    store.restore(stored.id)
    assert same(store.edits()[0], made[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE unike_changes SET position = 'x'", "damaged|refuses"),
        ("UPDATE unike_edits SET tensors = '../../outside/it'", "is no name of a blob"),
        ("UPDATE unike_edits SET picture = '/etc/passwd'", "is no name of a blob"),
        ("UPDATE unike_edits SET described = '{}'", "cannot be read"),
        ("UPDATE unike_edits SET tags = '7'", "damaged"),
    ],
)
def test_rows_that_nobody_wrote_are_one_line(store: Store, made: list[Edit], change: str, says: str) -> None:
    store.add(made[0])
    with pytest.raises(UnikeError, match=says) as told:
        with store.database.writing() as connection:
            connection.exec_driver_sql(change)
        store.edits()
    assert "\n" not in str(told.value)


def test_a_store_of_two_versions_is_refused_in_one_line(store: Store, opened: Open) -> None:
    store.add_canary(Query("Who?"))
    with store.database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO unike_alembic VALUES ('zzz')")
    with pytest.raises(UnikeError, match="refuses") as told:
        opened()
    assert "\n" not in str(told.value)


def test_a_store_of_a_newer_version_is_refused(store: Store, opened: Open) -> None:
    store.add_canary(Query("Who?"))
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE unike_alembic SET version_num = '9999'")
    with pytest.raises(UnikeError, match="is of a newer version of unike"):
        opened()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.db").write_bytes(b"no database, but long enough to be read as one" * 40)
    with pytest.raises(UnikeError, match=r"store\.db refuses: file is not a database"):
        Store.open(tmp_path / "store")


# ---------------------------------------------------------------------- canaries, other stores, other places


def test_canaries(store: Store, pictures: list[Path]) -> None:
    one = store.add_canary(Query("What is the capital of France?"))
    assert store.add_canary(Query(" what is the capital of france? ")).id == one.id
    two = store.add_canary(Query("What is this?", pictures[0]), author="ann")
    assert {canary.id for canary in store.canaries()} == {one.id, two.id}
    queries = {query.prompt: query.image for query in store.canary_queries()}
    assert queries["What is the capital of France?"] is None
    assert Path(str(queries["What is this?"])).read_bytes() == pictures[0].read_bytes()
    assert store.drop_canary(one.id[:8]) == one and store.canaries() == [two]
    with pytest.raises(UnikeError, match="no canary begins"):
        store.drop_canary(one.id)
    assert [entry.action for entry in store.log()] == ["add canary", "add canary", "drop canary"]


def test_a_set_goes_to_another_store_in_one_step(store: Store, made: list[Edit], tmp_path: Path) -> None:
    store.add(made[1], author="ann", reason="why", tags=("t",))
    store.add(made[0])
    other = Store.open(tmp_path / "other")
    assert upkeep.copy_set(store, other) == 1
    assert [each.model_dump() for each in other.members()] == [each.model_dump() for each in store.members()]
    assert all(same(*pair) for pair in zip(other.edits(), store.edits(), strict=True))
    assert upkeep.copy_set(store, other) == 1  # it is what is in force
    store.revoke(ids(store)[0])
    assert upkeep.copy_set(store, other, reason="to live") == 2 and ids(other) == ids(store)
    assert upkeep.copy_set(store, other, into="tenant-a") == 1 and other.sets() == ["default", "tenant-a"]
    assert upkeep.damage(other) == []
    with pytest.raises(UnikeError, match="there is no set 'nothing' to copy"):
        upkeep.copy_set(store, other, set="nothing")


def test_blobs_lie_wherever_fsspec_reaches(made: list[Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    store = Store.open(tmp_path / "store", blobs=f"memory://{tmp_path.name}")
    stored = store.add(made[0])
    assert not (tmp_path / "store" / "blobs").exists()
    store = Store.open(tmp_path / "store", blobs=f"memory://{tmp_path.name}")
    assert same(store.edits()[0], made[0])
    assert store.picture(str(stored.picture)).parent == tmp_path / "home" / "blobs"
    left = store.blobs.put(b"left")
    assert upkeep.collect(store, grace=-1)[0] == 1 and not store.blobs.has(left) and upkeep.damage(store) == []
    with pytest.raises(UnikeError, match="blobs cannot be kept at"):
        Blobs("nowhere://x")


def test_two_writers_lose_nothing(opened: Open, made: list[Edit]) -> None:
    stores = [opened(), opened()]

    def write(store: Store, set: str) -> None:
        for _ in range(10):
            stored = store.add(made[0], set=set)
            store.revoke(stored.id, set=set)

    threads = [threading.Thread(target=write, args=(store, f"set-{number}")) for number, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stores[0].version(f"set-{number}") for number in range(2)] == [20, 20]
    assert len(stores[1].log()) == 40 and journal.broken(stores[1].log()) is None
