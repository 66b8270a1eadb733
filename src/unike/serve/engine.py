"""The one thread that runs the model: what waits is answered in batches, and edits are made between them.

Requests of users with other edits share a batch, each row under its own. Nothing of a request is kept for another: from
one batch to the next there are only stacks of edits, by the set and the version that they are.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any, TypeVar

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.edits.edited import EditedModel, RowsEdited
from unike.serve.errors import LOG
from unike.serve.jobs import Gone, Job, together
from unike.serve.sets import EditSet

T = TypeVar("T")

MOST_WORK = 16
"""Edits that wait to be made."""


class Full(Exception):
    """There is too much to do; come again."""


class Engine:
    """A model, and who asks it.

    Args:
        backbone: The model; nobody else uses it while the engine runs.
        max_batch: Answers that are written together.
        max_waiting: Answers that wait; further ones are refused.
        gather: Seconds that a batch waits for others, if there were more of them lately.
        keep: So many stacks are kept.
        on_batch: Told of each batch: its rows, its sets, and the seconds it took.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_batch: int = 16,
        max_waiting: int = 128,
        gather: float = 0.03,
        keep: int = 32,
        on_batch: Callable[[int, int, float], None] = lambda rows, sets, seconds: None,
    ) -> None:
        self.backbone, self.max_batch, self.max_waiting = backbone, max_batch, max_waiting
        self.gather, self.keep, self.on_batch = gather, keep, on_batch
        self._models: OrderedDict[Hashable, EditedModel] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._running: Sequence[Job] = ()
        self._work: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = Condition()
        self._expected = 1
        self._closed = False
        self._thread = Thread(target=self._run, name="unike-engine", daemon=True)

    # ------------------------------------------------------------------ for others' threads

    def start(self) -> None:
        """Begin; twice is once."""
        with self._changed:
            if self._thread.ident is None:
                self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive() and not self._closed

    @property
    def n_waiting(self) -> int:
        """Answers that wait."""
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Have answers written, all of them or, if there is no room, none.

        Raises:
            Full: Too many wait.
        """
        with self._changed:
            if len(self._waiting) + len(jobs) > self.max_waiting:
                self._drop_unwanted()
            if self._closed or len(self._waiting) + len(jobs) > self.max_waiting:
                raise Full(f"{len(self._waiting)} answers wait to be written; try again later")
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def between(self, work: Callable[[], T]) -> Future[T]:
        """Do something with the model between two batches.

        Returns:
            What it returns or raises; while it waits it can be cancelled.

        Raises:
            Full: Too much waits.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed or len(self._work) >= MOST_WORK:
                raise Full(f"{len(self._work)} edits wait to be made; try again later")
            self._work.append((work, future))
            self._changed.notify_all()
        return future

    def close(self, patience: float = 10.0) -> None:
        """End: what waits is not answered, and what is being written is broken off."""
        with self._changed:
            self._closed = True
            for job in self._running:
                job.is_gone = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(patience)

    # ------------------------------------------------------------------ in its own thread

    def _run(self) -> None:
        turn = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._work or self._waiting)
                if self._closed:
                    break
                turn += 1
                work = self._work.popleft() if self._work and (turn % 2 or not self._waiting) else None
                self._running = batch = self._next() if work is None else []
            if work is not None:
                _do(*work)
            elif batch:
                self._answer(batch)
        for job in self._waiting:
            job.finish(Gone())
        for _, future in self._work:
            future.cancel()

    def _next(self) -> list[Job]:
        """The next batch.

        Those who were answered just now may ask again: for a moment as many are waited for as there were then. Whoever
        asks alone does not wait.
        """

        def enough() -> bool:
            return self._closed or len(self._waiting) >= min(self.max_batch, self._expected)

        self._changed.wait_for(enough, self.gather)
        self._drop_unwanted()
        if not self._waiting or self._closed:
            return []
        self._expected = len(self._waiting)
        batch = together(self._waiting, self.max_batch)
        chosen = set(batch)
        self._waiting = deque(job for job in self._waiting if job not in chosen)
        return batch

    def _drop_unwanted(self) -> None:
        unwanted = [job for job in self._waiting if job.is_unwanted()]
        if unwanted:
            self._waiting = deque(job for job in self._waiting if job not in set(unwanted))
        for job in unwanted:
            job.finish()

    def _answer(self, batch: Sequence[Job]) -> None:
        """Answer a batch; if that fails, each alone, so that one does not spoil it for others."""
        start = time.perf_counter()
        try:
            self._write(batch)
            for job in batch:
                job.finish()
        except Exception as error:  # whatever fails for one must not end the thread that answers all
            if not isinstance(error, UnikeError):
                LOG.exception("a batch of %d failed", len(batch))
            for job in batch:
                if len(batch) > 1 and job.anew():
                    self._answer([job])
                job.finish(error)
        finally:
            self.on_batch(len(batch), len({job.edits.key for job in batch}), time.perf_counter() - start)

    def _write(self, batch: Sequence[Job]) -> None:
        queries, decoding = [job.query for job in batch], [job.decoding for job in batch]
        first = batch[0].edits
        if all(job.edits.key == first.key for job in batch):
            answers = self._model(first).generate(queries, decoding=decoding)
        else:
            sets = [job.edits.edits for job in batch]
            answers = RowsEdited(self.backbone, sets).generate(queries, decoding=decoding)
        for way, answer in zip(decoding, answers, strict=True):
            if way.reason is None:  # a method had the answer, and the model was not asked
                way.say(answer)

    def _model(self, edits: EditSet) -> EditedModel:
        """The model under a set, with whatever its stack has worked out before."""
        if edits.key not in self._models:
            self._models[edits.key] = EditedModel(self.backbone, edits.edits)
        self._models.move_to_end(edits.key)
        while len(self._models) > self.keep:
            self._models.popitem(last=False)
        return self._models[edits.key]


def _do(work: Callable[[], T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:  # it is raised again where the work was asked for
        future.set_exception(error)
