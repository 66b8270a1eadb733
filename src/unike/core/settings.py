"""Settings that users write: frozen, checked, and refused with one line that names the key."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from unike.core import registry
from unike.core.errors import UnikeError


class Settings(BaseModel):
    """A frozen set of settings; unknown keys are errors. Those of a part are named with a dot: ``pairs.n``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, settings: dict[str, Any]) -> Self:
        """Check settings that a user wrote.

        Raises:
            UnikeError: An unknown key or an impossible value; the message names it.
        """
        try:
            return cls.model_validate(unfolded(settings))
        except ValidationError as error:
            first = error.errors()[0]
            key, why = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                raise UnikeError(registry.did_you_mean("setting", key, sorted(cls.names()))) from None
            if not key:  # no single one of them is wrong
                raise UnikeError(f"settings do not go together: {why}") from None
            raise UnikeError(f"setting {key}={first['input']!r}: {why}") from None

    @classmethod
    def names(cls) -> list[str]:
        """What can be set, parts by their own settings."""
        return list(folded(cls.parse({}).model_dump(mode="json")))

    def fewest(self) -> dict[str, Any]:
        """The fewest settings that make these: what has to be said with ``--set``, as JSON has it.

        What follows from others, as much does from ``paper``, is left out.
        """
        wanted, default = self.model_dump(mode="json"), folded(type(self).parse({}).model_dump(mode="json"))
        chosen = {key: value for key, value in folded(wanted).items() if key not in default or default[key] != value}
        for key in list(chosen):
            fewer = {name: value for name, value in chosen.items() if name != key}
            try:
                if type(self).parse(fewer).model_dump(mode="json") == wanted:
                    chosen = fewer
            except UnikeError:  # it does not go without this one
                continue
        return chosen


def unfolded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a tree: ``{"pairs.n": 1}`` to ``{"pairs": {"n": 1}}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        part, dot, own = str(name).partition(".")
        found = merged(found, {part: unfolded({own: value})} if dot else {name: value})
    return found


def folded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The other way round; what is empty stays what it is."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= {f"{name}.{own}": inner for own, inner in folded(value).items()}
        else:
            found[name] = value
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees, ``over`` where they differ."""
    together = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(together.get(key), dict)
        together[key] = merged(together[key], value) if both else value
    return together


def _each_once(layers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(layers)) < len(layers):
        raise ValueError("a layer is named twice; name each once")
    return layers


Layers = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_each_once)]
"""Layers that are edited, counted from the top when negative."""
