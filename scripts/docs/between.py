"""Pages with a part that is made: what stands between two comments is put there by a script, and held by a test."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def put(page: Path, begin: str, end: str, content: str) -> str:
    """The text of a page with some lines between two others, in the place of what is there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page}: there is no {begin} ... {end} to put the table between")
    return f"{before}{begin}\n{content}\n{end}{after}"


def write(wanted: dict[Path, str], command: str) -> None:
    """Write the files that are not yet as they should be; with ``--check`` end with exit code 1 instead."""
    for path, text in wanted.items():
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        if "--check" in sys.argv and not same:
            raise SystemExit(f"{path.relative_to(ROOT)} is not what it is made from: {command}")
        if not same:
            path.write_text(text, encoding="utf-8")
