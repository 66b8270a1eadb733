"""Fit the classifier that tells what a question is for (see `unike.editors.unike.follows`), on the train split.

    python scripts/gate/words.py && python scripts/gate/follows.py

Logistic regression on the vectors that the shipped network has of the wordings it was trained on. Prints, of every kind of
question of dev, how many wordings are taken for which purpose. Seconds; the same network gives the same classifier.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from words import Asked, restyled, wordings

from unike.editors.unike.asked import ASKED_WIDTH
from unike.editors.unike.follows import DERIVES, DESCRIBES, IDENTIFIES, OTHER, Purposes
from unike.editors.unike.words import read_words

PURPOSES = {
    DESCRIBES: ["caption"],
    IDENTIFIES: ["name", "country"],
    DERIVES: ["kind", "capital", "continent", "currency", "language", "text_capital", "text_continent"],
}  # fmt: skip
"""What kinds of questions are for; all others are for something else. Of a name, "it" is what the classifier sees.

What small models cannot be expected to know of a thing, such as its price or a country's population, is not derived. And
a brand, a breed or a title is not what a caption of a thing says.
"""

NAMES = {OTHER: "other", DESCRIBES: "describes", IDENTIFIES: "identifies", DERIVES: "derives"}

WRITTEN = Path(__file__).parent / "purposes.json"
"""Wordings by hand, by purpose: as people go on when the thing has been named."""

DECAY = 1e-4


def fit(asked: Tensor, purpose: Tensor) -> Purposes:
    """Weights by L-BFGS; rare purposes weigh more."""
    found = Purposes(*(torch.zeros(*size, requires_grad=True) for size in ((len(NAMES), ASKED_WIDTH), (len(NAMES),))))
    share = purpose.bincount() / len(purpose)
    optimiser = torch.optim.LBFGS(found, max_iter=200)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = cross_entropy(asked @ found.weight.T + found.bias, purpose, weight=share**-0.5)
        loss = loss + DECAY * found.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(step)
    return Purposes(*(tensor.detach() for tensor in found))


def report(purposes: Purposes, z: Tensor, asked: Asked) -> None:
    """A line for each kind."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for (kind, _), purpose in zip(asked, purposes(z).tolist(), strict=True):
        found["facts" if kind.startswith("fact ") else kind][NAMES[purpose]] += 1
    for kind, counts in found.items():
        print(kind, dict(counts.most_common()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/unike/editors/unike/gate_data/follows.safetensors"))
    args = parser.parse_args()
    rng = random.Random(0)
    asked = {split: wordings(split, rng) for split in ("train", "dev")}
    by_hand = json.loads(WRITTEN.read_text(encoding="utf-8"))
    asked["train"] += [(f"{purpose} by hand", text) for purpose, texts in by_hand.items() for text in texts]
    asked["train"] += [(kind, restyled(text, rng)) for kind, text in asked["train"] for _ in range(2)]
    z = {split: read_words([text for _, text in some]).asked for split, some in asked.items()}
    purpose_of = {f"{name} by hand": purpose for purpose, name in NAMES.items()}
    purpose_of |= {kind: purpose for purpose, kinds in PURPOSES.items() for kind in kinds}
    found = fit(z["train"], torch.tensor([purpose_of.get(kind, OTHER) for kind, _ in asked["train"]]))
    report(found, z["dev"], asked["dev"])
    save_file({name: tensor.half().contiguous() for name, tensor in found._asdict().items()}, args.out)


if __name__ == "__main__":
    main()
