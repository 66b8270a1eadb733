"""A report as one page, and the command that writes it."""

import base64
import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reports import asked, case, sequence, write

from unike.bench.outcome import CaseResult
from unike.bench.results import read_run
from unike.bench.summary import summarise
from unike.data.datasets.base import open_dataset
from unike.report import (
    Measurement,
    read,
    report_tables,
    to_html,
    views_of,
)
from unike.report.failures import failures
from unike.report.figures import histograms
from unike.report.page import logged

Cli = Callable[..., Any]


# ---------------------------------------------------------------------- the page


class Page(HTMLParser):
    """What a page has; fails on tags that do not nest."""

    VOID = ("meta", "img", "br", "hr", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.unclosed: list[str] = []
        self.feed(text)
        self.close()
        assert not self.unclosed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

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
    assert numbers.out.splitlines()[1] == "mini,ft,pocket-vqa,one-step,1,strict,exact,scope,0.75,0.25,1.0,4,0"
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
