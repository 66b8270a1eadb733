"""A first look at an editor: strict metrics of one-step edits on PocketEdit's dev split, and seconds per edit.

    python benchmarks/first_edits.py unike --limit 48 --out results/first_edits/unike.json
    python benchmarks/first_edits.py unike --set key_init='"raw"' --set locality=0

Cases that the unedited model gets right are left out, as in MMEdit, and counted. Probes are asked greedily; answers
before are taken before any edit is made. Settings are chosen with this, so its figures are on dev and flatter them.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import unike
from unike import EditCase, Query
from unike.datasets.pocket import Pocket
from unike.metrics import exact_match

UNCHANGED = (
    "t_locality",
    "m_locality",
    "specificity",
)  # scored against the answer before the edit, the others against gold


def questions(case: EditCase) -> list[tuple[str, Query]]:
    return [("reliability", case.edit), *((probe.kind, probe.query) for probe in case.probes)]


LONGEST = {"vqa": 12, "caption": 32}  # new tokens; no target is longer


def ask(model: Any, queries: list[Query], room: int) -> list[str]:
    answers: list[str] = []
    for start in range(0, len(queries), 32):
        answers += model.generate(queries[start : start + 32], max_new_tokens=room)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("editor")
    parser.add_argument("--task", choices=["vqa", "caption"], default="vqa")
    parser.add_argument("--limit", type=int, default=48, help="dev cases that are edited")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which cases are drawn")
    parser.add_argument("--batch", type=int, default=8, help="independent edits in one pass")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="setting of the editor")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {key: json.loads(value) for key, value in (item.split("=", 1) for item in args.set)}

    model = unike.load_backbone("mini", device="cpu")
    room = LONGEST[args.task]
    cases = Pocket(args.task).cases("dev")
    random.Random(args.seed).shuffle(cases)
    right = [
        exact_match(a, c.edit.target or "")
        for a, c in zip(ask(model, [c.edit for c in cases], room), cases, strict=True)
    ]
    cases = [case for case, known in zip(cases, right, strict=True) if not known][: args.limit]
    asked = [questions(case) for case in cases]
    before = [ask(model, [query for _, query in row], room) for row in track(asked, description="before")]

    editor = unike.make_editor(args.editor, **settings)
    editor.prepare(model)
    scores: dict[str, list[bool]] = defaultdict(list)
    seconds = 0.0
    for start in track(range(0, len(cases), args.batch), description="editing"):
        began = time.perf_counter()
        edits = editor.edit(model, [case.edit for case in cases[start : start + args.batch]])
        seconds += time.perf_counter() - began
        for i in range(len(edits)):
            row, old = asked[start + i], before[start + i]
            new = edits[i].generate(model, [query for _, query in row], max_new_tokens=room)
            for (kind, query), was, now in zip(row, old, new, strict=True):
                scores[kind].append(now == was if kind in UNCHANGED else exact_match(now, query.target or ""))

    report = {
        "editor": args.editor,
        "config": editor.config.model_dump(mode="json"),
        "dataset": f"pocket-{args.task} dev, seed {args.seed}",
        "protocol": "strict",
        "left_out_as_already_right": sum(right),
        "cases": len(cases),
        "scores": {
            kind: {"percent": round(100 * sum(oks) / len(oks), 1), "n": len(oks)} for kind, oks in scores.items()
        },
        "seconds_per_edit": round(seconds / len(cases), 2),
        "batch": args.batch,
        "model": model.fingerprint(),
    }
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
