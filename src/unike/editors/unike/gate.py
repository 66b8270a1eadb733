"""Which inputs an edit is about: the memory's relevance as a gate on both halves of an edit (beyond the paper).

Two questions decide, and each is read where its answer is, not from one state of the decoder:

- *What is it about?* The picture's own tokens, before any layer has mixed words into them: what they show as a whole
  and part by part, behind a map learned in `unike prepare` from pictures of the same thing (`metric`). An edit
  without a picture is about whom its prompt names: the rare words of it that an input has, too (`words`).
- *What is asked?* The words of the question, behind the sentence encoder that ships and a learned network (`words`).

Each becomes a factor, and the gate of a single edit is their product::

    question = ramp(asked),    fact = ramp(about),    ramp(s) = clamp((s - low) / (high - low), 0, 1)

where ``asked`` is a cosine and ``about`` is one beyond what is usual (`alike`), or, without a picture, a share of rare
words (`named_alike`). In a stack edits compete: two that ask the same about two like things are both near to either's
inputs, so each is scaled by how far it is behind the nearest one::

    compete(s)_g = clamp(1 - (max_j s_j - s_g) / rivalry, 0, 1)
    fact_g = ramp_G(about_g) compete(s)_g,    gate_g = question_g fact_g,    s = asked + about

with G the number of edits. An input that is about none of G edits has G chances to be taken for one, so the ramp of
pictures rises with G (`RisingRamp`). An edit with a picture is shut for an input without one.

Note:
    In the paper relevance scales only what the memory injects (alpha, Eq. 7). Here it also scales the new pairs of the
    feed-forward networks, so that an input below the ramps of ``fact`` keeps the unedited model's answer, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.unike.likeness import (
    KEPT,
    Likeness,
    Reading,
    likeness,
    likeness_in,
    shared_out,
    usual,
)
from unike.editors.unike.metric import Metric
from unike.editors.unike.words import Wording, read_words
from unike.edits.group import Group


class Openings(NamedTuple):
    """How far inputs are about each of G edits, ``[..., G]`` each, in 0..1."""

    question: Tensor
    """Whether it is the edit's kind of question."""

    fact: Tensor
    """Whether it is about what the edit is about, whatever is asked."""

    gate: Tensor
    """Whether it is the edit's own question about it."""

    @property
    def called(self) -> tuple[int, ...]:
        """Which of the edits any input calls upon at all: for every input, all others do nothing."""
        open_to_any = (self.gate > 0).flatten(0, -2).any(dim=0)
        return tuple(open_to_any.nonzero().flatten().tolist())


@dataclass(frozen=True)
class Ramp:
    """From 0 up to ``low`` to 1 from ``high`` on.

    Raises:
        ValueError: Nothing or everything would pass.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")

    def __call__(self, s: Tensor) -> Tensor:
        """Elementwise."""
        return ((s - self.low) / (self.high - self.low)).clamp(0, 1)


@dataclass(frozen=True)
class RisingRamp:
    """A ramp for each size of a stack: an input that is about none of G edits has G chances to be taken for one.

    Each edit may therefore take only ``1 / G`` as many of them (Bonferroni's correction).

    Args:
        low: Where ramps begin in stacks of 1, 2, 4, 8, ... edits.
        high: Where they end.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def of(self, n_edits: int) -> Ramp:
        """The ramp of each edit in a stack of ``n_edits``; in larger stacks than were calibrated it rises no more."""
        doublings = np.log2(n_edits), range(len(self.low))
        return Ramp(*(float(np.interp(*doublings, ends)) for ends in (self.low, self.high)))


ASKED, ASKED_OF_NAMED, NAMED = Ramp(0.44, 0.48), Ramp(0.60, 0.64), Ramp(0.62, 0.70)
"""Where the same question begins, about a picture and about what it names, and where the same name does.

They are of `words`, and so of any model; chosen on dev.
"""


@dataclass(frozen=True, eq=False)
class Gate:
    """The gate of a backbone; what an edit adds is its key.

    Args:
        metric: Behind it pictures of one thing lie together.
        cohort: ``[n, P]`` unit vectors of arbitrary pictures there.
        about: Ramps of the cosine there, beyond what is usual, see `alike`.
    """

    metric: Metric
    cohort: Tensor
    about: RisingRamp

    def settings(self) -> dict[str, Any]:
        """What it is beside `tensors`, as JSON has it."""
        return {"about": asdict(self.about)}

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {name: getattr(self.metric, name) for name in Metric.TENSORS} | {"cohort": self.cohort}

    @classmethod
    def of(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The reverse of `settings` and `tensors`.

        Raises:
            LookupError, TypeError, ValueError: Something is missing or makes no sense.
        """
        about = RisingRamp(*(tuple(settings["about"][end]) for end in ("low", "high")))
        return cls(Metric(*(tensors[name] for name in Metric.TENSORS)), tensors["cohort"], about)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.of(self.settings(), {name: tensor.to(device) for name, tensor in self.tensors().items()})

    # ------------------------------------------------------------------ what is read

    @torch.no_grad()
    def read(self, backbone: Backbone, prefill: Prefill) -> Reading:
        """What the prompts of a pass are about and ask, a row each; once they have been shown to the text stack.

        Raises:
            UnikeError: The model was given embeddings in place of tokens.
        """
        words = self._words(backbone, prefill)
        return Reading(*self.pictured(prefill.pictures, len(words.asked)), words.asked, words.said, words.names)

    def pictured(self, seen: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
        """Pictures ``[rows, P]``, and what is usual ``[rows, 1]``: zero where nothing is seen."""
        if seen is None:
            return self.cohort.new_zeros(rows, self.metric.width), self.cohort.new_zeros(rows, 1)
        seen = seen.to(self.cohort.device)
        there = seen.any(dim=1, keepdim=True)
        picture = self.metric(seen) * there
        return picture, usual(picture, self.cohort) * there

    def keys(self, backbone: Backbone, prefill: Prefill) -> dict[str, Tensor]:
        """What an edit keeps of its own questions, ``[B, 1, n]`` each."""
        words = self._words(backbone, prefill)
        read = (*self.pictured(prefill.pictures, len(words.asked)), words.asked, words.said, words.rare)
        kept = dict(zip(KEPT, read, strict=True))
        return {name: tensor.unsqueeze(1) for name, tensor in kept.items()}

    def _words(self, backbone: Backbone, prefill: Prefill) -> Wording:
        if prefill.tokens is None:
            raise UnikeError("edits are told apart by the words of a prompt: give input_ids, not inputs_embeds")
        read = read_words([backbone.asked(tokens) for tokens in prefill.tokens])
        return Wording(*(each.to(self.cohort.device) for each in read))

    # ------------------------------------------------------------------ what follows

    @torch.no_grad()
    def openings(
        self, keys: Reading, read: Reading, rivalry: float | None = None, present: Tensor | None = None
    ) -> Openings:
        """The decision: from what was read of edits' own questions and of inputs, to how far each edit is called upon.

        Args:
            keys: Of G edits, ``[..., G, n]`` each.
            read: Of the inputs, ``[..., n]`` each.
            rivalry: As in `decide`.
            present: The same.
        """
        return self.decide(likeness(keys, read), rivalry, present)

    @torch.no_grad()
    def decide(self, found: Likeness, rivalry: float | None = None, present: Tensor | None = None) -> Openings:
        """How far edits are called upon that are as like inputs as this.

        Args:
            found: Of G edits.
            rivalry: How far an edit may be behind the one that is most like an input; without it no edit competes.
            present: ``[..., G]`` bool, which edits there are for each input; None for all.
        """
        pictured, picture, asked, named = found
        about = torch.where(pictured, picture, named)
        question = torch.where(pictured, ASKED(asked), ASKED_OF_NAMED(asked))
        fact = torch.where(pictured, self._pictured(picture, present), NAMED(named))
        if rivalry is not None:
            near = asked + about
            fact = fact * compete(near if present is None else near.masked_fill(~present, -torch.inf), rivalry)
        openings = Openings(question, fact, question * fact)
        if present is None:
            return openings
        return Openings(*(each.masked_fill(~present, 0) for each in openings))

    @torch.no_grad()
    def opened_by(self, group: Group, queries: Sequence[Query]) -> Openings:
        """How far questions are about each edit of a stack, ``[Q, G]`` each, without an answer being written."""
        found = torch.zeros(3, len(queries), len(group))
        for rows in group.backbone.groups(queries):
            batch = group.backbone.encode([queries[row].question for row in rows])
            read = self.read(group.backbone, group.backbone.run_to_split(batch, 0).prefill())
            found[:, rows] = torch.stack(
                self.decide(likeness_in(group, read, [0] * len(rows)), group.config.gate.rivalry)
            ).cpu()
        return Openings(*found)

    def _pictured(self, picture: Tensor, present: Tensor | None) -> Tensor:
        """The ramp of pictures, which rises with the number of edits there are."""
        if present is None:
            return self.about.of(picture.shape[-1])(picture)
        counts = present.sum(dim=-1).clamp(min=1)
        ramps = {count: self.about.of(count)(picture) for count in counts.unique().tolist()}
        fact = torch.zeros_like(picture)
        for count, opened in ramps.items():
            fact = torch.where((counts == count).unsqueeze(-1), opened, fact)
        return fact


def install_gate(gate: Gate, group: Group, prefill: Prefill) -> Callable[[], Openings]:
    """Let a pass read how far its prompts are about each edit of a stack: once, from the prompts alone.

    Args:
        gate: Of the backbone.
        group: The edits.
        prefill: The pass.

    Returns:
        Gives the openings of the rows that the model runs on, ``[R, G]`` each; to be asked from a layer of it.
    """
    opened: list[Openings] = []

    def openings() -> Openings:
        if not opened:
            rows = prefill.passes[-1][0]
            read = (x.repeat_interleave(rows // len(x), dim=0) for x in gate.read(group.backbone, prefill))
            found = likeness_in(group, Reading(*read), shared_out(group.rows, rows))
            present = group.present_on(rows)
            opened.append(gate.decide(found, group.config.gate.rivalry, present))
            prefill.note("gate", opened[0].gate.amax(dim=1))
            prefill.note("fact", opened[0].fact.amax(dim=1))
        return opened[0]

    return openings


def compete(similarities: Tensor, rivalry: float) -> Tensor:
    """From 1 for the edit that is most like an input, and any as like, to 0 for those ``rivalry`` behind.

    Args:
        similarities: ``[..., G]``, of an input with each of G edits.
        rivalry: Above 0; the less, the fewer edits have a say.
    """
    return (1 - (similarities.amax(dim=-1, keepdim=True) - similarities) / rivalry).clamp(min=0)
