"""What is kept is made once, also by threads, and again when its file has changed; it goes with what it is about."""

import gc
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from unike.core.files import file_hash
from unike.core.memo import Memo, MemoOf, file_stamp


class Owner:
    """Whatever something is kept about."""


def test_a_value_is_made_once_for_each_key() -> None:
    memo, made = Memo[str, str](), []

    def make(value: str) -> str:
        made.append(value)
        return value

    assert [memo.get(key, partial(make, key)) for key in ("a", "b", "a")] == ["a", "b", "a"]
    assert made == ["a", "b"]


def test_none_is_a_value() -> None:
    memo, made = Memo[str, None](), []
    for _ in range(2):
        assert memo.get("a", lambda: made.append(1)) is None
    assert made == [1]


def test_another_stamp_makes_another_value() -> None:
    memo = Memo[str, int]()
    assert [memo.get("a", partial(int, n), stamp=stamp) for n, stamp in [(1, "x"), (2, "x"), (3, "y")]] == [1, 1, 3]
    assert memo.get("a", partial(int, 4), stamp="x") == 4, "the last stamp alone counts"


def test_what_fails_is_tried_again() -> None:
    memo = Memo[str, int]()
    with pytest.raises(ZeroDivisionError):
        memo.get("a", lambda: 1 // 0)
    assert memo.get("a", lambda: 7) == 7


def test_missing_values_are_made_together() -> None:
    memo, asked = Memo[int, int](), []

    def square(numbers: Sequence[int]) -> dict[int, int]:
        asked.append(list(numbers))
        return {number: number**2 for number in numbers}

    assert memo.get_all([3, 1, 3], square) == {3: 9, 1: 1}
    assert memo.get_all([1, 2, 3], square) == {1: 1, 2: 4, 3: 9}
    assert memo.get_all([2], square) == {2: 4} and memo.get_all([], square) == {}
    assert asked == [[3, 1], [2]]


def test_the_oldest_goes_when_there_is_no_more_room() -> None:
    memo = Memo[int, int](limit=2)
    for number in (1, 2, 3):
        memo.get(number, partial(int, number))
    assert [memo.get(number, lambda: 0) for number in (3, 2, 1)] == [3, 2, 0]
    assert memo.get_all([5, 6, 7], lambda missing: {number: number for number in missing}) == {5: 5, 6: 6, 7: 7}


def test_threads_wait_for_the_first() -> None:
    memo, made = Memo[str, int](), []

    def make() -> int:
        made.append(1)
        time.sleep(0.05)
        return len(made)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: memo.get("a", make), range(8))) == [1] * 8


def test_what_is_kept_of_an_object_goes_with_it() -> None:
    memos, one, other = MemoOf[str, Owner](), Owner(), Owner()
    kept = memos.of(one).get("a", Owner)
    assert kept is memos.of(one).get("a", Owner) is not memos.of(other).get("a", Owner)
    value = weakref.ref(kept)
    del one, kept
    gc.collect()
    assert value() is None


def test_a_file_that_was_written_again_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert file_stamp(path) is file_stamp(path / "below") is file_stamp(Path("\0")) is None
    path.write_text("one")
    first = file_stamp(path)
    assert first == file_stamp(path) is not None
    time.sleep(0.05)
    path.write_text("two")
    second = file_stamp(path)
    (tmp_path / "other").write_text("two")
    (tmp_path / "other").replace(path)
    assert len({first, second, file_stamp(path)}) == 3


def test_a_file_is_hashed_again_when_it_has_changed(tmp_path: Path) -> None:
    path, hashes = tmp_path / "file", []
    for content in ("one", "two", "one"):
        path.write_text(content)
        hashes.append(file_hash(path))
        time.sleep(0.05)
    assert hashes[0] == hashes[2] != hashes[1]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file_hash(path)
