"""Settings that users write: frozen, checked, and refused with one line that names the key."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from unike.core import registry
from unike.core.errors import UnikeError


class Settings(BaseModel):
    """A frozen set of settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, settings: dict[str, Any]) -> Self:
        """Check settings that a user wrote.

        Raises:
            UnikeError: An unknown key or an impossible value; the message names it.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            key, why = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                raise UnikeError(registry.did_you_mean("setting", key, sorted(cls.model_fields))) from None
            if not key:  # no single one of them is wrong
                raise UnikeError(f"settings do not go together: {why}") from None
            raise UnikeError(f"setting {key}={first['input']!r}: {why}") from None

    def fewest(self) -> dict[str, Any]:
        """The fewest settings that make these: what has to be said with ``--set``, as JSON has it.

        What follows from others, as much does from ``paper``, is left out.
        """
        wanted, default = self.model_dump(mode="json"), type(self).parse({}).model_dump(mode="json")
        chosen = {key: value for key, value in wanted.items() if default[key] != value}
        for key in list(chosen):
            fewer = {name: value for name, value in chosen.items() if name != key}
            try:
                if type(self).parse(fewer).model_dump(mode="json") == wanted:
                    chosen = fewer
            except UnikeError:  # it does not go without this one
                continue
        return chosen


def _each_once(layers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(layers)) < len(layers):
        raise ValueError("a layer is named twice; name each once")
    return layers


Layers = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_each_once)]
"""Layers that are edited, counted from the top when negative."""
