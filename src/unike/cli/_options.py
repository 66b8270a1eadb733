"""Options that are declared at the fields of a dataclass, as parameters of a command."""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Annotated, Any

import typer

from unike.core.options import Declared, declared

Command = Callable[..., None]


def takes(
    *described: type, without: Collection[str] = (), required: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command the options of dataclasses; those that must be given come first.

    Args:
        *described: The dataclasses. The command is called with what was typed for each of their fields, as a mapping
            under the name ``given``, and with its own parameters.
        without: Fields that are no options of this command.
        required: Fields that must be given.
    """
    every = {name: field for holder in described for name, field in declared(holder).items()}
    options = {name: field for name, field in every.items() if field.option and name not in without}

    def decorate(command: Command) -> Command:
        own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "given"]
        parameters = [_parameter(field, name in required) for name, field in options.items()]
        merged = sorted([*parameters, *own], key=lambda each: each.default is not inspect.Parameter.empty)

        @wraps(command)
        def called(**typed: Any) -> None:
            given: Mapping[str, Any] = {name: typed.pop(name) for name in options}
            command(given=given, **typed)

        called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads both
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in merged]
        )
        called.__annotations__ = {each.name: each.annotation for each in merged}
        del called.__wrapped__  # whose parameters are others
        return called

    return decorate


def _parameter(field: Declared, required: bool) -> inspect.Parameter:
    option = field.option
    assert option is not None
    default = option.form.unset if option.form.typed is not None else field.default
    shown: dict[str, Any] = {} if option.shown is None else {"show_default": option.shown}
    info = typer.Option(field.flag, help=option.help, metavar=option.metavar, min=option.least, **shown)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[option.form.typed or field.type, info],
    )
