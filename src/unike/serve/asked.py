"""A request while it is being answered: from its body to jobs of the engine, and from these to OpenAI's answers."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from unike.backbones.adapter import Backbone
from unike.backbones.decoding import Decoding
from unike.backbones.encoding import TooLong
from unike.backbones.given import given_queries
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.serve.chat import ChatRequest, conversation, named, read_request
from unike.serve.errors import ApiError, invalid, told
from unike.serve.jobs import Gone, Job, TimedOut
from unike.serve.keys import Holder
from unike.serve.pictures import Pictures, unnamed
from unike.serve.sets import NOTHING, EditSet, Sets
from unike.serve.settings import Settings

PING = 15.0
"""Seconds of silence in a stream, after which a line says that it is still there."""


class Asked:
    """What is asked in one request: as many rows as it wants answers.

    Args:
        request: As it was sent.
        jobs: The rows.
        edits: Under which they are asked.
        fingerprint: Of the model.
    """

    def __init__(self, request: ChatRequest, jobs: Sequence[Job], edits: EditSet, fingerprint: str) -> None:
        self.request, self.jobs, self.edits = request, jobs, edits
        self.name, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.fingerprint = fingerprint
        self.on_end: Callable[[], None] = lambda: None
        self._events: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()
        self._held: tuple[int, str | None] | None = None
        self._left = len(jobs)
        self._loop = asyncio.get_running_loop()
        for number, job in enumerate(jobs):
            job.over = partial(self._send, number, None)
            if request.stream:
                job.decoding.tell = partial(self._send, number)

    def _send(self, number: int, piece: str | None) -> None:
        """From the engine's thread: a piece of an answer, or None for its end."""
        with suppress(RuntimeError):  # the server is gone
            self._loop.call_soon_threadsafe(self._take_in, number, piece)

    def _take_in(self, number: int, piece: str | None) -> None:
        self._left -= piece is None
        self._events.put_nowait((number, piece))
        if not self._left:
            self.on_end()

    def give_up(self) -> None:
        """Nobody waits any more."""
        for job in self.jobs:
            job.is_gone = True

    async def all_over(self) -> None:
        """Wait for all answers.

        Raises:
            ApiError: One cannot be given.
        """
        for _ in self.jobs:
            number, _piece = await self._events.get()
            self._check(number)

    async def first(self) -> None:
        """Wait until something can be said, so that what is wrong is told before a stream begins.

        Raises:
            ApiError: Nothing can.
        """
        self._held = await self._events.get()
        if self._held[1] is None:
            self._check(self._held[0])

    def _check(self, number: int) -> None:
        error = self.jobs[number].error
        if error is not None:
            self.give_up()
            raise error_of(error)

    # ------------------------------------------------------------------ as OpenAI has it

    @property
    def usage(self) -> dict[str, int]:
        """Tokens: the prompt counts once, however many answers it gets."""
        prompt = max(job.decoding.prompt_tokens for job in self.jobs)
        written = sum(len(job.decoding.tokens) for job in self.jobs)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def completion(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": job.decoding.text, "refusal": None},
                "logprobs": None,
                "finish_reason": job.decoding.reason,
            }
            for number, job in enumerate(self.jobs)
        ]
        return self._about("chat.completion") | {"choices": choices, "usage": self.usage}

    async def chunks(self) -> AsyncGenerator[str, None]:
        """The answer in pieces, as server-sent events."""
        with_usage = bool(self.request.stream_options and self.request.stream_options.include_usage)
        try:
            for number in range(len(self.jobs)):
                yield self._chunk(number, {"role": "assistant", "content": ""}, with_usage)
            left = len(self.jobs)
            while left:
                event = await self._next()
                if event is None:
                    yield ": still there\n\n"
                    continue
                number, piece = event
                if piece is not None:
                    yield self._chunk(number, {"content": piece}, with_usage)
                    continue
                self._check(number)
                left -= 1
                yield self._chunk(number, {}, with_usage, self.jobs[number].decoding.reason)
            if with_usage:
                yield _event(self._about("chat.completion.chunk") | {"choices": [], "usage": self.usage})
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body)
        finally:
            self.give_up()

    async def _next(self) -> tuple[int, str | None] | None:
        """What comes next; None after some silence."""
        if self._held is not None:
            held, self._held = self._held, None
            return held
        with suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._events.get(), PING)
        return None

    def _chunk(self, number: int, delta: dict[str, Any], with_usage: bool, reason: str | None = None) -> str:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if with_usage else {}
        return _event(self._about("chat.completion.chunk") | {"choices": [choice]} | usage)

    def _about(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": kind,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
        }


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


def error_of(error: Exception) -> ApiError:
    """What a client is told of an answer that could not be given."""
    if isinstance(error, TimedOut):
        return ApiError(504, "the answer was not there in time; ask for a shorter one, or try again", code="timeout")
    if isinstance(error, Gone):
        return ApiError(503, "the server is shutting down; try again", headers={"retry-after": "1"})
    return told(error)


@dataclass(frozen=True)
class Desk:
    """Where requests become questions.

    Args:
        backbone: The model.
        sets: The store's sets.
        pictures: Where pictures of requests are kept.
        settings: What is allowed.
    """

    backbone: Backbone
    sets: Sets
    pictures: Pictures
    settings: Settings

    def edits(self, request: ChatRequest, holder: Holder) -> EditSet:
        """The edits that a request names.

        Raises:
            ApiError: There are none like that.
        """
        chosen = named(request.model, request.edits, self.settings)
        if chosen is None:
            return NOTHING
        if isinstance(chosen, list):
            return self.sets.chosen(chosen, holder)
        return self.sets.named(*chosen, holder)

    def read(self, body: bytes, holder: Holder) -> tuple[ChatRequest, list[Job], EditSet]:
        """A request as jobs; its picture is to be dropped when they are over.

        Raises:
            ApiError: It cannot be answered.
        """
        request = read_request(body, self.settings)
        edits = self.edits(request, holder)
        said = conversation(request.messages)
        image = None if said.image is None else self.pictures.keep(said.image)
        try:
            query = Query(said.prompt, image, history=said.history, system=said.system)
            most = request.max_completion_tokens or request.max_tokens or self.settings.max_new_tokens
            self.check(query, most)
            deadline = time.monotonic() + self.settings.timeout
            ways = [self.way(request, number, most) for number in range(request.n or 1)]
            return request, [Job(query, way, edits, deadline=deadline) for way in ways], edits
        except UnikeError as error:
            self.drop(image)
            raise told(error) from None
        except BaseException:
            self.drop(image)
            raise

    def drop(self, image: Any) -> None:
        """Remove the picture of a request, if it has one."""
        if image is not None:
            self.pictures.drop(image)

    def check(self, query: Query, most: int) -> None:
        """Refuse what the model cannot read, or cannot go on from for so long, before it waits with others.

        Raises:
            UnikeError: It says something that no tokenizer reads, or has a picture of a size that is not read.
            ApiError: It is too long.
        """
        given_queries([query])
        try:
            self.backbone.check(query)
        except UnikeError as error:
            code = "context_length_exceeded" if isinstance(error, TooLong) else None
            raise invalid(" ".join(str(error).split()), "messages", code) from None
        limit = getattr(self.backbone.text_config, "max_position_embeddings", None)
        length = len(self.backbone.tokenize(query, "")[0])
        if limit is not None and length + most > limit:
            raise invalid(
                f"the messages take {length} tokens and the answer up to {most}, but the model has room for {limit}",
                "messages",
                "context_length_exceeded",
            )
        if query.image is not None:
            with unnamed(query.image):
                self.backbone.check_image(query.image)

    def way(self, request: ChatRequest, number: int, most: int) -> Decoding:
        """How one of a request's answers is written; each has a seed of its own."""
        stops = request.stops if self.settings.lines else (*request.stops, "\n")
        return Decoding(
            max_new_tokens=most,
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=None if request.seed is None else (request.seed + number) % (1 << 63),
            stop=tuple(dict.fromkeys(stops)),
        )
