"""The same tuning budget for every method: as many settings each, measured on ``dev``, never on ``eval``.

    python benchmarks/tuning.py --out runs/tuning                       # every method; hours on two cores
    python benchmarks/tuning.py --out runs/tuning --editors ft mend --limit 24

The first setting of a method is its default. Each is an ordinary ``unike bench`` on both tasks, after an ordinary
``unike train`` for a method with a network, so what was cut off goes on, and the table says what to type. A setting is
judged by the mean of reliability, both generalities and both localities over both tasks, strict and one-step.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from unike.bench.results import read_run
from unike.bench.summary import summarise

GRID: dict[str, list[dict[str, Any]]] = {
    "unike": [{}, {"lr": 5e-3}, {"lr": 2e-2}, {"pairs.n": 5}],
    "ft": [{}, {"lr": 1e-4}, {"lr": 5e-4}, {"lr": 1e-3}],
    "t_patcher": [{}, {"lr": 3e-3}, {"memory_weight": 3.0}, {"memory_weight": 30.0}],
    "ike": [
        {},
        {"n_copy": 2, "n_update": 6, "n_retain": 8},
        {"n_copy": 1, "n_update": 3, "n_retain": 4},
        {"n_copy": 0, "n_update": 0, "n_retain": 0},
    ],
    "mend": [{}, {"lr": 1e-5}, {"lr": 1e-4}, {"lr": 1e-4, "lr_step_size": 1e-5}],
    "ke": [{}, {"lr": 1e-3}, {"lr": 1e-3, "margin": 3e-2}, {"lr": 3e-3, "margin": 3e-2}],
    "serac": [{}, {"lr": 3e-5}, {"lr": 3e-5, "lr_scope": 3e-4}, {"n_layers": 4}],
}
"""Four settings a method. Of `TRAINED`, settings of the network."""

TRAINED = ("mend", "ke", "serac")

DATASETS = ("pocket-vqa", "pocket-caption")

JUDGED = ("reliability", "t_generality", "m_generality", "t_locality", "m_locality")
ALSO = ("specificity", "portability")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of runs, networks and tuning.md")
    parser.add_argument("--editors", nargs="+", choices=sorted(GRID), default=list(GRID))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--limit", type=int, default=32, help="dev cases of each task")
    parser.add_argument("--steps", type=int, default=800, help="at most so many, for methods with a network")
    parser.add_argument("--cases", type=int, default=1000, help="that a network learns from")
    parser.add_argument("--dtype", default="auto", help="as in `unike bench`")
    args = parser.parse_args()

    rows = [(editor, settings, measure(editor, settings, args)) for editor in args.editors for settings in GRID[editor]]
    text = table(rows)
    (args.out / "tuning.md").write_text(text, encoding="utf-8")
    print(text, end="")


def measure(editor: str, settings: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Each metric's mean over both tasks, in percent."""
    place, edit_settings = args.out / editor / name(settings), settings
    if editor in TRAINED:
        network = place / "network"
        edit_settings = {"trained": str(network)}
        options = {"editor": editor, "model": args.model, "steps": args.steps, "dtype": args.dtype, "out": network}
        unike("train", options, {**settings, "cases": args.cases, "every": 50})
    found: dict[str, list[float]] = {}
    for dataset in DATASETS:
        options = {"editor": editor, "model": args.model, "dataset": dataset, "split": "dev", "limit": args.limit}
        options |= {"dtype": args.dtype, "protocol": "strict", "out": place / dataset}
        unike("bench", options, edit_settings)
        for row in summarise(read_run(place / dataset), resamples=1):
            found.setdefault(row["metric"], []).append(100 * row["value"])
    return {metric: sum(values) / len(values) for metric, values in found.items()}


def unike(command: str, options: dict[str, Any], settings: dict[str, Any]) -> None:
    """Run the command that a user would type."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={plain(value)}")]
    print("unike", command, *words, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "unike", command, *words], check=True, stdout=sys.stderr)


def name(settings: dict[str, Any]) -> str:
    return ",".join(f"{key}={plain(value)}" for key, value in settings.items()) or "default"


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def table(rows: list[tuple[str, dict[str, Any], dict[str, float]]]) -> str:
    """Markdown, each method's best setting in bold."""
    lines = [
        f"| method | setting | {' | '.join((*JUDGED, 'mean of the five', *ALSO))} |",
        "|---" * (len(JUDGED) + len(ALSO) + 3) + "|",
    ]
    means = [sum(found[metric] for metric in JUDGED) / len(JUDGED) for *_, found in rows]
    for (editor, settings, found), mean in zip(rows, means, strict=True):
        best = mean == max(other for (theirs, *_), other in zip(rows, means, strict=True) if theirs == editor)
        told = f"**{name(settings)}**" if best else name(settings)
        values = [*(found[metric] for metric in JUDGED), mean, *(found[metric] for metric in ALSO)]
        lines.append(f"| `{editor}` | {told} | {' | '.join(f'{value:.1f}' for value in values)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
