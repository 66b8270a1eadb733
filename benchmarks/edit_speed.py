"""Seconds for one edit, alone and in a batch, and what the split forward saves.

    python benchmarks/edit_speed.py --out results/edit_speed/unike.json

Every edit is made twice in one run, in turn: as it is, and with full forwards, where each step of the inner loop runs
the whole model, vision tower included, as editing code without a split does. The ratio of the two is the figure to
look at; seconds depend on the machine. Questions that test an edit are not counted, nor is what is read once for all
edits. The edits are the first of PocketEdit's dev split in the order of the seed.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.progress import track

import unike
from unike.backbones.forward.split import Batch
from unike.data.datasets.pocket import Pocket


def every(step: int, batch: Batch) -> Batch:
    """Of rows behind several questions, those behind the edits' own."""
    return replace(
        batch,
        inputs={name: tensor[::step] for name, tensor in batch.inputs.items()},
        labels=batch.labels[::step],
        prompt_last=batch.prompt_last[::step],
        tokens=batch.tokens[::step],
        shown=None if batch.shown is None else batch.shown[::step],
    )


@contextmanager
def full_forwards(model: Any) -> Iterator[None]:
    """Let every pass run the whole model."""
    batches = []
    encode = model.encode

    def remember(queries: Any, **kwargs: Any) -> Any:
        batches.append(encode(queries, **kwargs))
        return batches[-1]

    def run_whole(state: Any, positions: Any = None, acting: Any = None) -> Any:
        batch = every(len(batches[-1]) // len(state), batches[-1])
        # The gate is to take the rows for what they are taken for in the state, see `training.as_the_first`.
        logits = model.forward(replace(batch, tokens=state.tokens), acting)
        return logits if positions is None else logits[positions]

    changes = {"encode": remember, "run_from_split": run_whole, "shorten": lambda state, *_: state}
    with mock.patch.multiple(model, **changes):
        yield


def seconds(editor: Any, model: Any, facts: Any) -> float:
    began = time.perf_counter()
    editor.edit(model, facts)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", default="unike")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = unike.load_backbone(args.model, device="cpu")
    editor = unike.make_editor(args.editor)
    editor.prepare(model)
    cases = Pocket("vqa").cases("dev")
    random.Random(args.seed).shuffle(cases)
    seconds(editor, model, [cases[0].edit])  # warm up

    rows = []
    for batch in args.batches:
        facts = [case.edit for case in cases[:batch]]
        split, full = [], []
        for _ in track(range(args.repeat), description=f"batches of {batch}"):
            split.append(seconds(editor, model, facts))
            with full_forwards(model):
                full.append(seconds(editor, model, facts))
        rows.append(
            {
                "batch": batch,
                "seconds_per_edit": round(statistics.median(split) / batch, 3),
                "with_full_forwards": round(statistics.median(full) / batch, 3),
                "ratio": round(statistics.median(f / s for f, s in zip(full, split, strict=True)), 2),
            }
        )
    report = {
        "editor": args.editor,
        "config": editor.config.model_dump(mode="json"),
        "model": f"{args.model} {model.fingerprint()}",
        "dtype": str(model.dtype),
        "threads": args.threads,
        "repeat": args.repeat,
        "rows": rows,
    }
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
