"""What a stack of edits costs: seconds to load, attach, add and revoke, and to ask; and memory.

    OMP_NUM_THREADS=1 python benchmarks/stack_cost.py --sizes 0,1,10,100,1000,10000

A few edits are made; a stack is copies of them with gate keys of their own (drawn: other pictures, other words), as
edits of other facts would have, saved in a temporary folder each and loaded from there. Each figure is the median of
several runs, and times of asking also as a ratio to the model without edits, in the same run. ``attach`` begins with
nothing; ``add`` and ``revoke`` make the stack with one edit more, and without its middle one, while the stack is in
use, as servers do. ``memory`` is what the process holds more than before the edits were loaded, once the first has been
called upon, also as a ratio to the model's parameters. Prints a line of JSON for each size.
"""

import argparse
import ctypes
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import normalize

import unike
from unike.backbones.adapter import Backbone
from unike.data.datasets.base import open_dataset
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
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
    EditedModel(backbone, made[:1]).generate([own])  # what every edit needs is read
    parameters = sum(weight.nbytes for weight in backbone.model.parameters())
    alone: dict[str, float] = {}
    for size in map(int, args.sizes.split(",")):
        before = resident()
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            stack = [loaded(edit, Path(folder) / str(number)) for number, edit in enumerate(copies(made[:-1], size))]
            took = {"save and load": time.perf_counter() - start}
            took["attach"] = seconds(lambda stack=stack: under(backbone, stack), args.runs)
            with attached(backbone, stack):
                backbone.generate([own])
                memory = resident() - before
                took["own"] = seconds(lambda: backbone.generate([own]), args.runs)
                took["other"] = seconds(lambda: backbone.generate([other]), args.runs)
            took |= changes(backbone, stack, made[-1], args.runs)
        alone = alone or took
        shown = {"edits": size} | {name: round(each, 4) for name, each in took.items()}
        shown |= {f"{name}, of alone": round(took[name] / alone[name], 3) for name in ("own", "other")}
        shown |= {"memory, MB": round(memory / 1e6, 1), "memory, of the model": round(memory / parameters, 4)}
        print(json.dumps(shown), flush=True)


def copies(made: Sequence[Edit], size: int) -> Iterator[Edit]:
    """A stack: the first edit as it is, then copies with drawn gate keys."""
    drawn = torch.Generator().manual_seed(0)
    yield from made[: min(size, 1)]
    for number in range(1, size):
        edit = made[number % len(made)]
        keys = {
            name: normalize(torch.randn(tensor.shape, generator=drawn), dim=-1).bfloat16().float()
            for name, tensor in edit.tensors.items()
            if name in ("gate.picture", "gate.asked")
        }
        fact = edit.facts[0]
        yield edit.like({**edit.tensors, **keys}, [Query(f"{fact.prompt} ({number})", fact.image, fact.target)])


def loaded(edit: Edit, folder: Path) -> Edit:
    edit.save_pretrained(folder)
    return Edit.from_pretrained(folder)


def changes(backbone: Backbone, stack: Sequence[Edit], more: Edit, runs: int) -> dict[str, float]:
    """Seconds to make a stack of one edit more, and without its middle one, while the stack itself is in use."""
    in_use, middle = EditedModel(backbone, stack), len(stack) // 2
    took = {"add": seconds(lambda: EditedModel(backbone, [*stack, more]), runs)}
    took["revoke"] = seconds(lambda: EditedModel(backbone, [*stack[:middle], *stack[middle + 1 :]]), runs)
    assert len(in_use.edits) == len(stack)
    return took


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


def resident() -> int:
    """Bytes of memory that the process holds, on Linux without what it has freed and the allocator keeps."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
