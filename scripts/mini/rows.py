"""What the bundled model is trained on: pictures and questions of PocketEdit, packed into rows."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from unike.backbones.families.mini import N_TOKENS

DATA = Path(__file__).parents[2] / "src/unike/data/datasets/pocket_data"
ASKED = {  # kinds a picture is asked about, and their weight in the loss
    "name": 1.0, "country": 1.0, "kind": 0.6, "capital": 0.6, "continent": 0.4, "currency": 0.3, "language": 0.3,
    "flag_colours": 0.3, "colour": 0.4, "medium": 0.2, "caption": 0.5,
}  # fmt: skip


@dataclass
class Picture:
    image_id: str
    domain: str
    concept: str
    role: str
    facts: dict[str, str]


def read_pictures() -> list[Picture]:
    rows = pq.read_table(DATA / "concepts.parquet").to_pylist()
    facts = {(row["domain"], row["concept"]): json.loads(row["facts"]) for row in rows}
    columns = ["image_id", "domain", "concept", "split", "role"]
    rows = pq.read_table(DATA / "images.parquet", columns=columns).to_pylist()
    return [
        Picture(r["image_id"], r["domain"], r["domain"] + r["concept"], r["role"], facts[r["domain"], r["concept"]])
        for r in rows
        if r["split"] == "pretrain"
    ]


def read_questions() -> dict[str, list[str]]:
    questions = defaultdict(list)
    for row in pq.read_table(DATA / "questions.parquet", filters=[("split", "=", "pretrain")]).to_pylist():
        questions[row["kind"]].append(row["wording"])
    return questions


class Rows:
    """Packs rows of one picture (or none) and several question-answer pairs; shapes ``[B, S]``."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.bos, self.eos = tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id

    def pair(self, question: str, answer: str) -> tuple[list[int], int]:
        prompt = f"Question: {question} Short answer:"
        encoded = self.tokenizer(f"{prompt} {answer}", return_offsets_mapping=True)
        start = next(i for i, (begin, _) in enumerate(encoded["offset_mapping"]) if begin >= len(prompt))
        return [*encoded["input_ids"], self.eos], start

    def pack(self, rows: list[list[tuple[list[int], int, float]]], image: bool) -> dict[str, Tensor]:
        prefix = 1 + (N_TOKENS if image else 0)
        width = prefix + max(sum(len(ids) for ids, _, _ in row) for row in rows)
        shape = (len(rows), width)
        ids, segment = torch.full(shape, self.eos), torch.full(shape, -1)
        positions, labels, weights = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100), torch.zeros(shape)
        for r, row in enumerate(rows):
            ids[r, 0], segment[r, :prefix], positions[r, :prefix] = self.bos, 0, torch.arange(prefix)
            at = prefix
            for s, (tokens, start, weight) in enumerate(row, start=1):
                span = slice(at, at + len(tokens))
                ids[r, span], segment[r, span] = torch.tensor(tokens), s
                positions[r, span] = prefix + torch.arange(len(tokens))
                answer = slice(at + start, at + len(tokens))
                labels[r, answer] = torch.tensor(tokens[start:])
                weights[r, answer] = weight / (len(tokens) - start)
                at += len(tokens)
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        sees = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
        mask = causal & sees | torch.eye(width, dtype=torch.bool)
        return {"ids": ids, "mask": mask, "positions": positions, "labels": labels, "weights": weights}


def random_view(
    picture: Picture, by_concept: dict[str, list[Picture]], features: dict[str, Tensor], rng: random.Random
) -> Tensor:
    """A view of the picture, half of the time blended with a view of another picture of the same concept: ``[10, 1328]``."""

    def view(of: Picture) -> Tensor:
        return features[of.image_id][rng.randrange(len(features[of.image_id]))].float()

    share = rng.uniform(0.0, 0.5) if rng.random() < 0.5 else 0.0
    return (1 - share) * view(picture) + share * view(rng.choice(by_concept[picture.concept]))


def picture_row(
    picture: Picture, questions: dict[str, list[str]], rows: Rows, rng: random.Random
) -> list[tuple[list[int], int, float]]:
    """The name (or country), and two other kinds of question, each in a random wording."""
    main = "country" if picture.domain == "flag" else "name"
    others = [k for k in ASKED if k in picture.facts and k != main]
    kinds = [main, *rng.sample(others, 2)]
    return [(*rows.pair(rng.choice(questions[k]), picture.facts[k]), ASKED[k]) for k in kinds]
