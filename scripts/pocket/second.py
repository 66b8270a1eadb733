"""Build PocketEdit's second version: more and harder questions about the pictures of the first.

    python scripts/pocket/second.py --out src/unike/data/datasets/pocket_data

It is made of the tables of version 1 (``images``, ``concepts``, ``questions``, ``edits``) and of what was written by
hand (``wordings2/``, see `free_wordings`). The same sources give the same bytes.

    edits2.parquet      MMEdit's keys, rephrase a list, no picture in edits about text; m_loc_more, near, port_new, spec
                        (JSON lists); case_id, task, split, domain, kind, concept, target_style
    questions2.parquet  kind, split, family, wording
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from first_version import DATA, EDITED, FirstVersion
from free_wordings import FreeWordings
from second_pictures import picture_edits, taught_edits
from second_texts import text_edits

KEYS = (
    "case_id",
    "task",
    "split",
    "domain",
    "kind",
    "concept",
    "target_style",
    "src",
    "rephrase",
    "pred",
    "alt",
    "image",
    "image_rephrase",
    "loc",
    "loc_ans",
    "m_loc",
    "m_loc_q",
    "m_loc_a",
    "m_loc_more",
    "near",
    "port_new",
    "spec",
)


def edit_rows(free: FreeWordings) -> list[dict[str, Any]]:
    """Every edit; what is drawn for one depends on its name alone."""
    found = []
    for split in EDITED:
        first = FirstVersion(split)
        for record in (*picture_edits(first, free), *taught_edits(first, free), *text_edits(first, free)):
            row = dict.fromkeys(KEYS) | {"pred": "", "target_style": ""} | record
            lists = {key: value for key, value in row.items() if isinstance(value, list)}
            found.append(row | {key: json.dumps(value, ensure_ascii=False) for key, value in lists.items()})
    return found


def build(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Write both tables, and return their rows."""
    free = FreeWordings()
    tables = {"questions2": free.rows(), "edits2": edit_rows(free)}
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        partial = out / f".{name}.partial"
        pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd", compression_level=19)
        partial.replace(out / f"{name}.parquet")
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DATA)
    args = parser.parse_args()
    tables = build(args.out)
    print("edits", sorted(Counter((row["task"], row["split"], row["domain"]) for row in tables["edits2"]).items()))
    print("taught", sorted(Counter((row["split"], row["target_style"]) for row in tables["edits2"]).items()))
    print("wordings", sorted(Counter((row["split"], row["family"]) for row in tables["questions2"]).items()))
    print("size", {path.name: path.stat().st_size for path in sorted(args.out.glob("*2.parquet"))})


if __name__ == "__main__":
    main()
