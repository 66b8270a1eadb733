"""What comes in through a door is checked there, once: JSON, and what it has to say."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

STRICT = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)
"""Of what is read: a number is not a text, NaN is no number, and what a newer version says beside is passed over."""

DEEPEST = 100
"""Lists in lists: nothing that is written here has more than a few."""

LONGEST = 20
"""Digits of a whole number: none that fits into 64 bits has more."""


class Schema(BaseModel):
    """What a JSON object has to say."""

    model_config = STRICT


SchemaT = TypeVar("SchemaT", bound=BaseModel)


def _text(value: Any) -> Any:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("it is not the name of a file")
    return value


FileName = Annotated[Any, AfterValidator(_text)]
"""A text that need not be UTF-8, for names of files are not."""


def checked(schema: type[SchemaT], value: Any) -> SchemaT:
    """A value that says what it has to.

    Raises:
        ValueError: It does not; names the place.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise ValueError(what_is_wrong(error)) from None


def read_as(adapter: TypeAdapter[Any], text: bytes) -> Any:
    """One JSON value as a type; half a character, which JSON can name, is read as a question mark.

    Raises:
        ValueError: It is not JSON, or not one of those; names the place.
    """
    if b"\\u" in text:
        text = json.dumps(parse_json(text), ensure_ascii=False).encode(errors="replace")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise ValueError(what_is_wrong(error)) from None


def what_is_wrong(error: ValidationError) -> str:
    """The first of several mistakes in a line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    said = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {said}" if place else said


def parse_json(text: bytes | str) -> Any:
    """A JSON value of ours, which is neither deep nor has numbers that no computer counts with.

    Raises:
        ValueError: It is not JSON, or is that.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)
