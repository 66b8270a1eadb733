"""SERAC: edits are kept in a memory, and questions about them routed to another model (arXiv 2206.06520).

A scope classifier compares a question with every edit in force. Above a similarity of 0.5 the nearest edit counts, and
a small counterfactual model answers, which reads the edit before the question. All other questions go to the backbone
as it is. Both networks are trained once for each backbone, see `unike.editors.serac.networks`.

Note:
    The answer that a question should get takes no part in routing it. MMEdit's version gives it to the classifier;
    ``compat="mmedit"`` does the same where there is a target, in teacher-forced scores, to compare.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_tokens
from unike.backbones.forward.split import SplitState
from unike.core.errors import UnikeError
from unike.core.memo import MemoOf
from unike.data.queries import EditCase, Query
from unike.editors.common.demonstrations import stated
from unike.editors.common.retrieval import FOUND_BY, IMAGE, TEXT, check_widths
from unike.editors.common.sentence_encoder import MINILM, not_shipped
from unike.editors.serac import networks as serac
from unike.editors.serac.networks import (
    IN_SCOPE,
    FrozenSeracCases,
    SeracModel,
    SERACNetworkSettings,
    counterfactual_query,
    squared_distance,
)
from unike.editors.trained.artifact import Trained, find, stamp
from unike.editors.trained.base import TrainedConfig, TrainedEditor
from unike.editors.trained.meta_objective import Objective
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.layout import FINGERPRINT, Layout
from unike.edits.routing import RoutingEdit

NETWORK = "network"


class SERACConfig(TrainedConfig):
    """Settings of `SERAC`; those of its networks were chosen when they were trained.

    Attributes:
        threshold: The least similarity at which a question is about an edit.
        compat: ``"mmedit"`` lets the classifier read a question's target, a leak that published numbers have.
        encoder: The encoder that the networks may name, because it was chosen when they were trained.
    """

    threshold: float = Field(IN_SCOPE, gt=0, lt=1)
    compat: Literal["mmedit"] | None = None
    encoder: str = MINILM

    def encoders(self) -> tuple[str, ...]:
        """As in `EditorConfig`."""
        return not_shipped(self.encoder)


class SERACEdit(RoutingEdit):
    """What the classifier reads of an edit, ``text [B, W]`` and ``image [B, D]``, and ``network [B, 8]`` uint8.

    The last is the fingerprint of the networks that it was made with, because it acts only together with those.
    """

    editor = "serac"
    tells_scope = True
    config_class = SERACConfig

    @classmethod
    def layout(cls, config: SERACConfig, names: Collection[str]) -> Layout:
        """What the classifier reads, and the fingerprint of the networks."""
        return {**FOUND_BY, NETWORK: FINGERPRINT}

    @classmethod
    def check_stack(cls, edits: Sequence[Edit], backbone: Backbone) -> None:
        """As for all that route, and the networks must be those that the edits were made with."""
        super().check_stack(edits, backbone)
        for edit in edits:
            _, fingerprint = networks_of(backbone, cast(SERACConfig, edit.config))
            if not (edit.tensors[NETWORK].cpu() == fingerprint).all():
                raise UnikeError(
                    f"the edit {edit.facts[0].prompt!r} was made with other networks of serac than there are now; "
                    "bring those back, or make the edit anew"
                )

    @classmethod
    def routed(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> dict[int, Query]:
        """By its number, each query in scope of an edit as the counterfactual model reads it."""
        cls.check_stack(edits, backbone)
        if not edits or not queries:
            return {}
        config = cast(SERACConfig, edits[0].config)
        network, _ = networks_of(backbone, config)
        rows = [edit.shared_out(len(queries)) for edit in edits]
        embedded = network.embed(backbone, [as_classified(query, config) for query in queries])
        check_widths(edits, embedded)
        asked = network.scope(embedded)
        kept = [{name: edit.tensors[name].to(backbone.device) for name in (TEXT, IMAGE)} for edit in edits]
        stored = [network.scope(each)[seen] for each, seen in zip(kept, rows, strict=True)]
        best = torch.exp(-squared_distance(asked, torch.stack(stored))).max(dim=0)  # over the edits
        return {
            row: counterfactual_query(edits[nearest].facts[rows[nearest][row]], query)
            for row, (query, nearest) in enumerate(zip(queries, best.indices.tolist(), strict=True))
            if best.values[row] > config.threshold
        }

    @classmethod
    def reads_targets(cls, edits: Sequence[Edit]) -> bool:
        """With MMEdit's leak."""
        return any(cast(SERACConfig, edit.config).compat is not None for edit in edits)

    @classmethod
    def in_scope(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> list[bool]:
        """Those that the counterfactual model answers."""
        routed = cls.routed(edits, backbone, queries)
        return [row in routed for row in range(len(queries))]

    @classmethod
    @torch.no_grad()
    def answer(cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        """What the counterfactual model answers in scope, and the backbone out of it."""
        backbone = model.backbone
        if model.stack.rows > 1:
            raise UnikeError(
                "some questions are answered beside the model, which would mix up the rows of the batch of edits "
                "attached to it; attach one edit: edit[i]"
            )
        routed = cls.routed(edits, backbone, queries)
        others = [row for row in range(len(queries)) if row not in routed]
        own = model.generate([queries[row] for row in others], **kwargs) if others else []
        answers = dict(zip(others, own, strict=True))
        if routed:
            network, _ = networks_of(backbone, cast(SERACConfig, edits[0].config))
            found = network.counterfactual.generate(list(routed.values()), **kwargs)
            answers |= dict(zip(routed, found, strict=True))
        return [answers[row] for row in range(len(queries))]

    @classmethod
    @torch.no_grad()
    def target_logits(
        cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], state: SplitState | None = None
    ) -> Tensor:
        """Logits of the counterfactual model in scope, and of the backbone out of it."""
        backbone = model.backbone
        routed = cls.routed(edits, backbone, queries)
        if not routed:
            return model.target_logits(queries, state)
        network, _ = networks_of(backbone, cast(SERACConfig, edits[0].config))
        within = EditedModel(network.counterfactual).target_logits(list(routed.values()))
        if len(routed) == len(queries):
            return within
        logits = model.target_logits(queries, state)
        position_of, _ = target_tokens(backbone.encode(queries).labels)
        logits[torch.isin(position_of, torch.tensor(list(routed), device=position_of.device))] = within
        return logits


def as_classified(query: Query, config: SERACConfig) -> Query:
    """What the classifier reads: the question, without its answer unless MMEdit's leak is wanted."""
    if config.compat != "mmedit" or not query.target:
        return query
    return Query(stated(query.prompt, query.target), query.image)


_FINGERPRINTS: MemoOf[str | None, Tensor] = MemoOf()
"""Of the networks of each backbone, by the folder that is not the one of the backbone."""


def networks_of(backbone: Backbone, config: SERACConfig) -> tuple[SeracModel, Tensor]:
    """The networks of a backbone, and eight bytes that tell them from others, ``[8]`` uint8.

    They are read once, and again when others have been put there.

    Raises:
        UnikeError: There are none, or others.
    """
    there = stamp("serac", backbone, config.trained)

    def read() -> Tensor:
        return fingerprint(find("serac", backbone, config.trained))

    made_with = _FINGERPRINTS.of(backbone).get(config.trained, read, stamp=there)
    return cast(SeracModel, SERAC(config).network(backbone)), made_with


def fingerprint(trained: Trained) -> Tensor:
    """``[8]`` uint8, of what was saved: the same in whatever precision it is used."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trained.tensors.items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()[:8]), dtype=torch.uint8)


class SERAC(TrainedEditor[SERACConfig]):
    """Routes questions about an edit to a small model that reads the edit."""

    name: ClassVar[str] = "serac"
    config_class = SERACConfig
    edit_class = SERACEdit
    network_settings = SERACNetworkSettings
    weights: ClassVar[Mapping[str, float]] = {"nll": 0.1, "scope": 1.0}

    def check_network(self, settings: SERACNetworkSettings) -> None:
        """Refuse an encoder that does not ship and that the editor's settings do not name."""
        if settings.encoder not in (MINILM, self.config.encoder):
            raise UnikeError(
                f"serac's networks want to load the sentence encoder {settings.encoder!r}, which does not ship; "
                f"if you trust it, name it: --set encoder={settings.encoder}"
            )

    def prepare(self, backbone: Backbone) -> None:
        """Read the networks."""
        networks_of(backbone, self.config)

    def lowest_layer(self, backbone: Backbone) -> None:
        """No layer: the backbone is asked or it is not."""
        networks_of(backbone, self.config)

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Embed the questions and pictures; in MMEdit's version, with the answers."""
        network, made_with = networks_of(backbone, self.config)
        embedded = network.embed(backbone, [as_classified(fact, self.config) for fact in facts])
        return {**embedded, NETWORK: made_with.repeat(len(facts), 1)}

    def settings_of(self, trained: Trained) -> SERACNetworkSettings:
        """Networks of before encoders were fine-tuned say nothing of it."""
        return SERACNetworkSettings.parse({"finetune_encoder": False, **trained.settings})

    def build(self, backbone: Backbone, settings: SERACNetworkSettings, seed: int = 0) -> SeracModel:
        """New networks: a classifier with random heads, and the backbone's own layers."""
        return SeracModel(backbone, settings, seed)

    def optimizer(self, network: SeracModel, settings: SERACNetworkSettings) -> torch.optim.Optimizer:
        """Adam, with rates of their own for heads and encoder; on fp32 weights, whatever the backbone is in."""
        learning: list[tuple[nn.Module, float]] = [(network.layers.float(), settings.lr)]
        learning += [(network.scope, settings.lr_scope)]
        learning += [] if network.encoder is None else [(network.encoder, settings.lr_encoder)]
        return torch.optim.Adam(
            [{"params": list(each.requires_grad_(True).parameters()), "lr": lr} for each, lr in learning]
        )

    def read(self, backbone: Backbone, network: SeracModel, cases: Sequence[EditCase]) -> FrozenSeracCases:
        """The questions of the cases, their pictures, and their states at the counterfactual model's first layer."""
        return serac.read(backbone, network, cases)

    def objective(self, backbone: Backbone, network: SeracModel, frozen: FrozenSeracCases) -> Objective:
        """Losses of both networks, and what they get right."""
        return serac.objective(network, frozen)
