"""The engine: what waits is answered in batches, in order, and one request cannot spoil another's answer."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conversing import wait_for

from unike.backbones.adapter import Backbone
from unike.backbones.decoding import Decoding
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.serve.engine import Engine, Full
from unike.serve.jobs import Gone, Job, TimedOut, together
from unike.serve.sets import NOTHING, EditSet


@pytest.fixture
def engines(model: Backbone) -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def make(**settings: Any) -> Engine:
        started.append(Engine(model, **settings))
        return started[-1]

    yield make
    for engine in started:
        engine.close()


def a_set(name: str, *edits: Edit) -> EditSet:
    return EditSet((name, 1), f"{name}:1", (), edits)


def job(prompt: str = "Who?", edits: EditSet = NOTHING, tokens: int = 6, **more: Any) -> Job:
    return Job(Query(prompt), Decoding(tokens), edits, **more)


def answered(*jobs: Job) -> bool:
    return wait_for(lambda: all(each.is_over for each in jobs))


class Blocked:
    """The engine's thread is held up within the block."""

    def __init__(self, engine: Engine) -> None:
        self.held, self.go = threading.Event(), threading.Event()
        engine.between(self.hold)

    def hold(self) -> None:
        self.held.set()
        self.go.wait(20)

    def __enter__(self) -> None:
        assert self.held.wait(20)

    def __exit__(self, *error: object) -> None:
        self.go.set()


def test_what_waits_is_one_batch_and_each_row_has_its_own_edits(
    engines: Callable[..., Engine], model: Backbone, edits: dict[str, Edit], pictures: list[Path]
) -> None:
    seen: list[tuple[int, int]] = []
    engine = engines(on_batch=lambda rows, sets, seconds: seen.append((rows, sets)))
    engine.start()
    sets = [a_set("x", edits["a"]), NOTHING, a_set("y", edits["b"], edits["c"]), a_set("x", edits["a"]), NOTHING]
    jobs = [Job(Query("What is this?", pictures[0]), Decoding(5 + n), each) for n, each in enumerate(sets)]
    with Blocked(engine):
        engine.submit(jobs[:2])
        engine.submit(jobs[2:])
    assert answered(*jobs) and wait_for(lambda: seen == [(5, 3)])
    for each in jobs:
        alone = EditedModel(model, each.edits.edits).generate(
            [each.query], decoding=[Decoding(each.decoding.max_new_tokens)]
        )
        assert [each.decoding.text] == alone
    assert len({each.decoding.text[:2] for each in jobs[:3]}) == 3


def test_those_who_were_answered_are_waited_for_a_moment(engines: Callable[..., Engine]) -> None:
    seen: list[int] = []
    engine = engines(gather=5.0, on_batch=lambda rows, sets, seconds: seen.append(rows))
    engine.start()
    first = [job(tokens=1) for _ in range(3)]
    with Blocked(engine):
        engine.submit(first)
    assert answered(*first)
    second = [job(tokens=1) for _ in range(3)]
    engine.submit(second[:1])
    time.sleep(0.05)
    engine.submit(second[1:])
    assert answered(*second) and wait_for(lambda: seen == [3, 3])
    engine.gather = 0.01
    alone = [job(tokens=1) for _ in range(2)]
    for each in alone:
        engine.submit([each])
        assert answered(each)
    engine.gather = 60.0  # who asks alone does not wait
    engine.submit([last := job(tokens=1)])
    assert answered(last) and wait_for(lambda: seen == [3, 3, 1, 1, 1])


def test_a_short_answer_does_not_wait_for_a_long_one(engines: Callable[..., Engine]) -> None:
    engine, order = engines(), []
    short = Job(Query("Who?"), Decoding(1), NOTHING, over=lambda: order.append((short.is_over, long.is_over)))
    long = Job(Query("Who?"), Decoding(60), NOTHING)
    engine.start()
    with Blocked(engine):
        engine.submit([long, short])
    assert answered(short, long) and order == [(True, False)]


def test_there_is_no_more_room_than_there_is(engines: Callable[..., Engine]) -> None:
    engine = engines(max_waiting=3)
    engine.start()
    with Blocked(engine):
        first = [job(), job()]
        engine.submit(first)
        with pytest.raises(Full, match="2 answers wait to be written; try again later"):
            engine.submit([job(), job()])
        first[0].is_gone = True
        engine.submit([job(), job()])  # nobody waits for the first any more
        with pytest.raises(Full):
            engine.submit([job()])
    assert answered(*first) and isinstance(first[0].error, Gone) and first[1].error is None


def test_what_is_late_or_unwanted_is_not_written(engines: Callable[..., Engine]) -> None:
    engine = engines()
    engine.start()
    late, gone, other = job(deadline=0.0), job(), job(tokens=3)
    gone.is_gone = True
    engine.submit([late, gone, other])
    assert answered(late, gone, other)
    assert isinstance(late.error, TimedOut) and isinstance(gone.error, Gone) and other.error is None
    assert not late.decoding.tokens and not gone.decoding.tokens and other.decoding.tokens


def test_what_is_being_written_can_be_given_up(engines: Callable[..., Engine]) -> None:
    engine = engines()
    engine.start()
    told: list[str] = []
    first, other = job(tokens=300), job(tokens=20)

    def leave(piece: str) -> None:
        told.append(piece)
        first.is_gone = True

    first.decoding.tell = leave
    engine.submit([first, other])
    assert answered(first, other)
    assert isinstance(first.error, Gone) and len(first.decoding.tokens) < 20 and told
    assert other.error is None


def test_one_that_fails_does_not_spoil_the_batch(
    engines: Callable[..., Engine], model: Backbone, tmp_path: Path
) -> None:
    engine = engines()
    engine.start()
    bad = Job(Query("Who?", tmp_path / "missing.png"), Decoding(4), NOTHING)
    good = [job("Who?"), job("What?")]
    with Blocked(engine):
        engine.submit([good[0], bad, good[1]])
    assert answered(bad, *good)
    assert isinstance(bad.error, UnikeError) and "image not found" in str(bad.error)
    assert [each.decoding.text for each in good] == model.generate([each.query for each in good], max_new_tokens=6)


def test_a_bug_is_told_to_those_it_hits(
    engines: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engines()
    monkeypatch.setattr(EditedModel, "generate", lambda *args, **kwargs: 1 / 0)
    engine.start()
    engine.submit([hit := job()])
    assert answered(hit) and isinstance(hit.error, ZeroDivisionError)
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    engine.submit([after := job()])
    assert answered(after) and after.error is None


def test_work_is_done_between_batches(engines: Callable[..., Engine]) -> None:
    engine = engines()
    engine.start()
    assert engine.between(lambda: 7).result(10) == 7
    with pytest.raises(ZeroDivisionError):
        engine.between(lambda: 1 // 0).result(10)
    with Blocked(engine):
        waiting = [engine.between(lambda: 1) for _ in range(16)]
        with pytest.raises(Full, match="16 edits wait to be made"):
            engine.between(lambda: 2)
        assert waiting[3].cancel()
    assert waiting[15].result(10) == 1


def test_an_end_is_one(engines: Callable[..., Engine]) -> None:
    engine = engines()
    engine.start()
    jobs = [job(tokens=2000), job()]
    engine.submit(jobs[:1])
    assert wait_for(lambda: bool(jobs[0].decoding.tokens))
    engine.submit(jobs[1:])
    engine.close()
    assert answered(*jobs) and all(isinstance(each.error, Gone) for each in jobs) and not engine.is_alive
    with pytest.raises(Full):
        engine.submit([job()])


def test_a_stack_is_made_once_for_each_version(engines: Callable[..., Engine], edits: dict[str, Edit]) -> None:
    engine, made = engines(keep=2), []
    usual = EditedModel.__init__

    def counted(self: EditedModel, *args: Any) -> None:
        made.append(args)
        usual(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EditedModel, "__init__", counted)
        engine.start()
        for name in ("x", "x", "y", "x", "z", "y", "x"):
            engine.submit([each := job(edits=a_set(name, edits["a"]), tokens=1)])
            assert answered(each)
    assert len(made) == 5  # x, y, z, and x and y again, which two others had replaced


def test_methods_that_hold_an_answer_give_it(engines: Callable[..., Engine], model: Backbone) -> None:
    cached = registry.editors.get("answer_cache")().edit(model, Query("Who is the king of Spain?", None, "Felipe VI"))
    engine = engines()
    engine.start()
    routed = a_set("cache", cached)
    jobs = [job("Who is the king of Spain?", routed), job("What is two plus two?", routed), job("Who?")]
    jobs[0].decoding.stop = (" VI",)
    told: list[str] = []
    jobs[0].decoding.tell = told.append
    with Blocked(engine):
        engine.submit(jobs)
    assert answered(*jobs) and not any(each.error for each in jobs)
    assert jobs[0].decoding.text == "Felipe" == "".join(told)
    assert [jobs[1].decoding.text, jobs[2].decoding.text] == [
        model.generate([each.query], max_new_tokens=6)[0] for each in jobs[1:]
    ]


# ---------------------------------------------------------------------- which go together


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([0, 0, 0], 2, [0, 1]),
        ([3, 0, 5], 8, [0, 1, 2]),
        ([100, 0, 100, 3], 8, [0, 2]),  # a large set alone, its rows together
        ([0, 100, 3], 8, [0, 2]),
        ([64, 63, 62, 61, 60], 8, [0, 1, 2, 3]),  # 256 copies at most
        ([64] * 9, 8, list(range(8))),  # of one set nothing is copied
        ([1, 64, 1, 64, 1, 64], 8, [0, 1, 2, 3]),
    ],
)
def test_which_jobs_share_a_batch(sizes: list[int], most: int, expected: list[int], edits: dict[str, Edit]) -> None:
    jobs = [job(edits=a_set(str(size), *[edits["a"]] * size)) for size in sizes]
    chosen = together(jobs, most)
    assert [jobs.index(each) for each in chosen] == expected
