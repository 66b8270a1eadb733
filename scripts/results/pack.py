"""Finished runs as the repository keeps them: one compressed file a run, the same bytes for the same lines.

python scripts/results/pack.py RUNS OUT    # runs/unike/one-step-vqa to OUT/unike/one-step-vqa/results.jsonl.gz

RUNS is a folder that ``unike bench --out`` wrote, or one above several. Parts that several processes wrote become one
file. Nothing below RUNS is changed; a run that is not finished, or that OUT already holds otherwise, is refused.
"""

import gzip
import io
import json
import sys
from pathlib import Path

from unike.bench.results import find_runs, read_run
from unike.core.errors import UnikeError
from unike.core.files import replace_file

PACKED = "results.jsonl.gz"


def packed(run: Path) -> bytes:
    """All lines of a finished run, compressed; neither a name nor a time is kept beside them.

    Raises:
        UnikeError: It is not finished, or damaged.
    """
    results = read_run(run)
    if not results.finished:
        raise UnikeError(f"{run} has {results.cases_done} of {results.header.counts.edited} cases; finish it first")
    lines: dict[str, bytes] = {}
    for path in sorted(run.glob("results*.jsonl*")):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in content.split(b"\n")[:-1]:
            lines.setdefault(json.loads(line).get("unit", ""), line)  # the header, once, has no unit
    written = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=written, mtime=0) as file:
        file.write(b"".join(line + b"\n" for line in lines.values()))
    return written.getvalue()


def pack(runs: Path, out: Path) -> list[Path]:
    """Every run at or below a folder, under the same names below another.

    Returns:
        The files, in order of their names.

    Raises:
        UnikeError: A run is not finished, or its place holds something else.
    """
    contents = {out / run.relative_to(runs) / PACKED: packed(run) for run in find_runs(runs)}
    for path, content in contents.items():
        there = sorted(path.parent.glob("results*.jsonl*"))
        if there and (there != [path] or path.read_bytes() != content):
            raise UnikeError(f"{path.parent} holds results already; take them away first, or choose another folder")
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    return list(contents)


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("python scripts/results/pack.py RUNS OUT")
    try:
        for path in pack(*map(Path, sys.argv[1:])):
            print(path)
    except UnikeError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
