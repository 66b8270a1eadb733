"""Options of a command, declared as the fields of a frozen dataclass: one place for name, type, default, help, bounds.

A field says in its annotation how it is typed on the command line; `read_options` makes values of what was typed, and
`as_words` makes words of values, so that what was read can be typed again::

    @dataclass(frozen=True, kw_only=True)
    class Asked:
        seed: Annotated[int, Option("Of the order of cases.", least=0)] = 0
        at: Annotated[tuple[int, ...], Option("After so many edits.", form=NUMBERS)] = ()
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any, TypeVar, get_type_hints

from unike.core.errors import UnikeError

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Form:
    """How a value is typed.

    Args:
        typed: The type of what the command line hands on; None if it is that of the field.
        unset: What it hands on if nothing was typed; the field's own default if None.
        read: From what was handed on, and the flag it stood behind, to the value.
        write: From the value to what stands behind the flag; several texts are several flags.
    """

    typed: Any = None
    unset: Any = None
    read: Callable[[Any, str], Any] = lambda given, flag: given
    write: Callable[[Any], Sequence[str]] = lambda value: [str(value)]


PLAIN = Form()


@dataclass(frozen=True)
class Option:
    """A field as an option.

    Args:
        help: What it is, for ``--help``.
        flag: What it is called, ``--max-new-tokens``; after the field if empty.
        form: How it is typed.
        shown: What ``--help`` says of the default, if that is not to be seen from the value.
        metavar: What ``--help`` says of the value.
        least: The smallest number.
        told_if_default: Whether `as_words` has it even where it is what it would be anyway.
    """

    help: str
    flag: str = ""
    form: Form = PLAIN
    shown: str | None = None
    metavar: str | None = None
    least: int | None = None
    told_if_default: bool = True


@dataclass(frozen=True)
class Declared:
    """A field of a dataclass, with what its annotation says.

    Args:
        name: Of the field.
        type: Of its value.
        default: Of the field.
        notes: Everything else in its annotation.
        option: How it is typed; None if it is no option.
    """

    name: str
    type: Any
    default: Any
    notes: tuple[Any, ...]
    option: Option | None

    @property
    def flag(self) -> str:
        """What it is called on the command line."""
        given = self.option.flag if self.option else ""
        return given or f"--{self.name.replace('_', '-')}"


def declared(described: type) -> dict[str, Declared]:
    """The fields of a dataclass by their names, in order."""
    if described not in _DECLARED:
        _DECLARED[described] = _declared(described)
    return _DECLARED[described]


_DECLARED: dict[type, dict[str, Declared]] = {}


def _declared(described: type) -> dict[str, Declared]:
    hints = get_type_hints(described, include_extras=True)
    found = {}
    for field in fields(described):
        hint = hints[field.name]
        notes = getattr(hint, "__metadata__", ())
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        option = next((note for note in notes if isinstance(note, Option)), None)
        found[field.name] = Declared(field.name, hint.__origin__ if notes else hint, default, notes, option)
    return found


def read_options(described: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those fields that something was typed for.

    Args:
        described: A dataclass whose fields are options.
        given: Field to what the command line handed on; None, or an empty list, where nothing was typed.

    Raises:
        UnikeError: A text that does not say such a value.
    """
    options = {name: field for name, field in declared(described).items() if field.option is not None}
    return {
        name: field.option.form.read(given[name], field.flag)
        for name, field in options.items()
        if field.option is not None and given.get(name) not in (None, [], ())
    }


def as_words(values: Any, *, without: Collection[str] = ()) -> list[str]:
    """What has to be typed for the values of a dataclass whose fields are options; nothing for None.

    Args:
        values: The dataclass.
        without: Fields to leave out.
    """
    words = []
    for name, field in declared(type(values)).items():
        value = getattr(values, name)
        if field.option is None or value is None or name in without:
            continue
        if isinstance(value, bool) and field.option.form is PLAIN:
            words += [field.flag] if value else []
        elif field.option.told_if_default or value != field.default:
            words += [word for text in field.option.form.write(value) for word in (field.flag, text)]
    return words


# ---------------------------------------------------------------------- forms


def parse_numbers(text: str | None, option: str, kind: type[N]) -> tuple[N, ...]:
    """``"1,10,100"`` as numbers, in ascending order; none if there is no text.

    Raises:
        UnikeError: They are not, or not finite.
    """
    try:
        found = sorted({kind(part) for part in text.split(",")}) if text else []
        if all(map(math.isfinite, found)):
            return tuple(found)
    except ValueError:
        pass
    raise UnikeError(f"{option} {text!r} is not a list of numbers; write for example {option} 1,10,100")


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` to a value: JSON where it is, else the text itself.

    Raises:
        UnikeError: There is no ``=``, or a key is given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UnikeError(f"--set {pair!r} is not KEY=VALUE; write for example --set steps=10")
        if key in found:
            raise UnikeError(f"--set {key} is given twice; give it once")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def write_setting(value: Any) -> str:
    """A value as `parse_settings` reads it; a text without quotes, if it cannot be taken for anything else."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def skips(on_error: str, flag: str = "--on-error") -> bool:
    """Whether bad cases are to be left out.

    Raises:
        UnikeError: The option says neither that nor the contrary.
    """
    if on_error not in ("stop", "skip"):
        raise UnikeError(f"{flag} {on_error!r} is neither 'stop' nor 'skip'")
    return on_error == "skip"


NUMBERS = Form(
    str | None,
    read=partial(parse_numbers, kind=int),
    write=lambda numbers: [",".join(map(str, numbers))] if numbers else [],
)
"""Whole numbers in ascending order: ``1,10,100``."""

REALS = Form(
    str | None,
    read=partial(parse_numbers, kind=float),
    write=lambda numbers: [",".join(f"{number:g}" for number in numbers)] if numbers else [],
)
"""Numbers in ascending order: ``0,0.5``."""

NAMES = Form(list[str] | None, read=lambda given, flag: tuple(dict.fromkeys(given)), write=list)
"""Names, each behind a flag of its own, each once."""

KEY_VALUES = Form(
    list[str] | None,
    read=lambda given, flag: parse_settings(given),
    write=lambda settings: [f"{key}={write_setting(value)}" for key, value in settings.items()],
)
"""``KEY=VALUE``, each behind a flag of its own."""

SKIPS = Form(str, "stop", read=skips, write=lambda skip: ["skip"] if skip else [])
"""``stop`` or ``skip``."""
