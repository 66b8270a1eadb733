"""Train the connector and the LoRA update of the bundled model ``mini`` on PocketEdit's pretrain split.

    make mini-train            # features.py, then this; resumes from the last checkpoint after an interruption

Several questions about one picture share its image tokens in one sequence: a block mask lets each question see the
image and itself only, with positions counted as if it stood alone, so that the loss equals that of separate sequences.
Text-only rows keep the language model where it was: KL from the plain model to the updated one on its own answers.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer

from rows import Picture, Rows, picture_row, random_view, read_pictures, read_questions
from student import LoraLinear, Student, ridge_start
from unike.backbones.families.mini import N_TOKENS

DOMAIN_SHARE = {"photo": 0.4, "pictogram": 0.4, "flag": 0.2}
OPENINGS = (
    "The history of", "How do I", "In a small town", "The best way to", "Scientists have found", "Once upon a time", "def main(",
    "The city is known for", "My favourite book", "To make bread,", "The president said", "Water is", "When I was young,",
    "Question: Who wrote", "Question: Why is the sky blue? Short answer:", "The theory of", "Please write a letter",
    "Music is", "The river flows", "A triangle has", "In 1969,", "The capital of", "She opened the door and", "The recipe needs",
)  # fmt: skip


# --- batches ---------------------------------------------------------------------------------------------------------


def text_pool(
    student: Student, questions: dict[str, list[str]], pictures: list[Picture], tokenizer: Any, count: int
) -> list[list[int]]:
    """What the plain language model itself says: greedy answers to text-only questions, samples of free text."""
    rng = random.Random(1)
    countries = sorted({p.facts["country"] for p in pictures if p.domain == "flag"})
    words = ("iron", "gold", "helium", "sodium"), ("hot", "big", "early", "happy", "open")
    prompts = []
    for _ in range(count):
        if rng.random() < 0.4:
            prompts.append(rng.choice(OPENINGS))
            continue
        kind = rng.choice([k for k in questions if k.startswith("text_")])
        filled = rng.choice(questions[kind]).format(
            country=rng.choice(countries),
            element=rng.choice(words[0]),
            word=rng.choice(words[1]),
            a=rng.randint(1, 20),
            b=4 * rng.randint(0, 5),
        )
        prompts.append(f"Question: {filled} Short answer:")
    pool = []
    tokenizer.padding_side = "left"
    for start in range(0, count, 64):
        chunk = prompts[start : start + 64]
        batch = tokenizer([f"{tokenizer.bos_token}{p}" for p in chunk], return_tensors="pt", padding=True)
        LoraLinear.scale = 0.0
        torch.manual_seed(start)
        with torch.no_grad():
            out = student.lm.generate(**batch, max_new_tokens=20, do_sample=start % 128 == 0, pad_token_id=0)
        LoraLinear.scale = 1.0
        for row, mask in zip(out.tolist(), batch["attention_mask"].sum(1).tolist(), strict=True):
            tokens = row[batch["input_ids"].shape[1] - mask :]
            pool.append([t for t in tokens if t != 0][1:])
    return pool


# --- training --------------------------------------------------------------------------------------------------------


def nll(student: Student, batch: dict[str, Tensor], features: Tensor) -> Tensor:
    """Weighted mean over questions of the mean answer-token NLL; the head runs on answer positions only."""
    hidden = student(batch["ids"], batch["mask"], batch["positions"], features)
    at = batch["labels"][:, 1:] != -100
    logits = F.linear(hidden[:, :-1][at], student.lm.lm_head.weight).float()
    losses = F.cross_entropy(logits, batch["labels"][:, 1:][at], reduction="none")
    weights = batch["weights"][:, 1:][at]
    return (losses * weights).sum() / weights.sum()


def text_kl(student: Student, batch: dict[str, Tensor]) -> Tensor:
    """Mean ``KL(plain || updated)`` per token of text-only rows."""
    at = batch["labels"][:, 1:] != -100

    def log_probs() -> Tensor:
        hidden = student(batch["ids"], batch["mask"], batch["positions"], None)[:, :-1][at]
        return F.linear(hidden, student.lm.lm_head.weight).float().log_softmax(-1)

    LoraLinear.scale = 0.0
    with torch.no_grad():
        plain = log_probs()
    LoraLinear.scale = 1.0
    return F.kl_div(log_probs(), plain, log_target=True, reduction="batchmean")


@torch.no_grad()
def held_accuracy(
    student: Student, pictures: list[Picture], features: dict[str, Tensor], questions: dict[str, list[str]], rows: Rows
) -> dict[str, float]:
    """Teacher-forced exact match of the name or country on held-out pictures, in percent per domain."""
    held = [p for p in pictures if p.role == "held"]
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(held), 48):
        chunk = held[start : start + 48]
        kinds = ["country" if p.domain == "flag" else "name" for p in chunk]
        batch = rows.pack(
            [[(*rows.pair(questions[k][0], p.facts[k]), 1.0)] for p, k in zip(chunk, kinds, strict=True)], image=True
        )
        hidden = student(
            batch["ids"],
            batch["mask"],
            batch["positions"],
            torch.stack([features[p.image_id][0].float() for p in chunk]),
        )
        at = batch["labels"][:, 1:] != -100
        guess = torch.full_like(batch["labels"][:, 1:], -100)
        guess[at] = F.linear(hidden[:, :-1][at], student.lm.lm_head.weight).argmax(-1)
        for p, ok in zip(chunk, (guess == batch["labels"][:, 1:]).all(1).tolist(), strict=True):
            right[p.domain].append(ok)
    return {domain: round(100 * sum(oks) / len(oks), 1) for domain, oks in sorted(right.items())}


def save_checkpoint(path: Path, student: Student, optimiser: torch.optim.Optimizer, step: int) -> None:
    tensors = {}
    for name, parameter in student.trainable().items():
        tensors[f"value.{name}"] = parameter.detach().clone()
        for key, value in optimiser.state[parameter].items():
            tensors[f"{key}.{name}"] = value.clone()
    tensors |= {"mean": student.connector.mean, "scale": student.connector.scale, "at": torch.tensor(step)}
    save_file(tensors, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def load_checkpoint(path: Path, student: Student, optimiser: torch.optim.Optimizer) -> int:
    tensors = load_file(path)
    student.connector.mean.copy_(tensors["mean"])
    student.connector.scale.copy_(tensors["scale"])
    for name, parameter in student.trainable().items():
        parameter.data.copy_(tensors[f"value.{name}"])
        optimiser.state[parameter] = {k: tensors[f"{k}.{name}"] for k in ("step", "exp_avg", "exp_avg_sq")}
    return int(tensors["at"])


def export(path: Path, student: Student) -> None:
    """The committed artefact: fp16, read by ``unike.backbones.families.mini.build``."""
    tensors = {name: value.detach().half().contiguous() for name, value in student.trainable().items()}
    tensors |= {"connector.mean": student.connector.mean.float(), "connector.scale": student.connector.scale.float()}
    save_file(tensors, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", type=Path, required=True, help="folder of the plain language model")
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and adapter")
    parser.add_argument("--steps", type=int, default=850)
    parser.add_argument("--pictures", type=int, default=20, help="pictures a step, three questions each")
    parser.add_argument("--texts", type=int, default=4, help="text-only rows a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--connector-size", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--noise", type=float, default=0.3, help="standard deviation of feature noise, in feature units"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)

    tokenizer = AutoTokenizer.from_pretrained(args.llm)
    pictures, questions, features = read_pictures(), read_questions(), load_file(args.features)
    student, rows = Student(args.llm, args.rank, args.connector_size), Rows(tokenizer)
    by_concept = defaultdict(list)
    for picture in pictures:
        if picture.role == "fit":
            by_concept[picture.concept].append(picture)
    by_domain = {d: [p for p in pictures if p.domain == d and p.role == "fit"] for d in DOMAIN_SHARE}
    optimiser = torch.optim.AdamW(student.trainable().values(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98))
    checkpoint, log = args.out / "checkpoint.safetensors", args.out / "train_log.jsonl"
    first = 0
    if checkpoint.exists():
        first = load_checkpoint(checkpoint, student, optimiser)
    else:
        print(
            f"ridge start: {100 * ridge_start(student, pictures, features, tokenizer):.1f} % of held-out pictures find their name"
        )
    pool = text_pool(student, questions, pictures, tokenizer, 512)

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=args.steps, completed=first)
        running, began = [], time.monotonic()
        for step in range(first, args.steps):
            rng = random.Random(step)  # a step's data depend on its number alone: resuming changes nothing
            torch.manual_seed(step)
            warm = min(1.0, (step + 1) / 50)
            decay = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / args.steps)).item())
            optimiser.param_groups[0]["lr"] = args.lr * warm * (0.03 + 0.97 * decay)

            domains = rng.choices(list(DOMAIN_SHARE), weights=list(DOMAIN_SHARE.values()), k=args.pictures)
            chosen = [rng.choice(by_domain[d]) for d in domains]
            view = torch.stack([random_view(p, by_concept, features, rng) for p in chosen])
            view = view + args.noise * torch.randn_like(view) / student.connector.scale[[0] * (N_TOKENS - 1) + [1]]
            batch = rows.pack([picture_row(p, questions, rows, rng) for p in chosen], image=True)
            loss = nll(student, batch, view)
            loss.backward()
            kept = rows.pack([[(rng.choice(pool), 1, 1.0)] for _ in range(args.texts)], image=False)
            drift = text_kl(student, kept)
            drift.backward()
            torch.nn.utils.clip_grad_norm_(student.trainable().values(), 1.0)
            optimiser.step()
            optimiser.zero_grad()

            running.append((loss.item(), drift.item()))
            progress.update(task, advance=1, description=f"loss {loss.item():.2f}")
            if (step + 1) % 25 == 0:
                mean = [round(sum(v) / len(v), 4) for v in zip(*running, strict=True)]
                entry: dict[str, Any] = {
                    "step": step + 1,
                    "loss": mean[0],
                    "text_kl": mean[1],
                    "seconds": round(time.monotonic() - began),
                }
                running = []
                if (step + 1) % 100 == 0:
                    entry["held"] = held_accuracy(student, pictures, features, questions, rows)
                    save_checkpoint(checkpoint, student, optimiser, step + 1)
                    export(args.out / "mini_adapter.safetensors", student)
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
    save_checkpoint(checkpoint, student, optimiser, args.steps)
    export(args.out / "mini_adapter.safetensors", student)


if __name__ == "__main__":
    main()
