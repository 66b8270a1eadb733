"""What a stack of edits costs: seconds to attach it and to add one, to ask about an edited thing and about another.

    OMP_NUM_THREADS=2 python benchmarks/stack_cost.py --sizes 0,1,10,100,1000,10000

A few edits are made; a stack is copies of them with gate keys of their own (drawn: other pictures, other words), as
edits of other facts would have. Each figure is the median of several runs, and times of asking also as a ratio to the
model without edits, in the same run. Prints a line of JSON for each size.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch.nn.functional import normalize

import unike
from unike.backbones.adapter import Backbone
from unike.data.datasets.base import open_dataset
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.stack import attached

MADE = 4
"""Edits that are really made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--sizes", default="0,1,10,100,1000,10000", help="with 0, the model without edits, first")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    backbone, editor = unike.load_backbone(args.model), unike.make_editor("unike")
    facts = [case.edit for case in islice(open_dataset("pocket2-vqa").cases("dev"), MADE + 1)]
    made = [editor.edit(backbone, fact) for fact in facts]
    own, other = facts[0].question, facts[-1].question
    alone: dict[str, float] = {}
    for size in map(int, args.sizes.split(",")):
        stack = copies(made[:-1], size)
        took = {"attach": seconds(lambda stack=stack: under(backbone, stack), args.runs)}
        took["add"] = seconds(lambda stack=stack: under(backbone, [*stack, made[-1]]), args.runs) - took["attach"]
        with attached(backbone, stack):
            took["own"] = seconds(lambda: backbone.generate([own]), args.runs)
            took["other"] = seconds(lambda: backbone.generate([other]), args.runs)
        alone = alone or took
        ratios = {f"{name}, of alone": round(took[name] / alone[name], 3) for name in ("own", "other")}
        print(json.dumps({"edits": size} | {name: round(each, 4) for name, each in took.items()} | ratios), flush=True)


def copies(made: Sequence[Edit], size: int) -> list[Edit]:
    """A stack: the first edit as it is, then copies with drawn gate keys."""
    drawn = torch.Generator().manual_seed(0)
    stack: list[Edit] = list(made[:1])[:size]
    for number in range(1, size):
        edit = made[number % len(made)]
        keys = {
            name: normalize(torch.randn(tensor.shape, generator=drawn), dim=-1)
            for name, tensor in edit.tensors.items()
            if name in ("gate.picture", "gate.asked")
        }
        fact = edit.facts[0]
        stack.append(edit.like(edit.tensors | keys, [Query(f"{fact.prompt} ({number})", fact.image, fact.target)]))
    return stack


def under(backbone: Backbone, stack: Sequence[Edit]) -> None:
    with attached(backbone, stack):
        pass


def seconds(run: Callable[[], object], times: int) -> float:
    """The median of several runs, after one that warms up."""
    run()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


if __name__ == "__main__":
    main()
