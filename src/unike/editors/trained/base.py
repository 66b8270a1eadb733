"""What editors with a trained network share: how the loop trains one, and updates of low rank."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Hooks
from unike.core.errors import UnikeError
from unike.core.memo import MemoOf
from unike.core.settings import Settings
from unike.data.leaks import Trace
from unike.data.queries import EditCase, Query
from unike.editors.base import Editor
from unike.editors.common.low_rank import install_low_rank
from unike.editors.trained import meta_objective
from unike.editors.trained.artifact import Trained, find, fingerprint_of, how_to_train, stamp
from unike.editors.trained.hypernetwork import Factors, Hypernetwork
from unike.editors.trained.meta_objective import FACT, KINDS, FrozenQuestions, Objective
from unike.editors.trained.token_gradients import TokenGradients, token_gradients
from unike.edits.edit import Edit, EditorConfig
from unike.edits.group import Group
from unike.edits.layout import Layout, declared, matrix_sizes
from unike.edits.weights import WeightUpdate

PARTS = ("reads", "writes")
"""The factors of an update, as an edit's tensors are called."""


class TrainedConfig(EditorConfig):
    """Settings of an editor with a trained network; those of the network were chosen when it was trained.

    Attributes:
        trained: Folder of `unike train`; None for the one that is found for the backbone.
    """

    PLACES: ClassVar[tuple[str, ...]] = ("trained",)

    trained: str | None = None


TrainedConfigT = TypeVar("TrainedConfigT", bound=TrainedConfig)


class Frozen(Protocol):
    """Whatever an editor needs of some cases to train on them, computed once."""

    @property
    def nbytes(self) -> int:
        """Memory, in bytes: readings are kept as long as they fit."""


_NETWORKS: MemoOf[tuple[type, str | None], nn.Module] = MemoOf()
"""Of each backbone, by the method and the folder that is not the one of the backbone."""


class TrainedEditor(Editor[TrainedConfigT]):
    """An editing method with a network that has to be trained for each backbone.

    The training loop calls `build`, `optimizer`, and for each batch of cases `read` (once, kept), `objective`, `total`,
    `warmth` and `stepped`. Losses of a method with an objective of its own may have names of their own.
    """

    network_settings: ClassVar[type[Settings]]
    """Of the network and its training, as ``unike train --set`` takes them."""

    weights: ClassVar[Mapping[str, float]]
    """Of each loss in what decides which network is the best; and in what is minimised, unless `total` is another."""

    clip: ClassVar[float | None] = None
    """Largest norm of a step's gradient."""

    def network(self, backbone: Backbone) -> nn.Module:
        """The trained network for a backbone, ready to be used; read once, and again when another lies there.

        Raises:
            UnikeError: There is none; the message says what to run.
        """
        there = stamp(self.name, backbone, self.config.trained)
        key = type(self), self.config.trained
        return _NETWORKS.of(backbone).get(key, partial(self._read_network, backbone), stamp=there)

    def _read_network(self, backbone: Backbone) -> nn.Module:
        trained = find(self.name, backbone, self.config.trained)
        settings = self.settings_of(trained)
        self.check_network(settings)
        try:
            network = self.build(backbone, settings)
            network.load_state_dict(trained.tensors)
        except RuntimeError:
            raise UnikeError(
                f"the trained network of {self.name} is not of the form that its settings say; "
                f"{how_to_train(self.name, backbone)}"
            ) from None
        return network.eval().requires_grad_(False)

    def settings_of(self, trained: Trained) -> Any:
        """Settings of a network that was read.

        Raises:
            UnikeError: They are none of this method's.
        """
        return self.network_settings.parse(trained.settings)

    def check_network(self, settings: Any) -> None:
        """Refuse what the settings of a network that was read would load; most load nothing.

        Raises:
            UnikeError: A model that nobody named who uses the network.
        """

    def prepare(self, backbone: Backbone) -> None:
        """Read the network."""
        self.network(backbone)

    def learned_from(self, backbone: Backbone) -> Sequence[Trace]:
        """Every question that the network was trained on."""
        return find(self.name, backbone, self.config.trained).sources

    def learned(self, backbone: Backbone) -> str:
        """The hash of the network."""
        return fingerprint_of(self.name, backbone, self.config.trained)

    @abstractmethod
    def build(self, backbone: Backbone, settings: Any, seed: int = 0) -> nn.Module:
        """A new network on the backbone's device; everything of the backbone that it uses stays out of its tensors."""

    @abstractmethod
    def optimizer(self, network: Any, settings: Any) -> torch.optim.Optimizer:
        """What trains a network."""

    @abstractmethod
    def read(self, backbone: Backbone, network: Any, cases: Sequence[EditCase]) -> Frozen:
        """What does not depend on the network's weights, of a batch of cases."""

    @abstractmethod
    def objective(self, backbone: Backbone, network: Any, frozen: Any) -> Objective:
        """Losses and scores of edits by a network, with gradients for it; in training, no more than `total` needs."""

    def total(self, network: Any, losses: Mapping[str, Tensor]) -> Tensor:
        """What is minimised, a scalar, from losses ``[B]`` each."""
        return torch.stack([weight * losses[kind].mean() for kind, weight in self.weights.items()]).sum()

    def warmth(self, settings: Any, step: int) -> float:
        """What every learning rate is multiplied with at a step, of which the first is 1; most methods have no warm-up.

        It may depend on nothing else, so that a training that is cut off goes on as if it had not been.
        """
        return 1.0

    def stepped(self, network: Any) -> None:
        """Called after each step; keeps parameters where they may be."""

    def validated(self, network: Any, settings: Any, scores: Mapping[str, float]) -> None:
        """Called after each validation, with means of the scores."""


class LowRankEdit(Edit):
    """Updates as factors: ``{layer}.{matrix}.reads [B, R, in]`` and ``{layer}.{matrix}.writes [B, R, out]``.

    R is one number for all edits of a batch; those of a lower rank end with zeros.
    """

    @classmethod
    def layout(cls, config: TrainedConfig, names: Collection[str]) -> Layout:
        """Both factors of each matrix; which those are, the network decides."""
        matrices = dict.fromkeys(name.rpartition(".")[0] for name in names) or ["of any matrix"]
        sizes = zip(PARTS, ("in", "out"), strict=True)
        return {f"{m}.{part}": declared(f"{m}.rank", f"{m}.{size}") for part, size in sizes for m in matrices}

    def sizes(self, backbone: Backbone) -> dict[str, int]:
        """Those of the matrices."""
        found: dict[str, int] = {}
        for name in dict.fromkeys(name.rpartition(".")[0] for name in self.tensors):
            layer, _, own_name = name.partition(".")
            found |= matrix_sizes(backbone, int(layer), [own_name], f"{layer}.")
        return found

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        """Apply the updates beside the matrices."""
        self.install_group(Group(backbone, [self]), hooks, prefill)

    @classmethod
    def install_group(cls, group: Group, hooks: Hooks, prefill: Prefill) -> None:
        """The factors of all edits side by side, one product a matrix; networks may edit different layers."""
        for name in matrices_of_group(group):
            reads, writes = (group.side_by_side(f"{name}.{part}") for part in PARTS)
            install_low_rank(matrix(group.backbone, name), reads, writes, hooks)

    @classmethod
    def weight_updates(cls, group: Group) -> list[WeightUpdate]:
        """The factors of all edits, side by side."""
        found = []
        for name in matrices_of_group(group):
            reads, writes = (group.side_by_side(f"{name}.{part}")[0] for part in PARTS)
            found.append(WeightUpdate(matrix(group.backbone, name), writes, reads))
        return found


class LowRankEditor(TrainedEditor[TrainedConfigT]):
    """An editor whose network makes low-rank updates of feed-forward matrices from one backward pass."""

    def network(self, backbone: Backbone) -> Hypernetwork:
        """As in `TrainedEditor`."""
        return cast(Hypernetwork, super().network(backbone))

    @abstractmethod
    def factors(
        self, network: Hypernetwork, gradients: Mapping[str, TokenGradients], condition: Any
    ) -> dict[str, Factors]:
        """The update of each matrix for B facts; gradients reach the network."""

    def condition(self, backbone: Backbone, facts: Sequence[Query]) -> Any:
        """What else a network reads about facts; None if nothing."""
        return None

    def lowest_layer(self, backbone: Backbone) -> int:
        """The lowest edited layer."""
        return lowest(backbone, self.network(backbone))

    @torch.no_grad()
    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """One backward pass, and what the network makes of it."""
        network = self.network(backbone)
        state = backbone.run_to_split(backbone.encode(facts), lowest(backbone, network))
        gradients = token_gradients(backbone, state, network.layers)
        factors = self.factors(network, gradients, self.condition(backbone, facts))
        return {f"{name}.{part}": t for name, pair in factors.items() for part, t in zip(PARTS, pair, strict=True)}

    def read(self, backbone: Backbone, network: Hypernetwork, cases: Sequence[EditCase]) -> "FrozenCases":
        """The questions of the cases, run to the lowest edited layer, and the facts' condition."""
        frozen = meta_objective.read(backbone, cases, lowest(backbone, network))
        return FrozenCases(frozen, self.condition(backbone, [case.edit for case in cases]))

    def objective(self, backbone: Backbone, network: Hypernetwork, frozen: "FrozenCases") -> Objective:
        """Edit each fact by the network as it is, and ask."""
        gradients = token_gradients(backbone, frozen.questions.states[FACT], network.layers)
        factors = self.factors(network, gradients, frozen.condition)
        with Hooks() as hooks:
            for name, pair in factors.items():
                install_low_rank(matrix(backbone, name), *pair, hooks)
            return meta_objective.ask(backbone, frozen.questions, self.weights if network.training else KINDS)


@dataclass(frozen=True, eq=False)
class FrozenCases:
    """The frozen part of some cases.

    Args:
        questions: What is asked.
        condition: From `LowRankEditor.condition`.
    """

    questions: FrozenQuestions
    condition: Any

    @property
    def nbytes(self) -> int:
        """Memory, in bytes; conditions are small beside the questions."""
        return self.questions.nbytes


def matrices_of_group(group: Group) -> list[str]:
    """The matrices that edits of a group change, ``{layer}.{matrix}``."""
    return list(dict.fromkeys(name.rpartition(".")[0] for edit in group.edits for name in edit.tensors))


def lowest(backbone: Backbone, network: Hypernetwork) -> int:
    """The lowest layer that a network edits."""
    return min(map(backbone.layer_index, network.layers))


def matrix(backbone: Backbone, name: str) -> nn.Linear:
    """The matrix ``{layer}.{matrix}`` of a feed-forward network."""
    layer, _, own_name = name.partition(".")
    return backbone.ffn(int(layer)).matrices[own_name]
