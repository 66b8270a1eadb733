"""Two sets of runs, question by question: does other code give the same answers and strict scores?

    python benchmarks/same_answers.py BEFORE AFTER > results/redesign.md

Both are folders of runs as `unike bench --protocol strict` writes them; runs are paired by their folders' names. What
only one of the two asked is counted, not compared.
"""

import argparse
from pathlib import Path

from unike.bench.outcome import Asked
from unike.bench.results import read_run

Key = tuple[str, str, str, str | None]


def asked(folder: Path) -> dict[Key, Asked]:
    """Every question of a run by its case, kind, words and picture."""
    cases = read_run(folder).cases
    return {(case.case_id, each.kind, each.prompt, each.image): each for case in cases for each in case.asked}


def row(name: str, before: Path, after: Path) -> str:
    """A run before and after, as a row of a table."""
    one, other = asked(before), asked(after)
    both = one.keys() & other.keys()
    scores = sum(one[key].scores["strict/exact"] != other[key].scores["strict/exact"] for key in both)
    answers = sum(one[key].after != other[key].after for key in both)
    cases = len({key[0] for key in both})
    commits = [(read_run(folder).header.git or {}).get("commit", "?")[:7] for folder in (before, after)]
    return f"| {name} | {cases} | {len(both)} | {scores} | {answers} | {' → '.join(commits)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    chosen = parser.parse_args()
    print("| run | cases | questions | scores that differ | answers that differ | commits |")
    print("|---|---|---|---|---|---|")
    for folder in sorted(path for path in chosen.before.iterdir() if (chosen.after / path.name).is_dir()):
        print(row(folder.name, folder, chosen.after / folder.name))


if __name__ == "__main__":
    main()
