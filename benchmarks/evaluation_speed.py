"""How fast edits are evaluated: replayed from split states, and with full forward passes one case at a time.

    python benchmarks/evaluation_speed.py --limit 16
    python benchmarks/evaluation_speed.py --editor unike --dataset pocket-caption

Both evaluate the same edits, which are made before the clock starts, as are the answers before the edit: a second
editor's run finds those on disk, and the time they take is 0 here if they are there already. Results must be equal.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from unike import api
from unike.backbones import load_backbone
from unike.backbones.answers import Answers
from unike.bench.lines import questions
from unike.bench.replay import Examiner
from unike.bench.selection import Task, choose, room
from unike.bench.spec import RunSpec
from unike.data.datasets.base import open_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--editor", default="ft")
    parser.add_argument("--dataset", default="pocket-vqa")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--limit", type=int, default=16, help="cases that are evaluated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    backbone, data = load_backbone(args.model), open_dataset(args.dataset)
    task = Task(args.dataset, args.split, data.cases(args.split), image_root=data.image_root)
    editor, answers = api.make_editor(args.editor), Answers(backbone, room(backbone, task.cases))
    (cases,), _ = choose(backbone, editor, [task], RunSpec(limit=args.limit), answers)
    _, cold = timed(lambda: answers.ask([query for case in cases for _, query in questions(case)]))
    edits, editing = timed(lambda: editor.edit(backbone, [case.edit for case in cases]))

    fast = Examiner(backbone, editor, answers, engine="fast")
    together, replayed = timed(lambda: fast.examine([fast.read(case) for case in cases], edits))
    plain = Examiner(backbone, editor, answers, engine="plain")
    alone, full = timed(
        lambda: [plain.examine([plain.read(case)], edits.rows([row]))[0] for row, case in enumerate(cases)]
    )
    assert together == alone, "the two engines disagree"

    count = len(cases)
    report = {
        "model": args.model,
        "editor": args.editor,
        "dataset": f"{args.dataset} {args.split}",
        "cases": count,
        "threads": args.threads,
        "replayed_cases_per_second": round(count / replayed, 3),
        "full_forwards_cases_per_second": round(count / full, 3),
        "ratio": round(full / replayed, 2),
        "seconds_per_edit": round(editing / count, 3),
        "seconds_per_case_asking_before": round(cold / count, 3),
    }
    print(json.dumps(report, indent=2))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
