"""Where a training stands: network, optimiser, the best network so far and the log, never a pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from unike.core.errors import UnikeError
from unike.core.files import SealedFolder, replace_file
from unike.core.folders import replace_folder
from unike.editors.trained.artifact import LOG_FILE, log_lines

CHECKPOINT = SealedFolder(
    "checkpoint", "checkpoint.json", "checkpoint.safetensors", version=1, keys=frozenset({"made_from", "log"})
)


@dataclass(frozen=True)
class Checkpoints:
    """The last checkpoint of a training, in a folder of its own, and its log for people to look at.

    Args:
        folder: Is made.
        made_from: JSON values that tell this training from others.
    """

    folder: Path
    made_from: Mapping[str, Any]

    def save(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        best: Mapping[str, Tensor],
        log: Sequence[Mapping[str, Any]],
    ) -> None:
        """Replace the checkpoint that is there.

        Args:
            network: As it is now.
            optimizer: Of the network.
            best: The tensors of the best network so far.
            log: Every validation.

        Raises:
            UnikeError: The folder cannot be written.
        """
        tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": t for name, t in state.items() if isinstance(t, Tensor)}
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        files = CHECKPOINT.files({"made_from": self.made_from, "log": log}, content)
        replace_folder(self._place, files, known_by=CHECKPOINT.description)
        replace_file(self.folder / LOG_FILE, log_lines(log))

    def restore(
        self, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Put network and optimiser where the checkpoint has them, if there is one.

        Returns:
            ``best`` and ``log`` of `save`; nothing in either if there is no checkpoint.

        Raises:
            UnikeError: It is one of another training, or damaged.
        """
        if not CHECKPOINT.lies_in(self._place):
            return {}, []
        described, content = CHECKPOINT.read(self._place)
        if described["made_from"] != self.made_from:
            raise UnikeError(
                f"{self._place} is of a run with other settings, data or model; delete {self.folder} to begin anew, or "
                "choose another folder"
            )
        try:
            tensors = load(content)
            network.load_state_dict(_below("network", tensors))
            states: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _below("optimizer", tensors).items():
                number, _, key = name.partition(".")
                states.setdefault(int(number), {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
            return _below("best", tensors), list(described["log"])
        except (LookupError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise CHECKPOINT.damaged(self._place, repr(error)) from None

    @property
    def _place(self) -> Path:
        return self.folder / "checkpoint"


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
