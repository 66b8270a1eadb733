"""Results on disk: whole lines or none, one run in a folder, and what is made of them."""

import errno
import gzip
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import header

from unike.bench.outcome import Asked, CaseResult
from unike.bench.results import ResultsFile, RunResults, check_place, read_header, read_run
from unike.bench.summary import COLUMNS, column, interval, summarise
from unike.core.errors import UnikeError

HEADER = header(threads=2)


def result(
    name: str,
    value: float | None = 1.0,
    kind: str = "reliability",
    notes: dict[str, float] | None = None,
    **kwargs: Any,
) -> CaseResult:
    scores = {"strict/exact": value, "teacher_forced/token": None if value is None else value / 2}
    asked = Asked(kind, "Où?", "a/b.png", "là", "no", "là", scores, notes or {})
    return CaseResult(name, "flag", (asked,), 0.5, **kwargs)


def write(folder: Path, *names: str, part: int | None = None) -> None:
    with ResultsFile(folder, HEADER, part=part) as file:
        for name in names:
            file.append(name, [result(name)])


# ---------------------------------------------------------------------- the file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    several = replace(result("c"), asked=(replace(result("c").asked[0], also=("ici",), hop=2, known=False),))
    cases = [result("a"), several, result("b", 0.25, notes={"alpha": 0.5}, sequence=3, position=1, when="own")]
    with ResultsFile(tmp_path / "new" / "run", HEADER) as file:
        file.append("sequence-3", cases)
    run = read_run(tmp_path / "new" / "run")
    assert run.header == HEADER
    assert run.units == {"sequence-3": cases} and run.cases == cases
    line = json.loads((tmp_path / "new" / "run" / "results.jsonl").read_text().splitlines()[1])
    assert ["notes" in case["asked"][0] for case in line["cases"]] == [False, False, True]
    for key in ("also", "known"):
        assert [key in case["asked"][0] for case in line["cases"]] == [False, True, False]


def test_a_run_goes_on_from_any_byte(tmp_path: Path) -> None:
    """Cut anywhere, even in the header, the file is whole again after the next run."""
    write(tmp_path, *"abc")
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {*random.Random(0).sample(range(len(whole)), 60), 0, 1, *ends, *(end - 1 for end in ends)}:
        path.write_bytes(whole[:cut])
        there = max(sum(end <= cut for end in ends) - 1, 0)
        with ResultsFile(tmp_path, HEADER) as file:
            assert list(read_run(tmp_path).units) == list("abc"[:there])
            for name in "abc"[there:]:
                file.append(name, [result(name)])
        assert path.read_bytes() == whole


def test_parts_are_read_together(tmp_path: Path) -> None:
    write(tmp_path, "a", "c", part=0)
    write(tmp_path, "b", "c", part=1)
    assert sorted(read_run(tmp_path).units) == ["a", "b", "c"]
    write(tmp_path, "d")  # the run went on with one process
    assert sorted(read_run(tmp_path).units) == ["a", "b", "c", "d"]


def test_compressed_results_are_read(tmp_path: Path) -> None:
    write(tmp_path, "a")
    path = tmp_path / "results.jsonl"
    (tmp_path / "results.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert list(read_run(tmp_path).units) == ["a"]


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, *"abc")
    path = tmp_path / "results.jsonl"
    content = bytearray(gzip.compress(path.read_bytes()))
    path.unlink()
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "results.jsonl.gz").write_bytes(content)
    with pytest.raises(UnikeError, match=r"cannot read .*results\.jsonl\.gz"):
        read_run(tmp_path)


def test_another_run_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with ResultsFile(tmp_path, header(threads=1)):
        pass
    with pytest.raises(UnikeError, match=r'holds another run: there editor is "ft", not "ke", seed is 0, not 1; '):
        ResultsFile(tmp_path, header(threads=2, seed=1, editor="ke"))
    with pytest.raises(UnikeError, match=r"there config\.steps is \d+, not 1;"):
        ResultsFile(tmp_path, header(config={**HEADER.config, "steps": 1}), part=1)
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_run_of_version_0_1_goes_on(tmp_path: Path) -> None:
    """Its header has none of the keys that were added since."""
    write(tmp_path, "a")
    path = tmp_path / "results.jsonl"
    first, *rest = path.read_text().splitlines()
    new = {"settings", "skip_bad", "anchors", "quantize", "learned"}
    old = {key: value for key, value in json.loads(first).items() if key not in new}
    path.write_text("\n".join([json.dumps(old), *rest, ""]))
    write(tmp_path, "b")
    assert list(read_run(tmp_path).units) == ["a", "b"] and read_header(tmp_path) == HEADER
    with pytest.raises(UnikeError, match="skip_bad is false, not true"):
        ResultsFile(tmp_path, header(threads=2, skip_bad=True))


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def iterdir(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UnikeError, match=r"cannot read .*: Permission denied; choose another folder"):
        check_place(tmp_path)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with ResultsFile(tmp_path, HEADER, part=0) as file:
        file.append("a", [result("a")])
        with pytest.raises(UnikeError, match=r"results\.0\.jsonl is being written by another process"):
            ResultsFile(tmp_path, HEADER, part=0)
        with ResultsFile(tmp_path, HEADER, part=1) as other:
            other.append("b", [result("b")])
    write(tmp_path, "c", part=0)
    assert sorted(read_run(tmp_path).units) == list("abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.0.jsonl", "results.1.jsonl"]


def test_places_that_cannot_be_used_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UnikeError, match="holds something else"):
        ResultsFile(tmp_path / "notes", HEADER)
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UnikeError, match=r"is not a folder|cannot write"):
            ResultsFile(place, HEADER)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2 is damaged"),
        (b"3", "line 2 is damaged"),
        (b'{"unit": "b"}', "line 2 is damaged"),
        (b'{"unit": "b", "cases": [{"asked": [], "nonsense": 1}]}', "line 2 is damaged"),
    ],
)
def test_damage_in_the_middle_is_not_passed_over(tmp_path: Path, line: bytes, message: str) -> None:
    write(tmp_path, "a")
    path = tmp_path / "results.jsonl"
    header, first = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + line + b"\n" + first)
    with pytest.raises(UnikeError, match=message):
        read_run(tmp_path)


def test_no_run_and_a_newer_format(tmp_path: Path) -> None:
    assert read_header(tmp_path) is None
    with pytest.raises(UnikeError, match="no results in"):
        read_run(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"format": 99}\n')
    with pytest.raises(UnikeError, match="has format 99, this version reads 1; update unike"):
        read_run(tmp_path)
    (tmp_path / "results.jsonl").write_text("[]\n")
    with pytest.raises(UnikeError, match="line 1 is damaged"):
        read_run(tmp_path)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with ResultsFile(tmp_path, HEADER) as file:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(UnikeError, match=r"cannot write .*: No space left on device; run again to go on"):
            file.append("a", [result("a")])


def test_a_disk_that_takes_half_a_line_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a")
    before = (tmp_path / "results.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full(os.write))
        with (
            pytest.raises(UnikeError, match=r"cannot write .*: No space left on device; run again to go on"),
            ResultsFile(tmp_path, HEADER) as file,
        ):
            file.append("b", [result("b")])
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    assert len((tmp_path / "results.jsonl").read_bytes()) > len(before)
    write(tmp_path, "b")
    assert list(read_run(tmp_path).units) == ["a", "b"]


def nearly_full(write: Callable[[int, bytes], int], starts: bytes = b'{"unit"') -> Callable[[int, bytes], int]:
    """`os.write` of a disk that has room for ten more bytes when it comes to a unit."""

    def written(number: int, content: bytes) -> int:
        if content.startswith(starts):
            return write(number, content[:10])
        if content.startswith(b'{"'):
            return write(number, content)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return written


def test_a_header_that_does_not_fit_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full(os.write, b'{"format"'))
        with pytest.raises(UnikeError, match=r"cannot write .*: No space left on device; choose another folder"):
            ResultsFile(tmp_path, HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    write(tmp_path, "a")
    assert list(read_run(tmp_path).units) == ["a"]


# ---------------------------------------------------------------------- the summary


def test_a_summary_has_a_row_for_every_score(tmp_path: Path) -> None:
    units = {
        "a": [result("a", 1.0), result("a", 0.0, "t_locality")],
        "b": [result("b", 0.5), result("b", 1.0, "t_locality")],
    }
    rows = summarise(RunResults(HEADER, units))
    assert all(tuple(row) == COLUMNS for row in rows)
    found = {(row["protocol"], row["scorer"], row["metric"]): (row["value"], row["n"]) for row in rows}
    assert found == {
        ("strict", "exact", "scope"): (0.5, 4),
        ("strict", "exact", "garbled"): (0.0, 4),
        ("teacher_forced", "token", "scope"): (0.0, 4),
        ("strict", "exact", "reliability"): (0.75, 2),
        ("strict", "exact", "t_locality"): (0.5, 2),
        ("teacher_forced", "token", "reliability"): (0.375, 2),
        ("teacher_forced", "token", "t_locality"): (0.25, 2),
    }
    assert [row["metric"] for row in rows[:4]] == ["scope", "reliability", "t_locality", "garbled"]
    assert {row["editor"] for row in rows} == {"ft"}


def test_a_column_has_one_protocol_and_one_scorer() -> None:
    rows = summarise(RunResults(HEADER, {"a": [result("a"), result("a", 0.0, "t_locality")]}))
    assert {name: row["value"] for name, row in column(rows[1:3]).items()} == {"reliability": 1.0, "t_locality": 0.0}
    with pytest.raises(UnikeError, match=r"cannot mix protocols \(strict, teacher_forced\)"):
        column(rows)
    with pytest.raises(ValueError, match="a metric comes twice"):
        column([rows[0], rows[0] | {"scorer": "other"}])


def test_what_is_not_defined_is_a_row_without_a_value() -> None:
    scope, row, *_ = summarise(RunResults(HEADER, {"a": [result("a", None)]}))
    assert (scope["metric"], row["metric"]) == ("scope", "reliability")
    for each in (scope, row):
        assert (each["value"], each["low"], each["high"], each["n"]) == (None, None, None, 0)


def test_times_of_a_sequence_are_settings_of_their_own() -> None:
    of_sequences = header(setting="sequential", k=100)
    whens = ["at-100", "own", "end", "at-10"]
    units = {"s": [result("a", index / 4, when=when) for index, when in enumerate(whens)]}
    found = summarise(RunResults(of_sequences, units))
    rows = [row for row in found if (row["protocol"], row["metric"]) == ("strict", "reliability")]
    assert [row["setting"] for row in rows] == [
        "sequential",
        "sequential:own",
        "sequential:at-10",
        "sequential:at-100",
    ]
    assert [row["value"] for row in rows] == [0.5, 0.25, 0.75, 0.0]


def test_an_interval_does_not_depend_on_the_order_in_which_units_were_finished() -> None:
    totals = [[float(number % 3 == 0), 1] for number in range(20)]
    shuffled = random.Random(1).sample(totals, len(totals))
    assert shuffled != totals and interval(shuffled, seed=0) == interval(totals, seed=0)


def test_the_interval_is_that_of_whole_units() -> None:
    """Ten questions that stand and fall together are one piece of evidence."""
    generator = random.Random(0)
    single = [[float(generator.random() < 0.7), 1] for _ in range(400)]
    value, low, high, n = interval(single, seed=0)
    assert n == 400 and value == pytest.approx(sum(s for s, _ in single) / 400)
    assert low is not None and high is not None and low < value < high
    assert high - low == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 400) ** 0.5, rel=0.15)
    joined = [[sum(s for s, _ in single[i : i + 10 : 1]), 10] for i in range(0, 400, 10)]
    whole = [[10.0 * s, 10] for s, _ in single[:40]]
    assert interval(joined, seed=0)[0] == value
    _, wide_low, wide_high, wide_n = interval(whole, seed=0)
    assert wide_n == 400 and wide_low is not None and wide_high is not None
    assert wide_high - wide_low > 2.5 * (high - low)
    assert interval(single, seed=0) == interval(single, seed=0) != interval(single, seed=1)
