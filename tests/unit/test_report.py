"""``unike report``: every cell of a table is what the runs say, and nothing is mixed that does not compare."""

import csv
import re
from io import StringIO
from pathlib import Path

import pytest
from reports import asked, bold, case, sequence, shown, unike, write

from unike.bench.outcome import CaseResult
from unike.bench.results import read_run
from unike.bench.summary import COLUMNS, summarise
from unike.core.errors import UnikeError
from unike.report import (
    arrange,
    gap_tables,
    read,
    report_tables,
    rows_to_csv,
    score_table,
    summary_tables,
    to_csv,
    to_html,
    to_markdown,
    views_of,
)
from unike.report.figures import bars, on_the_way

# ---------------------------------------------------------------------- tables


def test_one_step_has_both_tasks_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "vqa")
    write(tmp_path / "caption", dataset="pocket-caption", cases="0ther", max_new_tokens=32)
    (table,) = [score_table(blocks, "strict/exact") for blocks in arrange(read([tmp_path]), "strict/exact")]
    averaged = ("Rel.", "T-Gen.", "M-Gen.", "T-Loc.", "M-Loc.")
    heads = ("n", "Scope", *averaged, "Avg.", "N-Loc.", "Spec.", "Port.", "Garbled")
    assert table.heads == (("E-VQA", heads), ("E-IC", heads))
    row = ["4", "75.0", "100.0", "100.0", "75.0", "75.0", "100.0", "90.0", *["100.0"] * 3, "0.0"]
    assert shown(table) == {"ft": row * 2}
    assert table.title == "One-step editing; mini (f00d, float32): strict/exact, percent [95 % interval]"
    assert "E-IC: pocket-caption eval (cases 0ther), answers of at most 32 tokens, normalisation 2." in table.notes[0]
    _, cells = table.rows[0]
    (row_of_csv,) = [row for row in summarise(read_run(tmp_path / "vqa")) if row["metric"] == "m_generality"][:1]
    assert (cells[4].value, cells[4].n) == (0.75, 4) and cells[4].interval == (row_of_csv["low"], row_of_csv["high"])
    assert cells[4].measurement is not None and list(cells[4].measurement.runs) == [tmp_path / "vqa"]


def test_what_was_not_measured_is_na_and_spoils_the_average(tmp_path: Path) -> None:
    write(tmp_path / "run", {"a": [case("a", kinds=["reliability", "t_locality"])]})
    write(tmp_path / "other", {"a": [case("a")]}, editor="zap", dataset="pocket-caption")
    ((blocks),) = arrange(read([tmp_path]), "strict/exact")
    assert shown(score_table(blocks, "strict/exact")) == {
        "ft": ["1", "100.0", "100.0", "n/a", "n/a", "100.0", *["n/a"] * 5, "0.0"] + ["n/a"] * 12,
        "zap": ["n/a"] * 12 + ["1"] + ["100.0"] * 10 + ["0.0"],
    }


def test_an_undefined_score_is_na(tmp_path: Path) -> None:
    case = CaseResult("a", "", (asked("reliability", 1.0), asked("t_locality", None)), 0.5)
    write(tmp_path, {"a": [case]})
    ((blocks),) = arrange(read([tmp_path]), "strict/exact")
    cells = shown(score_table(blocks, "strict/exact"))["ft"]
    assert (cells[1], cells[2], cells[5]) == ("n/a", "100.0", "n/a"), "nor is scope"
    (page,) = [bars(block, "x") for block in blocks]
    assert ">n/a<" in page


def test_the_best_is_bold_where_there_is_a_choice(tmp_path: Path) -> None:
    write(tmp_path / "a")
    ((blocks),) = arrange(read([tmp_path]), "strict/exact")
    assert not any(bold(score_table(blocks, "strict/exact"))["ft"]), "of one method"
    write(tmp_path / "b", {n: [case(n, ["reliability"])] for n in "abcd"}, editor="zap")
    perfect = {n: [case(n)] for n in "abc"}
    write(tmp_path / "c", perfect, editor="unfinished")
    ((blocks),) = arrange(read([tmp_path]), "strict/exact")
    # "n" is nothing to be best at; whoever has not finished is out of the race
    assert bold(score_table(blocks, "strict/exact")) == {
        "ft": [False, True, True, True, False, False, True, True, True, True, True, True],
        "unfinished": [False] * 12,
        "zap": [False, False, False, True, True, True, True, False, True, True, True, True],
    }


def test_unfinished_runs_are_marked(tmp_path: Path) -> None:
    write(tmp_path / "run", {"a": [case("a")]})
    measurements = read([tmp_path])
    ((blocks),) = arrange(measurements, "strict/exact")
    (_, cells), *_ = score_table(blocks, "strict/exact").rows
    assert (cells[0].text, cells[0].remark) == ("1", "unfinished: 1 of 4")
    text = to_markdown(measurements, report_tables(measurements, ["strict/exact"]))
    assert "| ft | 1 unfinished: 1 of 4 | 100.0 [100, 100] |" in text and "cases 1 of 4" in text
    assert all("Unfinished: ft, E-VQA: 1 of 4 cases." in table.notes for table in gap_tables(measurements))
    assert "(unfinished: 1 of 4)" in to_html(measurements, [], "strict/exact")


def test_a_run_that_was_only_begun_is_in_the_provenance(tmp_path: Path) -> None:
    write(tmp_path / "run", {})
    measurements = read([tmp_path])
    assert views_of(measurements) == [] and measurements[0].done == 0
    assert "cases 0 of 4" in to_markdown(measurements, report_tables(measurements, []))


def test_sequences_stand_by_their_length_and_the_end_apart_from_the_rest(tmp_path: Path) -> None:
    for k in (2, 4):
        write(
            tmp_path / f"k{k}",
            sequence(0, k, {"0-1": ["reliability"]}),
            setting="sequential",
            k=k,
            edited=k,
        )
    tables = [score_table(blocks, "strict/exact") for blocks in arrange(read([tmp_path]), "strict/exact")]
    end, own = tables
    assert [title for title, _ in end.heads] == [title for title, _ in own.heads] == ["K = 2", "K = 4"]
    assert end.title.startswith("Sequential editing on E-VQA; mini") and ", asked right after each edit;" in own.title
    assert [shown(table)["ft"][1:3] for table in tables] == [["50.0"] * 2, ["100.0"] * 2]
    assert [shown(table)["ft"][14] for table in tables] == ["75.0", "100.0"]
    assert shown(end)["ft"][0] == "2" and end.rows[0][1][0].remark == ""


def test_intermediate_times_are_a_table_of_their_own(tmp_path: Path) -> None:
    cases = [case("a", ["reliability"], sequence=0, when="at-1"), case("a", sequence=0), case("b", sequence=0)]
    changes = {"setting": "sequential", "k": 2, "evaluate_at": (1,), "edited": 2}
    write(tmp_path, {"sequence-00000": cases}, **changes)
    end, at = [score_table(blocks, "strict/exact") for blocks in arrange(read([tmp_path]), "strict/exact")]
    assert (shown(end)["ft"][2], shown(at)["ft"][2]) == ("100.0", "0.0")
    assert at.heads[0][0] == "K = 2, after 1" and "asked on the way" in at.title


def test_intermediate_times_are_drawn_as_curves_up_to_the_end(tmp_path: Path) -> None:
    def asked_at(wrong: bool, when: str) -> CaseResult:
        return case("a", ["reliability"] if wrong else [], sequence=0, when=when)

    changes = {"setting": "sequential", "k": 200, "evaluate_at": (100, 20), "edited": 200}
    for editor, wrong in (("ft", (False, False, True)), ("zap", (False, True, True))):
        cases = [asked_at(*each) for each in zip(wrong, ("at-20", "at-100", "end"), strict=True)]
        write(tmp_path / editor, {"sequence-00000": cases}, editor=editor, **changes)
    end, at = [score_table(blocks, "strict/exact") for blocks in arrange(read([tmp_path]), "strict/exact")]
    (drawing,) = on_the_way(at)
    scope, reliability, *others = drawing.figure.axes
    assert (scope.get_title(), reliability.get_title()) == ("Scope", "Rel.") and len(others) == 8
    drawn = {line.get_label(): list(line.lines[0].get_ydata()) for line in reliability.containers}
    assert list(drawn.values()) == [[100, 100, 0], [100, 0, 0]] and "ft" in drawn
    assert [tick.get_text() for tick in reliability.get_xticklabels()] == ["20", "100", "200"]
    assert "200 edits pile up" in drawing.caption and "strict/exact" in drawing.caption
    assert on_the_way(end) == []
    page = to_html(read([tmp_path]), [end, at], "strict/exact")
    assert drawing.caption in page and "K = 200, after 20. " not in page, "no bars of the same numbers"


def test_cross_task_is_a_table_of_both(tmp_path: Path) -> None:
    write(
        tmp_path,
        sequence(0, 2),
        dataset="pocket-vqa+pocket-caption",
        setting="cross-task",
        k=2,
        edited=2,
    )
    end, _ = report_tables(read([tmp_path]), ["strict/exact"])
    assert end.title.startswith("Cross-task editing on E-VQA + E-IC; mini") and end.heads[0][0] == "K = 2"


def test_the_gap_between_protocols_names_both(tmp_path: Path) -> None:
    write(tmp_path / "vqa")
    write(tmp_path / "strict", protocols=("strict",), editor="zap", units={"a": [case("a")]})
    path = tmp_path / "strict" / "results.jsonl"
    path.write_text(re.sub(r', "teacher_forced/\w+": 1.0', "", path.read_text()))
    (table,) = gap_tables(read([tmp_path]))
    assert table.heads[0][1][6:9] == ("Gen. strict", "Gen. teacher-forced", "Gen. gap")
    scope, rel, gen = (["75.0", "100.0", "+25.0"], ["100.0", "100.0", "+0.0"], ["87.5", "100.0", "+12.5"])
    assert shown(table) == {"ft": [*scope, *rel, *gen, *gen]}
    assert "strict/exact beside teacher_forced/em" in table.title
    assert table.title in [found.title for found in report_tables(read([tmp_path]), views_of(read([tmp_path])))]


def test_the_summary_is_over_what_all_its_numbers_share(tmp_path: Path) -> None:
    write(tmp_path / "vqa")
    write(tmp_path / "caption", {n: [case(n)] for n in "abcd"}, dataset="pocket-caption")
    write(tmp_path / "half", editor="zap")
    for k in (2, 4):
        changes = {"setting": "sequential", "k": k, "edited": k}
        write(tmp_path / f"k{k}", sequence(0, k, {"0-0": ["t_locality"]}), **changes)
    assert not any("own" in table.title or "right after" in table.title for table in gap_tables(read([tmp_path])))
    (table,) = summary_tables(read([tmp_path]), "strict/exact")
    assert [title for title, _ in table.heads] == ["One-step editing", "Sequential editing"]
    # Gen.: (100 + 75 + 100 + 100) / 4; Loc. of sequences: (50 + 100 + 75 + 100) / 4
    # Scope: (75 + 100) / 2, and (50 + 75) / 2
    assert shown(table) == {
        "ft": ["87.5", "100.0", "93.8", "93.8", "62.5", "100.0", "100.0", "81.2"],
        "zap": ["n/a"] * 8,
    }
    assert "pocket-vqa K = 2, pocket-vqa K = 4" in table.notes[0]


# ---------------------------------------------------------------------- bad runs


def test_bad_runs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnikeError, match="nowhere is not a folder"):
        read([tmp_path / "nowhere"])
    with pytest.raises(UnikeError, match="no results in"):
        read([tmp_path])
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "results.jsonl"
    path.write_text('{"format": 1, "model": "mini"}\n')
    with pytest.raises(UnikeError, match=r"the header lacks editor, .*, dtype, config, fingerprint, .*; it was not"):
        read([tmp_path])
    path.unlink()
    write(tmp_path / "run", {"a": [case("a")]})
    path.write_text(path.read_text().replace("strict/exact", "novel/exact"))
    with pytest.raises(UnikeError, match="run: scores that this version cannot read"):
        read([tmp_path])


# ---------------------------------------------------------------------- CSV and Markdown


def test_csv_has_the_columns_and_round_trips(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "k2", sequence(0, 2), setting="sequential", k=2, edited=2, seed=3, **unike(k=40))
    measurements = read([tmp_path])
    text = to_csv(measurements)
    assert text.splitlines()[0] == "model,editor,dataset,setting,k,protocol,scorer,metric,value,low,high,n,seed"
    rows = list(csv.DictReader(StringIO(text)))
    expected = [row for measurement in measurements for row in measurement.rows]
    assert rows == [{key: str(row[key]) for key in COLUMNS} for row in expected]
    assert {(row["editor"], row["setting"], row["k"], row["seed"]) for row in rows} == {
        ("ft", "one-step", "1", "0"),
        ("unike (memory.k=40)", "sequential", "2", "3"),
        ("unike (memory.k=40)", "sequential:own", "2", "3"),
    }
    assert {row["protocol"] for row in csv.DictReader(StringIO(to_csv(measurements, ["strict"])))} == {"strict"}


def test_markdown_has_tables_and_provenance(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", editor="z|<b>", units={n: [case(n)] for n in "abcd"})
    measurements = read([tmp_path])
    text = to_markdown(measurements, report_tables(measurements, ["strict/exact"]))
    head, line, *rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = "Scope | Rel. | T-Gen. | M-Gen. | T-Loc. | M-Loc. | Avg. | N-Loc. | Spec. | Port. | Garbled"
    assert head == f"| method | E-VQA n | {columns} |"
    assert line.count("---:") == 12
    assert rows[1].startswith(r"| z\|\<b\> | 4 | **100.0** [100, 100] |")
    assert "commit c0ffee" in text and "seed 0" in text and "cases' hash ca5e5" in text and "unike 0.1.0" in text
    assert "1 already right, 0 skipped" in text and "seconds an edit 0.50" in text
    assert "unike bench --model mini --editor ft --dataset pocket-vqa" in text


def test_portability_is_told_by_hop_too(tmp_path: Path) -> None:
    answers = [asked("reliability", 1.0), *(asked("portability", float(hop == 1), hop=hop) for hop in (1, 2, 2, 4))]
    write(tmp_path / "a", units={"a": [CaseResult("a", "flag", tuple(answers), 0.5)]}, edited=1)
    (table,) = report_tables(read([tmp_path]), ["strict/exact"])
    heads = dict(zip(table.heads[0][1], (cell.text for cell in table.rows[0][1]), strict=True))
    assert {head: text for head, text in heads.items() if head.startswith("Port.")} == {
        "Port.": "25.0",
        "Port. 1-hop": "100.0",
        "Port. 2-hop": "0.0",
        "Port. 4-hop": "0.0",
    }
    rows = {row["metric"]: row for row in read([tmp_path])[0].rows if row["protocol"] == "strict"}
    assert (rows["portability:2-hop"]["n"], rows["portability"]["n"]) == (2, 4)
    assert "portability:4-hop" in to_csv(read([tmp_path]))


def test_portability_is_told_apart_by_whether_it_is_known(tmp_path: Path) -> None:
    answers = [asked("reliability", 1.0), *(asked("portability", float(known), known=known) for known in (True, False))]
    write(tmp_path / "a", units={"a": [CaseResult("a", "flag", tuple(answers), 0.5)]}, edited=1)
    (table,) = report_tables(read([tmp_path]), ["strict/exact"])
    heads = dict(zip(table.heads[0][1], (cell.text for cell in table.rows[0][1]), strict=True))
    assert [heads[f"Port.{part}"] for part in ("", " known", " rest")] == ["50.0", "100.0", "0.0"]
    assert heads["Scope"] == "100.0"


def test_nothing_in_a_header_ends_the_block_that_it_stands_in(tmp_path: Path) -> None:
    evil = "m\n```\n# Title\r````\n<script>"
    write(tmp_path / "a", model=evil, dataset="pocket-|vqa\n# x")
    measurements = read([tmp_path])
    text = to_markdown(measurements, report_tables(measurements, ["strict/exact"]))
    inside = text[text.index("  `````sh\n") : text.index("\n  `````\n")]
    assert evil.replace("\n", "\n  ").replace("\r", "\r  ") in inside, "indented as the list's"
    outside = text.replace(inside, "")
    assert (
        "<script>" not in outside and "\n```" not in outside and "\n# x" not in outside and "\n# Title" not in outside
    )
    assert all(line.count(" | ") == 12 for line in text.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("name", ["=1+2", "+x", "-x", "@x", " =HYPERLINK()", "\t=1"])
def test_a_spreadsheet_computes_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a", model=name)
    rows = list(csv.DictReader(StringIO(to_csv(read([tmp_path])))))
    assert {row["model"] for row in rows} == {f"'{name}"}
    assert rows_to_csv([{"a": -0.5, "b": "-0.5", "c": "+1", "d": "x=1", "e": None}]) == "a,b,c,d,e\n-0.5,-0.5,+1,x=1,\n"
