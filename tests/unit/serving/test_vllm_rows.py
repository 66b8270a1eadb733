"""Which rows of a flat batch are whose: prompts in parts, answers token by token, requests that go and come back."""

from collections.abc import Sequence

import pytest

from unike.serve.vllm_plugin.rows import Book, Rows, rows_of


class Runner:
    """What an engine keeps of its requests, in its own words.

    Args:
        prompts: Request to how many tokens its prompt has.
    """

    def __init__(self, prompts: dict[str, int]) -> None:
        self.prompts = prompts
        self.computed = dict.fromkeys(prompts, 0)

    def run(self, **tokens: int) -> list[Rows]:
        """A pass that computes so many tokens of requests, in this order."""
        starts = [0]
        for count in tokens.values():
            starts.append(starts[-1] + count)
        starts += [starts[-1]] * 3  # an engine's buffer is longer than its batch
        found = list(
            rows_of(
                list(tokens), starts, [self.computed[name] for name in tokens], [self.prompts[name] for name in tokens]
            )
        )
        for name, count in tokens.items():
            self.computed[name] += count
        return found


def names(turn: Sequence[tuple[Rows, str]]) -> list[str]:
    return [f"{rows.request}={kept} {rows.begin}:{rows.end}" for rows, kept in turn]


def test_rows_and_where_a_prompt_ends() -> None:
    runner = Runner({"a": 5, "b": 3, "c": 9})
    first = runner.run(a=5, b=2)
    assert [(r.request, r.begin, r.end, r.offset) for r in first] == [("a", 0, 5, 0), ("b", 5, 7, 0)]
    assert [(r.last, r.has_last, r.is_before_last) for r in first] == [(4, True, False), (2, False, True)]
    second = runner.run(a=1, b=1, c=4)
    assert [(r.begin, r.end, r.offset, r.last) for r in second] == [(0, 1, 5, -1), (1, 2, 2, 0), (2, 6, 0, 8)]
    assert [(r.has_last, r.is_before_last) for r in second] == [(False, False), (True, False), (False, True)]


def test_a_request_without_rows_is_left_out() -> None:
    assert [r.request for r in Runner({"a": 4, "b": 4}).run(a=0, b=2)] == ["b"]


def test_rows_that_end_before_they_begin_are_refused() -> None:
    with pytest.raises(ValueError, match="the rows of a begin at 3 and end at 1"):
        list(rows_of(["a"], [3, 1], [0], [2]))


def test_what_acts_is_begun_once_and_kept_until_a_request_is_gone() -> None:
    begun: list[str] = []

    def begin(request: str) -> str | None:
        begun.append(request)
        return None if request == "plain" else f"edits {len(begun)}"

    runner, book = Runner({"a": 5, "plain": 2, "b": 3}), Book(begin)
    known = {"a", "plain", "b"}
    assert names(book.turn(runner.run(a=3, plain=2), known)) == ["a=edits 1 0:3"]
    assert names(book.turn(runner.run(b=3, plain=1), known)) == ["b=edits 3 0:3"]  # a waits, and is known
    assert names(book.turn(runner.run(b=1, a=2), known)) == ["b=edits 3 0:1", "a=edits 1 1:3"]
    assert begun == ["a", "plain", "b"] and len(book) == 3
    assert names(book.turn(runner.run(a=1), {"a"})) == ["a=edits 1 0:1"]
    assert len(book) == 1


def test_a_name_that_is_used_again_begins_anew() -> None:
    begun: list[str] = []
    book = Book(lambda request: begun.append(request) or len(begun))
    assert names(book.turn(Runner({"a": 2}).run(a=2), {"a"})) == ["a=1 0:2"]
    assert names(book.turn(Runner({"a": 4}).run(a=2), {"a"})) == ["a=2 0:2"]


def test_a_request_that_was_set_aside_begins_anew_with_its_answer() -> None:
    runner, book = Runner({"a": 3}), Book(lambda request: "edits")
    book.turn(runner.run(a=3), {"a"})
    book.turn(runner.run(a=1), {"a"})
    runner.computed["a"] = 0
    ((rows, _),) = book.turn(runner.run(a=5), {"a"})
    assert rows.has_last and rows.last == 2 and len(rows) == 5


def test_tokens_that_were_left_out_are_noticed() -> None:
    runner, book = Runner({"a": 9, "b": 9}), Book(lambda request: "edits")
    book.turn(runner.run(a=3), {"a", "b"})
    runner.computed |= {"a": 5, "b": 4}
    with pytest.raises(ValueError, match="tokens 3 to 5 of the request a were not computed"):
        book.turn(runner.run(a=2), {"a", "b"})
    with pytest.raises(ValueError, match="tokens 0 to 4 of the request b were not computed"):
        book.turn(runner.run(b=2), {"a", "b"})
