"""How well the gate tells rewordings from other questions, in words that nothing was trained or tuned on.

    python benchmarks/wordings.py

``wordings.json`` has 1,540 questions that people might ask about a picture, or about a named subject without one; the
other questions are as near in wording to the edited one as they come ("Which shop would sell that?", "What is the
capital of the country with this flag?"), and half of those without a picture name another subject. Printed are the area
under the curve of what is asked, the shares of rewordings at which the gate opens wholly as far as words go, and of
other questions at which it stays shut; with ``--show`` also those that go wrong.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unike.editors.unike.gate import ASKED, ASKED_OF_NAMED, NAMED
from unike.editors.unike.likeness import Reading, named_alike
from unike.editors.unike.words import read_words

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="list the questions that go wrong")
    args = parser.parse_args()
    for exam in json.loads((HERE / "wordings.json").read_text(encoding="utf-8")):
        (near, opened), (far, let_in) = (
            judged(exam["edited"], exam[name], exam["pictured"]) for name in ("same", "other")
        )
        found = {
            "edited": exam["edited"],
            "auc": round((near[:, None] > far[None]).float().mean().item(), 3),
            "open": round(100 * (opened >= 1).float().mean().item(), 1),
            "shut": round(100 * (let_in <= 0).float().mean().item(), 1),
            "rewordings": len(near),
            "other": len(far),
        }
        print(json.dumps(found))
        if args.show:
            wrong = {"same": opened < 1, "other": let_in > 0}
            for name, rows in wrong.items():
                print("\n".join(f"  {name}: {exam[name][row]}" for row in rows.nonzero().flatten().tolist()))


def judged(edited: str, asked: Sequence[str], pictured: bool) -> tuple[Tensor, Tensor]:
    """How alike questions are in what they ask to an edited one, and how far its gate opens by their words."""
    own, read = read_words([edited]), read_words(asked)
    alike = read.asked @ own.asked[0]
    if pictured:
        return alike, ASKED(alike)
    unseen = torch.zeros(1, 1)
    key = Reading(*(part.unsqueeze(1) for part in (unseen, unseen, own.asked, own.said, own.rare)))
    of_whom = named_alike(key, Reading(unseen, unseen, read.asked, read.said, read.names))[:, 0]
    return alike, ASKED_OF_NAMED(alike) * NAMED(of_whom)


if __name__ == "__main__":
    main()
