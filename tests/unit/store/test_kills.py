"""Whatever happens to a writer, a store is what it was before, or after: kills at any instant, and a full disk."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from unike.core import files
from unike.core.errors import UnikeError
from unike.edits.edit import Edit
from unike.store import Store, journal, upkeep

KILLS = int(os.environ.get("KILLS", "20"))
"""`make test-slow` asks for 200."""


def write_for_ever(open_: Callable[[], Store], edits: Sequence[Edit], seed: int, ready: Any) -> None:
    """Whatever a writer may do, in any order."""
    store, chance = open_(), random.Random(seed)
    ready.set()
    while True:
        set_, live = chance.choice(["default", "tenant-a"]), {}
        live = {each.id for each in store.members(set_)}
        try:
            match chance.randrange(5):
                case 0 | 1:
                    store.add(chance.choice(edits), set=set_, reason=str(chance.random()))
                case 2 if live:
                    store.revoke(chance.choice(sorted(live)), set=set_)
                case 3:
                    store.restore(chance.choice(store.all()).id, set=set_)
                case 4:
                    store.roll_back(set_, chance.randrange(store.version(set_)))
        except (UnikeError, ValueError, IndexError):
            continue  # nothing to revoke, or in force already


def check(store: Store, edits: Sequence[Edit]) -> int:
    """Every promise of a store; the number of lines in its log."""
    log = store.log()
    assert upkeep.damage(store) == []
    for name in store.sets():
        lines = [entry for entry in log if entry.set == name]
        assert [entry.version for entry in lines] == list(range(1, store.version(name) + 1))
        expected: list[list[str]] = [[]]
        for entry in lines:
            now = expected[-1]
            if entry.action == "roll back":
                now = expected[entry.detail["to"]]
            elif entry.action == "revoke":
                now = [each for each in now if each != entry.edit]
            else:
                now = [*now, str(entry.edit)]
            assert [each.id for each in store.members(name, entry.version)] == now
            expected.append(now)
    return len(log)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_writers_that_are_killed_leave_nothing_half_done(opened: Callable[[], Store], made: list[Edit]) -> None:
    fork, chance = multiprocessing.get_context("fork"), random.Random(0)
    done, edits = 0, made[:3]
    with contextlib.closing(opened()) as store:
        start = time.monotonic()
        store.add(edits[0])
        patience = 4 * (time.monotonic() - start)  # of a machine that may be busy with other things
    for number in range(KILLS // 2):
        ready = [fork.Event(), fork.Event()]
        writers = [
            fork.Process(target=write_for_ever, args=(opened, edits, 2 * number + which, ready[which]))
            for which in range(2)
        ]
        for writer in writers:
            writer.start()
        assert all(event.wait(60) for event in ready)
        for writer in writers:
            time.sleep(chance.random() * patience)
            os.kill(int(writer.pid or 0), signal.SIGKILL)
            writer.join()
        if number % 10 == 9:
            store = opened()
            before, done = done, check(store, edits)
            assert done > before  # they did get somewhere
            store.close()


def test_a_full_disk_leaves_a_store_as_it_was(store: Store, made: list[Edit], monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store.add(made[0])

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.scratch, "scratch_file", full)
        with pytest.raises(UnikeError, match="No space left on device"):
            store.add(made[1])
    assert check(store, made) == 1 and store.members() == [stored]
    store.add(made[1])
    assert check(store, made) == 2


def test_a_database_without_room_leaves_a_store_as_it_was(tmp_path: Path, made: list[Edit]) -> None:
    store = Store.open(tmp_path / "store")
    store.add(made[0])

    def no_more(connection: Any, record: Any) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    small = Store.open(tmp_path / "store")
    small.close()
    event.listen(small.database.engine, "connect", no_more)
    with pytest.raises(UnikeError, match="database or disk is full"):
        for number in range(200):
            small.add(made[number % 3], set=f"set-{number}", reason="why " * 500)
    small.close()
    check(store, made)
    assert journal.broken(store.log()) is None
    store.add(made[1])
    assert check(store, made) == len(store.log())
