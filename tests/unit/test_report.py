"""``unike report``: every cell of a table is what the runs say, and nothing is mixed that does not compare."""

import base64
import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import resources
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reports import HEADER, asked, case, header, write

from unike.bench.header import Header, settings_of_0_1
from unike.bench.outcome import CaseResult
from unike.bench.results import read_run
from unike.bench.summary import COLUMNS, select, summarise
from unike.core.errors import UnikeError
from unike.data.datasets.base import open_dataset
from unike.editors.unike.config import UniKEConfig
from unike.report import (
    Block,
    Entry,
    Measurement,
    Table,
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
from unike.report.failures import failures
from unike.report.figures import bars, histograms, on_the_way
from unike.report.measurements import method_names
from unike.report.page import logged

Cli = Callable[..., Any]


def shown(table: Table) -> dict[str, list[str]]:
    """Method to the texts of its cells."""
    return {method: [cell.text for cell in cells] for method, cells in table.rows}


def bold(table: Table) -> dict[str, list[bool]]:
    return {method: [cell.best for cell in cells] for method, cells in table.rows}


def sequence(number: int, k: int, wrong: dict[str, list[str]] | None = None) -> dict[str, list[CaseResult]]:
    """A sequence of k cases, each asked right after its edit (all right) and at the end."""
    names = [f"{number}-{position}" for position in range(k)]
    where = [{"sequence": number, "position": position} for position in range(k)]
    own = [case(name, when="own", **there) for name, there in zip(names, where, strict=True)]
    end = [case(name, (wrong or {}).get(name, []), **there) for name, there in zip(names, where, strict=True)]
    return {f"sequence-{number:05d}": own + end}


# ---------------------------------------------------------------------- tables


def test_one_step_has_both_tasks_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "vqa")
    write(tmp_path / "caption", dataset="pocket-caption", cases="0ther", max_new_tokens=32)
    (table,) = [score_table(blocks, "strict/exact") for blocks in arrange(read([tmp_path]), "strict/exact")]
    heads = ("n", "Rel.", "T-Gen.", "M-Gen.", "T-Loc.", "M-Loc.", "Avg.", "Spec.", "Port.")
    assert table.heads == (("E-VQA", heads), ("E-IC", heads))
    row = ["4", "100.0", "100.0", "75.0", "75.0", "100.0", "90.0", "100.0", "100.0"]
    assert shown(table) == {"ft": row * 2}
    assert table.title == "One-step editing; mini (f00d, float32): strict/exact, percent [95 % interval]"
    assert "E-IC: pocket-caption eval (cases 0ther), answers of at most 32 tokens, normalisation 2." in table.notes[0]
    _, cells = table.rows[0]
    (row_of_csv,) = [row for row in summarise(read_run(tmp_path / "vqa")) if row["metric"] == "m_generality"][:1]
    assert (cells[3].value, cells[3].n) == (0.75, 4) and cells[3].interval == (row_of_csv["low"], row_of_csv["high"])
    assert cells[3].measurement is not None and list(cells[3].measurement.runs) == [tmp_path / "vqa"]


def test_what_was_not_measured_is_na_and_spoils_the_average(tmp_path: Path) -> None:
    write(tmp_path / "run", {"a": [case("a", kinds=["reliability", "t_locality"])]})
    write(tmp_path / "other", {"a": [case("a")]}, editor="zap", dataset="pocket-caption")
    ((blocks),) = arrange(read([tmp_path]), "strict/exact")
    assert shown(score_table(blocks, "strict/exact")) == {
        "ft": ["1", "100.0", "n/a", "n/a", "100.0", "n/a", "n/a", "n/a", "n/a"] + ["n/a"] * 9,
        "zap": ["n/a"] * 9 + ["1"] + ["100.0"] * 8,
    }


def test_an_undefined_score_is_na(tmp_path: Path) -> None:
    case = CaseResult("a", "", (asked("reliability", 1.0), asked("t_locality", None)), 0.5)
    write(tmp_path, {"a": [case]})
    ((blocks),) = arrange(read([tmp_path]), "strict/exact")
    assert shown(score_table(blocks, "strict/exact"))["ft"][4] == "n/a"
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
        "ft": [False, True, True, False, False, True, True, True, True],
        "unfinished": [False] * 9,
        "zap": [False, False, True, True, True, True, False, True, True],
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
    assert [shown(table)["ft"][1] for table in tables] == ["50.0", "100.0"]
    assert [shown(table)["ft"][10] for table in tables] == ["75.0", "100.0"]
    assert shown(end)["ft"][0] == "2" and end.rows[0][1][0].remark == ""


def test_intermediate_times_are_a_table_of_their_own(tmp_path: Path) -> None:
    cases = [case("a", ["reliability"], sequence=0, when="at-1"), case("a", sequence=0), case("b", sequence=0)]
    changes = {"setting": "sequential", "k": 2, "evaluate_at": (1,), "edited": 2}
    write(tmp_path, {"sequence-00000": cases}, **changes)
    end, at = [score_table(blocks, "strict/exact") for blocks in arrange(read([tmp_path]), "strict/exact")]
    assert (shown(end)["ft"][1], shown(at)["ft"][1]) == ("100.0", "0.0")
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
    reliability, *others = drawing.figure.axes
    assert reliability.get_title() == "Rel." and len(others) == 6
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
    assert table.heads[0][1][3:6] == ("Gen. strict", "Gen. teacher-forced", "Gen. gap")
    assert shown(table) == {"ft": ["100.0", "100.0", "+0.0", "87.5", "100.0", "+12.5", "87.5", "100.0", "+12.5"]}
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
    assert shown(table) == {"ft": ["100.0", "93.8", "93.8", "100.0", "100.0", "81.2"], "zap": ["n/a"] * 6}
    assert "pocket-vqa K = 2, pocket-vqa K = 4" in table.notes[0]


# ---------------------------------------------------------------------- nothing is mixed


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"fingerprint": "beef"},
        {"dtype": "bfloat16"},
        {"cases": "0ther"},
        {"split": "dev"},
        {"max_new_tokens": 32},
    ],
)
def test_other_conditions_are_another_table(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", editor="zap")
    write(tmp_path / "c", **changes)
    measurements = read([tmp_path])
    tables = report_tables(measurements, ["strict/exact"])
    assert sorted([*shown(table)] for table in tables) == [["ft"], ["ft", "zap"]]
    (key,) = changes
    entries = tuple(Entry(m, select(m.rows, "strict/exact", "one-step")) for m in measurements)
    with pytest.raises(UnikeError, match=rf"one table cannot mix different {key} \("):
        Block("x", tuple(entry for entry in entries if entry.method == "ft"))
    blocks = [Block(str(entry.measurement.number), (entry,)) for entry in entries]
    if key in ("model", "fingerprint", "dtype"):
        with pytest.raises(UnikeError, match=f"one table cannot mix different {key}"):
            score_table(blocks, "strict/exact")


def test_mixed_protocols_and_scorers_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (measurement,) = read([tmp_path])

    def block(*views: str) -> Block:
        return Block("x", (Entry(measurement, [r for v in views for r in select(measurement.rows, v, "one-step")]),))

    with pytest.raises(UnikeError, match=r"cannot mix protocols \(strict, teacher_forced\)"):
        score_table([block("strict/exact", "teacher_forced/em")], "strict/exact")
    with pytest.raises(UnikeError, match=r"cannot mix protocols \(strict, teacher_forced\)"):
        score_table([block("strict/exact"), block("teacher_forced/em")], "teacher_forced/em")
    with pytest.raises(UnikeError, match=r"a table of teacher_forced/em cannot have the scorer token"):
        score_table([block("teacher_forced/em"), block("teacher_forced/token")], "teacher_forced/em")
    with pytest.raises(UnikeError, match=r"unknown view 'strict'; did you mean 'strict/exact'"):
        report_tables([measurement], ["strict"])
    with pytest.raises(UnikeError, match="the same method twice"):
        Block("x", (*block("strict/exact").entries, *block("strict/exact").entries))


def test_times_of_a_sequence_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, sequence(0, 2), setting="sequential", k=2, edited=2)
    (measurement,) = read([tmp_path])
    rows = [row for when in ("", ":own") for row in select(measurement.rows, "strict/exact", f"sequential{when}")]
    with pytest.raises(UnikeError, match="mixes numbers of several times"):
        score_table([Block("x", (Entry(measurement, rows),))], "strict/exact")


# ---------------------------------------------------------------------- several runs


def test_seeds_are_put_together_over_cases(tmp_path: Path) -> None:
    write(tmp_path / "s2", {"a": [case("a")], "c": [case("c")]}, seed=2)
    write(tmp_path / "s0", {"a": [case("a", ["reliability"])], "b": [case("b")]})
    (measurement,) = read([tmp_path])
    assert list(measurement.runs) == [tmp_path / "s0", tmp_path / "s2"]
    row = next(row for row in measurement.rows if row["metric"] == "reliability")
    assert (row["value"], row["n"], row["seed"]) == (0.75, 4, "0+2")
    assert (measurement.done, measurement.planned) == (4, 8)
    # What is drawn are the cases a (right once of two), b and c: the worst draw has a alone.
    assert (row["low"], row["high"]) == (0.5, 1.0)


def test_sequences_of_several_seeds_are_units_of_their_own(tmp_path: Path) -> None:
    changes = {"setting": "sequential", "k": 2, "edited": 2}
    for seed in (0, 1):
        write(tmp_path / str(seed), sequence(0, 2, {} if seed else {"0-0": ["reliability"]}), seed=seed, **changes)
    (measurement,) = read([tmp_path])
    row = select(measurement.rows, "strict/exact", "sequential")[0]
    assert (row["value"], row["low"], row["high"], row["n"]) == (0.75, 0.5, 1.0, 4)


def test_one_measurement_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", git=None, threads=8)
    with pytest.raises(UnikeError, match=r"a and .*b measured the same with seed 0; report one of them"):
        read([tmp_path])
    assert len(read([tmp_path / "a", tmp_path / "a" / ".." / "a"])) == 1, "named twice, there once"


KNOWN_TO_0_1 = json.loads(resources.files("unike.bench").joinpath("settings_0_1.json").read_text(encoding="utf-8"))


def names(*changes: dict[str, Any]) -> list[str]:
    return method_names([header(**each) for each in changes])


def unike(**settings: Any) -> dict[str, Any]:
    config = UniKEConfig.parse(settings)
    return {"editor": "unike", "config": config.model_dump(mode="json"), "settings": config.fewest()}


def test_methods_are_named_by_what_was_set() -> None:
    assert names(unike(), unike(only_intrinsic=True), unike(k=40), unike(paper=True, beta=0.5), {}) == [
        "unike",
        "unike (ablation=only_intrinsic)",
        "unike (memory.k=40)",
        "unike (paper, collaboration.beta=0.5)",
        "ft",
    ]
    assert names(unike(gate=False, zeta="off")) == ["unike (collaboration.zeta=off, gate.on=false)"]


def test_methods_that_differ_never_share_a_name() -> None:
    other = {"editor": "zap", "config": {"depth": 1}}
    assert names(other, other | {"config": {"depth": 2}}) == ["zap (depth=1)", "zap (depth=2)"]
    assert names(other) == ["zap"], "an editor of which nothing is known"
    assert names(unike(), unike() | {"learned": "abc"}) == ["unike (learned=null)", "unike (learned=abc)"]
    old = unike()["config"] | {"gate": {"on": True, "rivalry": 0.1}}
    assert names(unike(), {"editor": "unike", "config": old}) == ["unike (gate.slack=0.3)", "unike (gate.slack=null)"]
    assert names({"limit": 5}, {"limit": None}) == ["ft (limit=5)", "ft (limit=null)"]
    assert names({"limit": 5}, {"limit": None, "dataset": "pocket-caption"}) == ["ft", "ft"], "never in one column"


def test_the_fewest_settings_make_the_config() -> None:
    settings = {"paper": True, "ablation": "only_latent", "memory.k": 3}
    assert UniKEConfig.parse(settings).fewest() == settings
    assert UniKEConfig.parse({}).fewest() == {}


def test_settings_of_headers_without_them_are_those_of_their_version() -> None:
    settings = {"paper": True, "only_latent": True, "k": 3}
    (config,) = (each["defaults"] | each["follows"]["paper"] | settings for each in [KNOWN_TO_0_1["unike"]])
    assert settings_of_0_1("unike", config) == settings
    assert UniKEConfig.parse(config) == UniKEConfig.parse(settings), "what they are called today"
    assert settings_of_0_1("unike", config | {"gone": 1})["gone"] == 1, "of an older version"
    assert settings_of_0_1("nobody", {"a": 1}) == {"a": 1}
    entry = {key: value for key, value in HEADER.to_json().items() if key not in ("settings", "skip_bad", "anchors")}
    assert Header.from_json({"format": 1, **entry}) == HEADER


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
    assert head == "| method | E-VQA n | Rel. | T-Gen. | M-Gen. | T-Loc. | M-Loc. | Avg. | Spec. | Port. |"
    assert line.count("---:") == 9
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
    assert all(line.count(" | ") == 9 for line in text.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("name", ["=1+2", "+x", "-x", "@x", " =HYPERLINK()", "\t=1"])
def test_a_spreadsheet_computes_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a", model=name)
    rows = list(csv.DictReader(StringIO(to_csv(read([tmp_path])))))
    assert {row["model"] for row in rows} == {f"'{name}"}
    assert rows_to_csv([{"a": -0.5, "b": "-0.5", "c": "+1", "d": "x=1", "e": None}]) == "a,b,c,d,e\n-0.5,-0.5,+1,x=1,\n"


# ---------------------------------------------------------------------- the page


class Page(HTMLParser):
    """What a page has; fails on tags that do not nest."""

    VOID = ("meta", "img", "br", "hr", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(measurements: list[Measurement], **options: Any) -> tuple[str, Page]:
    views = views_of(measurements)
    text = to_html(measurements, report_tables(measurements, views), views[0], **options)
    return text, Page(text)


def hostile(folder: Path) -> None:
    wrong = asked(
        "reliability",
        0.0,
        prompt="<script>alert(1)</script>",
        image="gone/<b>.png",
        target="a&b",
        after='"><i>',
        notes={"alpha": 0.25},
    )
    right = asked("t_locality", 1.0, notes={"alpha": 2.0})
    write(folder, {"a": [CaseResult("<u>", "", (wrong, right), 0.5)]}, editor="<em>$x$")


def test_the_page_stands_alone_and_escapes_what_models_say(tmp_path: Path) -> None:
    hostile(tmp_path)
    text, parsed = page(read([tmp_path]))
    assert text.startswith("<!DOCTYPE html>") and "<script" not in text and "http" not in text
    assert not {"i", "u", "em", "script", "link", "iframe"} & {tag for tag, _ in parsed.tags}
    addresses = [
        value for _, found in parsed.tags for key, value in found.items() if key.split(":")[-1] in ("href", "src")
    ]
    assert addresses and all(value and value.startswith(("#", "data:")) for value in addresses)
    for said in ("<script>alert(1)</script>", "a&b", '"><i>', "<u>", "picture not found: gone/<b>.png", "<em>$x$"):
        assert said in parsed.text
    assert all(reference.startswith("#") for reference in re.findall(r"url\((.)", text))


def test_every_number_leads_to_its_run(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", editor="zap")
    text, parsed = page(read([tmp_path]))
    ids = [found["id"] for _, found in parsed.tags if found.get("id")]
    assert len(ids) == len(set(ids)), "ids of figures too"
    targets = {found["href"] for found in parsed.all("a")}
    assert {target.removeprefix("#") for target in targets if target} <= set(ids)
    titles = [found["title"] for found in parsed.all("a") if found.get("title")]
    assert f"95 % interval [25, 100], n = 4; ft: {tmp_path / 'a'}" in titles
    assert {found.get("scope") for found in parsed.all("th")} == {"col", "row"}
    assert len(parsed.all("table")) == len(parsed.all("caption")) == text.count('class="wide" role="region"')
    assert all(found["role"] == "img" and found["aria-label"] for found in parsed.all("svg"))
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text and "currentColor" in text


def test_the_same_runs_make_the_same_page(tmp_path: Path) -> None:
    hostile(tmp_path)
    assert page(read([tmp_path]))[0] == page(read([tmp_path]))[0]


def test_failures_are_drawn_by_a_seed_and_counted(tmp_path: Path) -> None:
    units = {f"c{n:02d}": [case(f"c{n:02d}", ["t_locality"] if n % 2 else [])] for n in range(20)}
    write(tmp_path / "a", units)
    write(tmp_path / "b", dict(reversed(units.items())), editor="other order")
    (group,), (again,) = (failures(read_run(tmp_path / name), "strict/exact", 3) for name in "ab")
    assert (group.kind, group.failed, group.of, len(group.drawn)) == ("t_locality", 10, 20, 3)
    assert group.wanted == "the answer before" and again.drawn == group.drawn
    assert len({failure.case_id for failure in group.drawn}) == 3
    assert failures(read_run(tmp_path / "a"), "teacher_forced/em", 3) == [], "all right there"
    assert failures(read_run(tmp_path / "a"), "strict/exact", 0) == []
    assert len(failures(read_run(tmp_path / "a"), "strict/exact", 99)[0].drawn) == 10


def test_failures_of_sequences_are_those_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, sequence(0, 2, {"0-1": ["reliability"]}), setting="sequential", k=2)
    (group,) = failures(read_run(tmp_path), "strict/exact", 9)
    assert (group.failed, group.of, group.drawn[0].case_id) == (1, 2, "0-1")


def with_picture(folder: Path, name: str, **changes: Any) -> Path:
    return write(folder, {"a": [CaseResult("a", "", (asked("reliability", 0.0, image=name),), 0.5)]}, **changes)


def test_pictures_are_small_and_inside(tmp_path: Path) -> None:
    (tmp_path / "VLKEB_images").mkdir()
    Image.new("RGB", (640, 320), "red").save(tmp_path / "VLKEB_images" / "p.png")
    runs = [with_picture(tmp_path / name, name, dataset="vlkeb", editor=name) for name in ("p.png", "q")]
    _, parsed = page(read(runs), data=tmp_path)
    (image,) = parsed.all("img")
    assert image["alt"] == "p.png" and image["src"] and image["src"].startswith("data:image/jpeg;base64,")
    assert "picture not found: q" in parsed.text
    with Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as opened:
        assert opened.size == (160, 80) and opened.format == "JPEG"


@pytest.mark.parametrize("name", ["../secret.png", "/secret.png", "a/../../secret.png"])
def test_a_picture_elsewhere_is_not_read(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    name = name if not name.startswith("/") else str(tmp_path / "secret.png")
    root = tmp_path / "data"
    (root / "VLKEB_images").mkdir(parents=True)
    _, parsed = page(read([with_picture(tmp_path / "run", name, dataset="vlkeb")]), data=root)
    assert not parsed.all("img") and f"picture not found: {name}" in parsed.text


def test_pictures_of_pocketedit_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    path = open_dataset("pocket-vqa").picture("flag/kenya/twemoji.webp")
    assert path == tmp_path / "pocket" / "flag" / "kenya" / "twemoji.webp" and path.is_file()


def test_alpha_is_drawn_where_it_was_logged(tmp_path: Path) -> None:
    hostile(tmp_path / "a")
    write(tmp_path / "b")
    without, with_log = sorted(read([tmp_path]), key=lambda measurement: measurement.method != "ft")
    ((caption, svg),) = logged(with_log)
    assert (
        caption.startswith("alpha (weight of the memory) of <em>$x$: one-step")
        and "Rel. (n 1)" in svg
        and "T-Loc. (n 1)" in svg
    )
    assert logged(without) == [] and histograms([], "alpha", "x") is None


# ---------------------------------------------------------------------- the command line


def test_the_command_writes_each_format(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "runs" / "deep" / "run")
    text = cli("report", tmp_path / "runs")
    assert text.code == 0 and text.out.startswith("# Report\n") and not text.err
    numbers = cli("report", tmp_path / "runs", "--format", "csv", "--protocol", "strict")
    assert numbers.out.splitlines()[1] == "mini,ft,pocket-vqa,one-step,1,strict,exact,reliability,1.0,1.0,1.0,4,0"
    assert cli("report", tmp_path / "runs", "--out", "r.md").out == "report: r.md\n"
    assert Path("r.md").read_text() == text.out
    assert cli("report", tmp_path / "runs", "--format", "html", "--cases", 0).out == "report: report.html\n"
    assert "What went wrong" not in Page(Path("report.html").read_text()).text
    told = json.loads(cli("report", tmp_path / "runs", "--json").out)
    assert told["out"] is None and told["summary"] == summarise(read_run(tmp_path / "runs" / "deep" / "run"))
    (measured,) = told["measurements"]
    assert measured == {"method": "ft", "runs": [str(tmp_path / "runs" / "deep" / "run")], "done": 4, "planned": 4}
    write(tmp_path / "half", {"a": [CaseResult("a", "", (asked("reliability", 0.0),), 0.5)]})
    path = tmp_path / "half" / "results.jsonl"
    path.write_text(path.read_text().replace('"old"', r'"\ud800!"'))
    assert cli("report", path.parent, "--format", "html", "--out", "half.html").code == 0
    assert "?!" in Page(Path("half.html").read_text()).text
    only = cli("report", tmp_path / "runs", "--protocol", "teacher_forced").out
    assert "teacher_forced/em" in only and "strict/exact" not in only


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nowhere",), "nowhere is not a folder"),
        ((".",), "no results in ."),
        (("runs", "--format", "pdf"), "--format 'pdf' is none of md, html, csv"),
        (("runs", "--protocol", "loose"), "no run has the protocol 'loose' (there: strict, teacher_forced)"),
        (("runs", "--protocol", "mmedit"), "no run has the protocol 'mmedit'"),
        (("runs", "--data", "nowhere"), "--data nowhere is not a folder"),
        (("runs", "--out", "runs"), "runs is a folder"),
        (("runs", "--out", "no/such/r.md"), "there is no folder no/such"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, options: tuple[str, ...], message: str) -> None:
    if options[0] == "runs":
        write(Path("runs"))
    assert cli("report", *options).is_error(message)


def test_from_a_folder_of_mmedit_to_the_page(cli: Cli, tiny_folder: Path, mmedit: Path) -> None:
    options = ("--model", tiny_folder, "--data", mmedit, "--editor", "ft", "--set", "steps=2", "--max-new-tokens", 3)
    for task in ("vqa", "caption"):
        assert cli("bench", *options, "--dataset", f"mmedit-{task}", "--out", f"runs/{task}", "--json").code == 0
    result = cli("report", "runs", "--format", "html", "--data", mmedit)
    assert result.code == 0, result.err
    parsed = Page(Path("report.html").read_text())
    assert "E-VQA" in parsed.text and "E-IC" in parsed.text and "ft (steps=2)" in parsed.text
    assert "val2014/COCO_val2014_000000000000.jpg" in {found["alt"] for found in parsed.all("img")}
    summary = json.loads(cli("bench", *options, "--dataset", "mmedit-vqa", "--out", "runs/vqa", "--json").out)[
        "summary"
    ]
    rows = csv.DictReader(StringIO(cli("report", "runs/vqa", "--format", "csv").out))
    assert [row["value"] for row in rows] == ["" if row["value"] is None else str(row["value"]) for row in summary]
