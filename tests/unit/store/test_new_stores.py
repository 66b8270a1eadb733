"""A store that is not there yet: it reads as an empty one, and nothing is made for what is refused."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect
from tinies import tiny_backbone

from unike import make_editor
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.store import Store, upkeep
from unike.store.admission import admit

Open = Callable[[], Store]

Cli = Callable[..., Any]


def traces(store: Store, folder: Path) -> list[str]:
    """What is there of a store: tables of its database, and files."""
    files = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return files if store.database.file else [*inspect(store.database.engine).get_table_names(), *files]


def refused(store: Store, made: list[Edit], tmp_path: Path) -> list[Callable[[], Any]]:
    """Whatever asks for a change and is refused."""
    backbone = tiny_backbone("llava")
    ft = registry.editors.get("ft")
    two = ft(lr=1e-2, steps=1).edit(backbone, [Query("a", None, "b"), Query("c", None, "d")])
    (tmp_path / "no.png").write_text("no picture")
    return [
        lambda: store.add(two),
        lambda: store.add(made[0], set="a b"),
        lambda: store.add(made[0], author=" "),
        lambda: store.add(made[0], tags=[""]),
        lambda: store.put([], set="a b"),
        lambda: store.add_canary(Query(" ")),
        lambda: store.add_canary(Query("Who?", tmp_path / "no.png")),
        lambda: store.add_canary(Query("Who?"), author=" "),
        lambda: store.drop_canary("beef"),
        lambda: store.revoke("beef"),
        lambda: store.restore("beef"),
        lambda: store.roll_back("default", 0),
        lambda: store.roll_back("default", 7),
        lambda: admit(store, backbone, ft(lr=1e-9, steps=1), Query("Who wrote Hamlet?", None, "Marlowe")),
        lambda: admit(store, backbone, make_editor("ft"), Query("Who?", tmp_path / "no.png", "x")),
    ]


def test_nothing_is_made_for_what_is_refused(opened: Open, made: list[Edit], tmp_path: Path) -> None:
    store, folder = opened(), tmp_path / "store"
    for call in refused(store, made, tmp_path):
        with pytest.raises(UnikeError):
            call()
    assert traces(store, folder) == []
    assert (store.sets(), store.all(), store.log(), store.canaries(), store.version()) == ([], [], [], [], 0)
    assert upkeep.damage(store) == [] and upkeep.collect(store, grace=0) == (0, 0)
    assert traces(store, folder) == []
    first = store.add(made[0])
    assert opened().members() == store.members() == [first] and traces(store, folder)
    with pytest.raises(UnikeError, match="is what is in force"):
        store.roll_back("default", 1)


def test_who_came_first_is_seen_by_who_looked_before(opened: Open, made: list[Edit]) -> None:
    early, other, late = opened(), opened(), opened()
    assert early.members() == []
    first = other.add(made[0])
    assert early.members() == [first] and early.edits()[0].questions == made[0].questions
    second = late.add(made[1])
    assert early.members() == other.members() == [first, second]


def test_what_is_written_past_it_is_not_lost_without_a_word(opened: Open) -> None:
    with pytest.raises(UnikeError, match="readonly database"), opened().database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO unike_about VALUES ('blobs', 'x')")


@pytest.mark.parametrize("make", [True, False])
def test_an_address_that_is_refused_leaves_no_file(make: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    says = "is a new store; say where tensors and pictures go: --blobs URL" if make else "there is no store in sqlite:"
    with pytest.raises(UnikeError, match=says):
        Store.open("sqlite:///foo.db", make=make)
    for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true"):
        with pytest.raises(UnikeError, match="a store in SQLite is a file of its own"):
            Store.open(url, "blobs", make=make)
    assert list(tmp_path.iterdir()) == []


def test_a_database_is_told_where_its_blobs_are_with_the_first_edit(made: list[Edit], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/below/foo.db"
    first, second = (Store.open(url, str(tmp_path / name)) for name in "ab")
    assert list(tmp_path.iterdir()) == []
    stored = first.add(made[0])
    with closing(Store.open(url, make=False)) as again:
        assert again.members() == [stored] and again.blobs.root == first.blobs.root
    with pytest.raises(UnikeError, match=r"has its tensors and pictures at .*a; leave --blobs out"):
        second.add(made[1])
    assert not (tmp_path / "b").exists()
    first.close()
    second.close()


def test_the_database_of_something_else_is_only_looked_at(tmp_path: Path) -> None:
    place = tmp_path / "other.db"
    with closing(sqlite3.connect(place)) as other:
        other.execute("CREATE TABLE mine (x)")
    before = place.read_bytes()
    with pytest.raises(UnikeError, match="there is no store in sqlite:"):
        Store.open(f"sqlite:///{place}", make=False)
    with pytest.raises(UnikeError, match="say where tensors and pictures go"):
        Store.open(f"sqlite:///{place}")
    assert place.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["other.db"]


def test_what_a_maker_left_that_was_killed_is_made_anew(made: list[Edit], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.db").touch()
    with pytest.raises(UnikeError, match="there is no store in"):
        Store.open(tmp_path / "store", make=False)
    store = Store.open(tmp_path / "store")
    assert store.members() == [] and (tmp_path / "store" / "store.db").stat().st_size == 0
    stored = store.add(made[0])
    assert store.members() == [stored]


def test_commands_make_nothing_for_what_is_refused(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    place, picture = tmp_path / "new" / "store", tmp_path / "no.png"
    picture.write_text("no picture")
    (tmp_path / "facts.jsonl").write_text('{"prompt": "Who?", "target": "Ada", "image": "no.png"}\n')
    add = ("store", "add", "--store", place)
    fact, tiny = ("--prompt", "Who?", "--target", "Ada"), ("--model", tiny_folder)
    assert cli(*add, *fact, "--model", tmp_path / "nothing").code == 2
    assert cli(*add, *fact, *tiny, "--editor", "ft", "--set", "steps=1", "--set", "lr=1e-9").is_error("does not take")
    assert cli(*add, *fact, *tiny, "--image", picture, "--editor", "ft").is_error("no.png")
    assert cli(*add, *tiny, "--facts", tmp_path / "facts.jsonl", "--editor", "ft").is_error("no.png")
    assert cli("store", "canary", "add", "--store", place, "--prompt", "Who?", "--image", picture).is_error("no.png")
    assert not place.parent.exists()
    added = cli(*add, *fact, *tiny, "--editor", "answer_cache")
    assert added.code == 0 and (place / "store.db").is_file()


def test_a_set_that_cannot_be_read_makes_no_other_store(cli: Cli, made: list[Edit], tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "store")) as store:
        stored = store.add(made[1])
        store.blobs.path(stored.tensors).unlink()
    here = ("--store", tmp_path / "store")
    assert cli("store", "push", tmp_path / "other", *here).is_error("is missing")
    assert cli("store", "pull", tmp_path / "store", "--store", tmp_path / "other").is_error("is missing")
    assert not (tmp_path / "other").exists()


def test_a_store_that_another_is_just_making_is_waited_for(made: list[Edit], tmp_path: Path) -> None:
    """Its log is not yet written ahead, and SQLite does not wait by itself to change that."""
    with closing(Store.open(tmp_path / "store")) as store:
        store.add(made[1])
    with closing(sqlite3.connect(tmp_path / "store" / "store.db", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN IMMEDIATE")

        def add() -> int:
            with closing(Store.open(tmp_path / "store")) as late:
                late.add(made[2])
                return late.version()

        with ThreadPoolExecutor(1) as pool:
            added = pool.submit(add)
            with pytest.raises(TimeoutError):
                added.result(timeout=0.3)
            other.execute("COMMIT")
            assert added.result(timeout=30) == 2
    with closing(sqlite3.connect(tmp_path / "store" / "store.db")) as later:
        assert later.execute("PRAGMA journal_mode").fetchone() == ("wal",)
