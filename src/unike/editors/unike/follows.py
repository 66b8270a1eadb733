"""What follows from an edit: questions that the model answers by itself once it is told the fact in words.

Who is shown a picture and told that the flag is Kenya's is asked for the capital next (paper, Figure 7). The edit's own
answer would be wrong there and the picture still says what it said before; but the model knows capitals, and needs no
picture for it. So a question about the edited thing that asks for what follows is put to the unedited model without the
picture, behind the fact in words.

What follows from what is read from the words of both questions, behind the network of `words` and a small classifier
that was fitted to wordings of the train split (``scripts/gate/follows.py``): what a thing is called follows from what a
caption says of it, and its plain facts, such as its category or its country's capital, from either. What is there to
be seen, such as its colour, follows from neither.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor

from unike.data.queries import Query, telling
from unike.editors.unike.gate import Gate
from unike.editors.unike.likeness import at_rows, blocks_of, keys_of, likeness_in, pictured_of, shared_out
from unike.editors.unike.words import WORD, names_in, read_words
from unike.edits.group import Group
from unike.edits.standing import Block

FILE = "follows.safetensors"

OTHER, DESCRIBES, IDENTIFIES, DERIVES = range(4)
"""What questions are for: a caption, a name, a plain fact of the thing that has the name, or anything else."""

ENOUGH = 0.5
"""How far an input must be about the edited thing."""

SURE, CERTAIN = 0.55, 0.75
"""How likely it must be that a question asks for what follows, and that it is therefore not an edit's own question."""


class Purposes(NamedTuple):
    """The classifier."""

    weight: Tensor
    """``[4, ASKED_WIDTH]``."""

    bias: Tensor
    """``[4]``."""

    def __call__(self, asked: Tensor, sure: float = 0.0) -> Tensor:
        """What questions ``[..., ASKED_WIDTH]`` are for: ``[...]`` long; `OTHER` where no purpose is likely enough."""
        logits = asked.float() @ self.weight.T.to(asked.device) + self.bias.to(asked.device)
        likely, purpose = logits.softmax(dim=-1).max(dim=-1)
        return purpose.masked_fill(likely < sure, OTHER)


@cache
def purposes() -> Purposes:
    """The classifier that ships."""
    tensors = load(resources.files("unike.editors.unike").joinpath("gate_data", FILE).read_bytes())
    return Purposes(tensors["weight"].float(), tensors["bias"].float())


def follows(edited: Tensor, asked: Tensor) -> Tensor:
    """Whether what is asked follows from what edits say.

    Args:
        edited: What G edits' questions ask, ``[..., G, ASKED_WIDTH]``.
        asked: What inputs ask, ``[..., ASKED_WIDTH]``.

    Returns:
        ``[..., G]`` bool.
    """
    return is_after(purposes()(edited), purposes()(asked, SURE))


def is_after(says: Tensor, wants: Tensor) -> Tensor:
    """The same from what edits' questions ``[..., G]`` and inputs ``[...]`` are for."""
    return (says > OTHER) & (says < wants.unsqueeze(-1))


def purposes_of(block: Block) -> Tensor:
    """What the own questions of a block's edits are for, ``[B, g]``."""
    return block.once("purposes", lambda block: purposes()(keys_of(block).asked))


SAME = 1e-3
"""Pictures that are as like an input within this are as near."""


@torch.no_grad()
def told(gate: Gate, group: Group, queries: Sequence[Query]) -> list[Query | None]:
    """Queries as the unedited model is to be asked where they follow from an edit; None for all others.

    Args:
        gate: Of the backbone.
        group: Edits, of B rows.
        queries: As many as B, or a multiple of it.
    """
    found: list[Query | None] = [None] * len(queries)
    if not queries:
        return found
    device = gate.cohort.device
    asked = read_words([query.prompt for query in queries]).asked.to(device)
    wants, surely = (purposes()(asked, likely) for likely in (SURE, CERTAIN))
    of_rows, present = shared_out(group.rows, len(queries)), group.present_on(len(queries))
    asks = torch.tensor([query.image is not None for query in queries], device=device).unsqueeze(1)
    says, pictured = (
        torch.cat([at_rows(of(block), of_rows, group.rows) for block in blocks_of(group)], dim=1)
        for of in (purposes_of, pictured_of)
    )
    may = is_after(says, wants) & pictured & asks  # [R, G]
    may = may if present is None else may & present
    rows = may.any(dim=1).nonzero().flatten().tolist()
    if not rows:
        return found
    batch = group.backbone.encode([queries[row].question for row in rows])
    read = gate.read(group.backbone, group.backbone.run_to_split(batch, 0).prefill())
    some = None if present is None else present[rows]
    alike = likeness_in(group, read, [of_rows[row] for row in rows])
    # No edit competes: of those that are open the nearest is told, and edits about names are no rivals of pictures.
    open_to = may[rows] & (gate.decide(alike, present=some).fact >= ENOUGH)
    # A question that an edit answers itself is told nothing by edits of pictures that are no nearer than that one's.
    # But what surely follows from an edit is not its own question, however near it comes to it in words.
    answers = gate.decide(alike, group.config.gate.rivalry, some).gate >= ENOUGH
    answers &= ~is_after(says[rows], surely[rows])
    open_to &= alike.picture > alike.picture.masked_fill(~answers, -torch.inf).amax(dim=1, keepdim=True) + SAME
    for row, number in zip(rows, nearest_of(alike.picture, open_to), strict=True):
        if number is not None:
            edit = group.made[number]
            fact = edit.facts[edit.shared_out(len(queries))[row]]
            found[row] = None if names_another(queries[row], fact) else telling(fact, queries[row])
    return found


def names_another(query: Query, fact: Query) -> bool:
    """Whether a question names somebody whom the fact does not: then it is not about the thing in the picture."""
    named = set(names_in(query.prompt))
    return not named <= set(WORD.findall(f"{fact.prompt} {fact.target}".casefold()))


def nearest_of(likeness: Tensor, eligible: Tensor) -> list[int | None]:
    """For each row the eligible edit whose picture is most like the input's; None where there is none."""
    nearest = likeness.masked_fill(~eligible, -torch.inf).argmax(dim=1).tolist()
    return [number if some else None for number, some in zip(nearest, eligible.any(dim=1).tolist(), strict=True)]
