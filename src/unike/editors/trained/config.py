"""Settings of training, those of the loop and those of a method's network, as a user writes them."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from unike.core.errors import UnikeError
from unike.core.registry import did_you_mean
from unike.core.settings import Settings
from unike.editors.trained.base import TrainedEditor


class TrainConfig(Settings):
    """Settings of `unike.editors.trained.loop.train`, whatever the method.

    Attributes:
        steps: At most so many.
        batch: Cases a step.
        cases: Learn from at most so many.
        held_out: Validate on at most so many.
        every: Steps between validations.
        patience: Validations without a gain after which training ends.
        cache_gb: Memory for what is computed once, in GiB; what does not fit is computed in every epoch.
        seed: Of the choice of cases, their order, and the network's start.
    """

    steps: int = Field(default=5000, ge=0)
    batch: int = Field(default=8, ge=1)
    cases: int = Field(default=1000, ge=1)
    held_out: int = Field(default=64, ge=1)
    every: int = Field(default=100, ge=1)
    patience: int = Field(default=10, ge=1)
    cache_gb: float = Field(default=2.0, ge=0)
    seed: int = 0


def trainable(editor: Any) -> TrainedEditor[Any]:
    """The editor, if it has a network.

    Raises:
        UnikeError: It has none.
    """
    if not isinstance(editor, TrainedEditor):
        hint = "run: unike prepare" if editor.name == "unike" else "edit with it right away"
        raise UnikeError(f"{editor.name} has no network to train; {hint}")
    return editor


def split_settings(editor: TrainedEditor[Any], settings: Mapping[str, Any]) -> tuple[Any, TrainConfig]:
    """Settings that a user wrote, shared out: those of the network and those of the loop.

    Raises:
        UnikeError: An unknown key or an impossible value.
    """
    of_loop = {key: value for key, value in settings.items() if key in TrainConfig.model_fields}
    of_network = {key: value for key, value in settings.items() if key not in of_loop}
    known = [*editor.network_settings.model_fields, *TrainConfig.model_fields]
    for key in of_network:
        if key not in known:
            raise UnikeError(did_you_mean("setting", key, sorted(known)))
    return editor.network_settings.parse(of_network), TrainConfig.parse(of_loop)
