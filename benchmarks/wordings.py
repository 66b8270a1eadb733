"""How well the gate tells rewordings from other questions, in words that nothing was trained or tuned on.

    python benchmarks/wordings.py

``wordings.json`` has 740 questions that people might ask about a thing, a flag or a picture; the other questions are as
near in wording to the edited one as they come ("Which shop would sell that?", "What is the capital of the country with
this flag?"). Printed are the area under the curve, the shares of rewordings at which the gate's question opens wholly,
and of other questions at which it stays shut; with ``--show`` also those that go wrong.
"""

import argparse
import json
from pathlib import Path

from unike.editors.unike.gate import ASKED
from unike.editors.unike.words import what_is_asked

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="list the questions that go wrong")
    args = parser.parse_args()
    for exam in json.loads((HERE / "wordings.json").read_text(encoding="utf-8")):
        own = what_is_asked([exam["edited"]])[0]
        near, far = (what_is_asked(exam[name]) @ own for name in ("same", "other"))
        found = {
            "edited": exam["edited"],
            "auc": round((near[:, None] > far[None]).float().mean().item(), 3),
            "open": round(100 * (near >= ASKED.high).float().mean().item(), 1),
            "shut": round(100 * (far <= ASKED.low).float().mean().item(), 1),
            "rewordings": len(near),
            "other": len(far),
        }
        print(json.dumps(found))
        if args.show:
            wrong = {"same": near < ASKED.high, "other": far > ASKED.low}
            for name, rows in wrong.items():
                print("\n".join(f"  {name}: {exam[name][row]}" for row in rows.nonzero().flatten().tolist()))


if __name__ == "__main__":
    main()
