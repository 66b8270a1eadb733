"""What a request for a chat completion says, in OpenAI's schema, and what of it is not to be had here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unike.core.errors import UnikeError
from unike.core.schema import parse_json
from unike.data.queries import Turn
from unike.serve.bodies import check_parts
from unike.serve.errors import ApiError, invalid
from unike.serve.settings import Settings
from unike.store.names import set_and_version

IGNORED = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"}
)
"""Fields that change no answer here."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that are not supported, with the values, beside null, that ask for nothing."""

SEEDS = 1 << 63

MOST_IDS = 100
"""Edits that a request may name one by one."""


BRANCHES = ("str", "list[str]", "ImageURL")
"""How pydantic calls the types that a field may be of."""


class Strict(BaseModel):
    """A JSON object that says nothing else."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImageURL(Strict):
    """Where a picture is; in which detail it is read is the model's own."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageURL


class TextPart(Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Strict):
    """Of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """All that it says; parts stand in lines of their own."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> list[str]:
        """Its pictures' URLs."""
        parts = [] if isinstance(self.content, str) else self.content
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


class StreamOptions(Strict):
    """What comes with a stream."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = False


class ChatRequest(Strict):
    """The body of ``POST /v1/chat/completions``, without what is ignored.

    ``edits`` is ours: a set of the store, ``"tenant-a"`` or ``"tenant-a:7"``, or ids of edits; the former may also
    stand in the model's name: ``"mini@tenant-a"``.
    """

    model: str
    messages: list[Message] = Field(min_length=1)
    edits: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


@dataclass(frozen=True)
class Conversation:
    """A request's messages as a question.

    Args:
        prompt: The last question.
        history: The turns before.
        system: What system messages say.
        image: URL of the picture, or None.
    """

    prompt: str
    history: tuple[Turn, ...]
    system: str
    image: str | None


def read_request(body: bytes, settings: Settings) -> ChatRequest:
    """The body of a request, checked.

    Raises:
        ApiError: It is no JSON, lacks something, or asks for what is not to be had; names the field.
    """
    request = parsed(
        ChatRequest, {key: value for key, value in read_body(body).items() if not _asks_nothing(key, value)}
    )
    most = request.max_completion_tokens or request.max_tokens or 1
    if most > settings.most_tokens:
        raise invalid(f"max_tokens is {most}; an answer has at most {settings.most_tokens} here", "max_tokens")
    if (request.n or 1) > settings.max_batch:
        raise invalid(f"n is {request.n}; it is at most {settings.max_batch} here", "n")
    if len(request.stops) > 4 or not all(request.stops):
        raise invalid("stop is one to four texts, none of them empty", "stop")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is for streams; set stream to true", "stream_options")
    if sum(len(message.text) for message in request.messages) > settings.max_prompt:
        raise invalid(
            f"the messages have more than {settings.max_prompt:,} characters; shorten them",
            "messages",
            "context_length_exceeded",
        )
    return request


def read_body(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: It is none, or has absurdly many values.
    """
    check_parts(body)
    try:
        value = parse_json(body)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid("the body is no JSON object")
    return value


def parsed(schema: type[Any], value: Mapping[str, Any]) -> Any:
    """A value in a schema.

    Raises:
        ApiError: It is not; names the field.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = _telling(error.errors(include_url=False, include_input=False))
        place = _place(first)[:100]
        if first["type"] == "extra_forbidden":
            raise invalid(f"the field {place!r} is not known here; leave it out", place) from None
        raise invalid(f"{place}: {first['msg']}", place) from None


def _telling(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a value that may be of several types, the error of the one that it is of: that looks furthest into it."""
    first = errors[0]
    at = len(first["loc"])
    return next(
        (each for each in errors if each["loc"][: at - 1] == first["loc"][:-1] and len(each["loc"]) > at), first
    )


def _place(error: Mapping[str, Any]) -> str:
    """Where it is wrong, as the client has it: without the types that were tried."""
    *way, last = error["loc"]
    is_named = last not in BRANCHES or error["type"] in ("extra_forbidden", "missing")
    parts = [*(part for part in way if part not in BRANCHES), *([last] if is_named else [])]
    for number, part in enumerate(parts):
        if str(part).startswith(
            "list[tagged-union["
        ):  # what follows is a place in the list, and the kind that is there
            del parts[number + 2 : number + 3], parts[number]
            break
    return ".".join(map(str, parts))


def _asks_nothing(key: str, value: Any) -> bool:
    """Whether a field can be left out.

    Raises:
        ApiError: It asks for something that is not to be had.
    """
    if key in NEUTRAL and value is not None and not any(value == each for each in NEUTRAL[key]):
        raise invalid(f"{key} is not supported here; leave it out", key, "unsupported_parameter")
    return key in IGNORED or key in NEUTRAL


def conversation(messages: list[Message]) -> Conversation:
    """Messages as a question with what was said before it.

    Messages of one role that follow each other are one. The picture, wherever it stands, is shown with the first
    question.

    Raises:
        ApiError: They do not begin and end with a question, or have several pictures.
    """
    first = next(
        (i for i, message in enumerate(messages) if message.role not in ("system", "developer")), len(messages)
    )
    said = messages[first:]
    if any(message.role in ("system", "developer") for message in said):
        raise invalid("a system message stands before the first question, not after it", "messages")
    if not said or said[0].role != "user" or said[-1].role != "user":
        raise invalid("a conversation begins and ends with a message of the user", "messages")
    if any(message.images for message in messages if message.role != "user"):
        raise invalid("a picture stands in a message of the user", "messages")
    images = list(dict.fromkeys(url for message in said for url in message.images))
    if len(images) > 1:
        raise invalid(f"{len(images)} pictures were given; a conversation is about one, or none", "messages")
    spoken: list[tuple[str, str]] = []
    for message in said:
        if spoken and spoken[-1][0] == message.role:
            spoken[-1] = (message.role, "\n".join(filter(str.strip, (spoken[-1][1], message.text))))
        else:
            spoken.append((message.role, message.text))
    questions = [text for role, text in spoken if role == "user"]
    answers = [text for role, text in spoken if role == "assistant"]
    if not all(map(str.strip, questions)):
        raise invalid("a message of the user has no text; ask something about the picture", "messages")
    history = tuple(Turn(question, answer) for question, answer in zip(questions, answers, strict=False))
    system = "\n".join(filter(str.strip, (message.text for message in messages[:first])))
    return Conversation(questions[-1], history, system, images[0] if images else None)


def named(model: str, edits: str | list[str] | None, settings: Settings) -> tuple[str, int | None] | list[str] | None:
    """Which edits a request names: a set and perhaps its version, ids, or None for no edits.

    Raises:
        ApiError: The model is another one, edits are named twice, or a version is no number.
    """
    base, at, chosen = (model, "", "") if model == settings.name else model.rpartition("@")
    if base != settings.name:
        raise ApiError(
            404,
            f"there is no model {model[:80]!r} here; it is {settings.name!r}, or {settings.name + '@SET'!r} with edits",
            code="model_not_found",
            param="model",
        )
    if at and edits is not None:
        raise invalid("edits are named by the model and by the field 'edits'; leave one of them out", "edits")
    if isinstance(edits, list):
        if len(edits) > MOST_IDS:
            raise invalid(f"{len(edits)} edits are named; make a set of more than {MOST_IDS}", "edits")
        return edits
    if edits is None and not at:
        return None
    try:
        return set_and_version(edits or chosen)
    except UnikeError as error:
        raise invalid(str(error), "edits") from None
