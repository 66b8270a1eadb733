"""``unike study``: variants are what they claim, runs are ordinary ones and used again, and files say what runs say."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from reports import case, header, write
from typed import instead

from unike.backbones.adapter import Backbone
from unike.bench.outcome import Asked, CaseResult
from unike.bench.results import RunResults, read_run
from unike.bench.spec import RunSpec
from unike.bench.summary import summarise
from unike.cli.study import NAMES
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import EditCase
from unike.report import read
from unike.report.drawing import in_percent
from unike.report.figures import curves, dots
from unike.studies import ablation, cases, context_size, domains, drift, lifelong
from unike.studies._costs import measure
from unike.studies.base import Study, check_conditions, scores_of, study_named
from unike.studies.lab import Lab, Variant
from unike.studies.request import Request

Cli = Callable[..., Any]


@pytest.fixture
def args(tiny_folder: Path, mmedit: Path) -> tuple[object, ...]:
    """Two cases of MMEdit in miniature, one step an edit."""
    options = ("--model", tiny_folder, "--dataset", "mmedit-vqa", "--data", mmedit, "--limit", 2, "--out", "out")
    return (*options, "--set", "steps=1", "--max-new-tokens", 3, "--protocol", "strict")


def numbers(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


# ---------------------------------------------------------------------- a study from end to end


def test_a_study_is_a_set_of_runs_a_table_and_a_figure(
    cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli("study", "alpha", *args, "--at", "0,0.5", "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    files = [f"out/alpha.{kind}" for kind in ("csv", "html", "md", "png", "study.json", "svg")]
    assert found["files"] == files and all(Path(file).is_file() for file in files)

    dynamic = read_run(Path("out/unike"))
    mean = fmean(asked.notes["alpha"] for case in dynamic.cases for asked in case.asked)
    constant = read_run(Path(f"out/unike-collaboration.fixed_alpha={round(mean, 4)}"))
    assert dynamic.header.config["collaboration"]["fixed_alpha"] is None and dynamic.header.config["steps"] == 1
    assert constant.header.config["collaboration"]["fixed_alpha"] == pytest.approx(mean, abs=1e-4)

    rows = numbers("out/alpha.csv")
    assert {row["editor"] for row in rows} == {"fixed 0", "fixed 0.5", "dynamic", "constant mean of the dynamic one"}
    told = {row["metric"]: row["value"] for row in rows if row["editor"] == "dynamic"}
    assert told == {row["metric"]: str(row["value"]) for row in summarise(dynamic)}
    assert "| dynamic | 2 |" in Path("out/alpha.md").read_text()

    (caption,) = json.loads(Path("out/alpha.study.json").read_text())["figures"].values()
    assert "strict/exact, percent with bootstrap 95 % intervals" in caption and "2 edits, seed 0" in caption
    assert "with steps=1. one-step editing" in caption
    svg = Path("out/alpha.svg").read_text()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert "currentColor" in svg and "prefers-color-scheme" in svg and ">strict/exact, percent" in svg
    with Image.open("out/alpha.png") as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)

    page = cli("report", "out", "--format", "html", "--out", "page.html")
    assert page.code == 0 and 'src="data:image/svg+xml;base64,' in Path("page.html").read_text()

    monkeypatch.setattr("unike.bench.workers.load_backbone", lambda *args, **kwargs: pytest.fail("loaded"))
    assert json.loads(cli("study", "alpha", *args, "--at", "0,0.5", "--json").out) == found, "finished runs are used"
    other = cli("study", "alpha", *args, "--at", "0,0.5", "--seed", 1)
    assert other.is_error("out/unike-collaboration.fixed_alpha=0.0 holds another run", "seed is 0, not 1")
    other = cli("study", "alpha", *instead(args, "--at", "0,0.5", "--dtype", "bfloat16", "--max-new-tokens", 5))
    assert other.is_error("max_new_tokens is 3, not 5", 'dtype is "float32", not "bfloat16"')


def test_runs_made_under_other_conditions_do_not_share_a_figure() -> None:
    runs = [RunResults(header(learned=learned), {}) for learned in ("old", None)]
    check_conditions(runs)
    with pytest.raises(UnikeError, match=r"different learned \(old, new\)"):
        check_conditions([*runs, RunResults(header(learned="new"), {})])
    with pytest.raises(UnikeError, match=r"different dtype \(float32, bfloat16\)"):
        check_conditions([*runs, RunResults(header(dtype="bfloat16"), {})])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("alfa",), "unknown study 'alfa'; did you mean 'alpha'"),
        (("alpha", "--at", "1,x"), "--at '1,x' is not a list of numbers"),
        (("context-size", "--at", "nan"), "--at 'nan' is not a list of numbers"),
        (("lifelong", "--at", "1,inf"), "--at '1,inf' is not a list of numbers"),
        (("drift", "--out", "file/below"), "file is not a folder"),
        (("spaces", "--out", "file/below"), "file is not a folder"),
        (("alpha", "--at", "2"), "alpha 2 is not between 0 and 1"),
        (("zeta", "--set", "zeta=off"), "--set collaboration.zeta cannot be held fixed: the study varies it"),
        (("zeta", "--set", "stepz=2"), "unknown setting 'stepz'; did you mean 'steps'"),
        (("zeta", "--split", "dev"), "no split 'dev'"),
        (("zeta", "--protocol", "loose"), "unknown protocol 'loose'"),
        (("zeta", "--on-error", "cry"), "neither 'stop' nor 'skip'"),
        (("context-size", "--at", "1.5"), "--at 1.5 is not a number of examples"),
        (("lifelong", "--at", "0"), "--at 0 is not a number of edits"),
        (("drift", "--count", "0"), "--count 0 asks nothing"),
        (("spaces", "--count", "2"), "too few states"),
        (("spaces", "--set", "stepz=2"), "unknown setting 'stepz'"),
        (("cases", "--rule", "nice"), "unknown rule 'nice'"),
        (("cases", "--count", "0"), "--count 0 shows nothing"),
    ],
)
def test_mistakes_are_known_before_the_model_is_loaded(
    cli: Cli, args: tuple[object, ...], options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unike.bench.workers.load_backbone", lambda *args, **kwargs: pytest.fail("loaded"))
    Path("file").touch()
    name, *more = options
    assert cli("study", name, *instead(args, *more)).is_error(message)
    assert not Path("out").exists()


def test_a_study_is_not_run_once_by_every_process(
    cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli("study", "zeta", *args).is_error("accelerate launch shares out `unike bench` alone")


def test_the_command_line_knows_every_study() -> None:
    assert sorted(name.replace("-", "_") for name in NAMES) == registry.studies.names()
    for name in NAMES:
        assert isinstance(study_named(name), Study)


# ---------------------------------------------------------------------- the others, on a tiny model


@pytest.mark.slow
def test_table_4_and_the_parts_of_one_row(cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    in_context = Variant("Intrin + IKE", {"ike": {"pool_size": 4}}, "intrinsic_ike")
    monkeypatch.setattr(ablation, "ROWS", [ablation.ROWS[0], in_context])
    assert cli("study", "ablation", *args).code == 0
    assert [*dict.fromkeys(row["editor"] for row in numbers("out/ablation.csv"))] == ["only Intrin", "Intrin + IKE"]
    assert read_run(Path("out/intrinsic_ike-pool_size=4")).header.config["intrinsic"] == {"steps": 1}


@pytest.mark.slow
def test_random_zetas_share_a_row(cli: Cli, args: tuple[object, ...]) -> None:
    assert cli("study", "zeta", *instead(args, "--limit", 1)).code == 0
    seeds = [
        read_run(path).header.config["seed"] for path in sorted(Path("out").glob("unike-collaboration.zeta=random-*"))
    ]
    assert seeds == [0, 1, 2]
    rows = {row["editor"]: row for row in numbers("out/zeta.csv") if row["metric"] == "reliability"}
    assert {name: int(row["n"]) for name, row in rows.items()} == {
        "without": 1,
        "random, 3 seeds": 3,
        "semantic": 1,
        "learned": 1,
        "truthful (UniKE)": 1,
    }


@pytest.mark.slow
def test_more_demonstrations_make_longer_prompts_and_more_states_do_not(
    cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        context_size, "demonstrations", lambda count: {"n_copy": count, "n_update": 0, "n_retain": 0, "pool_size": 4}
    )
    assert cli("study", "context-size", *instead(args, "--limit", 1, "--at", "0,2")).code == 0
    cost = {path.parent.name: json.loads(path.read_text()) for path in Path("out").rglob("cost.json")}
    few, many, without, with_states = (cost[name] for name in sorted(cost))
    assert many["prompt_tokens"] > few["prompt_tokens"] > with_states["prompt_tokens"] == without["prompt_tokens"]
    table = Path("out/context_size.md").read_text()
    assert f"| Intrin + IKE, 2 | {many['prompt_tokens']:.0f} | {many['ask_seconds']:.3f} |" in table
    assert Path("out/context_size_cost.svg").is_file()
    before = Path("out/context_size.md").read_text()
    assert cli("study", "context-size", *instead(args, "--limit", 1, "--at", "0,2")).code == 0
    assert Path("out/context_size.md").read_text() == before, "costs are measured once"


def test_a_lifelong_curve_has_a_point_for_each_time(
    cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifelong, "METHODS", lifelong.METHODS[:1])
    assert cli("study", "lifelong", *args, "--at", "1,2").code == 0
    spec = read_run(Path("out/unike-sequential-2")).header.spec
    assert (spec.k, spec.evaluate_at) == (2, (1, 2))
    assert {row["setting"] for row in numbers("out/lifelong.csv")} == {"sequential:at-1", "sequential"}


def test_spaces_are_laid_out_for_each_layer(cli: Cli, args: tuple[object, ...]) -> None:
    assert cli("study", "spaces", *args, "--at", "-1", "--count", 8).code == 0
    lines = [line for line in Path("out/spaces.md").read_text().splitlines() if line.startswith("| layer")]
    spaces = ("raw", "truthfulness", "semantic")
    assert [line.split(" | ")[0] for line in lines] == [f"| layer -1, {space}" for space in spaces]
    svg = Path("out/spaces.svg").read_text()
    assert ">true answers<" in svg and ">layer -1<" in svg and len(re.findall("<use ", svg)) >= 3 * 16
    assert [row["space"] for row in numbers("out/spaces.csv")] == list(spaces)


def test_cases_are_chosen_by_their_rule() -> None:
    def result(name: str, *right: float) -> CaseResult:
        asked = tuple(Asked("reliability", "?", None, "a", "b", "a", {"strict/exact": score}) for score in right)
        return CaseResult(name, "", asked, 0.0)

    full = {name: result(name, *right) for name, right in {"a": (1, 1), "b": (0, 1), "c": (1, 1), "d": (0, 0)}.items()}
    half = {name: result(name, *right) for name, right in {"a": (0, 1), "b": (1, 1), "c": (1, 1), "d": (0, 0)}.items()}
    found = {
        rule: sorted(cases.choose(full, half, "strict/exact", Request(rule=rule, count=9))) for rule in cases.RULES
    }
    assert found == {"drawn": [*"abcd"], "right": [*"ac"], "failed": [*"bd"], "gained": ["a"], "lost": ["b"]}
    drawn = [
        sorted(cases.choose(full, half, "strict/exact", Request(spec=RunSpec(seed=seed), count=2))) for seed in range(8)
    ]
    assert len({*map(tuple, drawn)}) > 1 and all(len(names) == 2 for names in drawn)


@pytest.mark.filterwarnings("ignore:Glyph")  # a tiny model may say anything
def test_cases_are_shown_with_everything_that_was_asked(cli: Cli, args: tuple[object, ...]) -> None:
    result = cli("study", "cases", *args, "--count", 1)
    assert result.code == 0, result.err
    page, svg = Path("out/cases.html").read_text(), Path("out/cases.svg").read_text()
    case = read_run(Path("out/unike")).cases
    (shown,) = [each for each in case if f"<h3>{each.case_id}</h3>" in page]
    assert all(f"<p>{asked.prompt}</p>" in page for asked in shown.asked)
    assert page.count("<dt>only Intrin</dt>") == len(shown.asked) and "data:image/jpeg" in page
    assert "<image " in svg and ">target: " in svg
    assert "1 cases drawn from all cases with seed 0" in Path("out/cases.md").read_text()
    assert cli("study", "cases", *args, "--rule", "right").is_error("no case follows the rule 'right'")


def test_domains_are_parts_of_runs(tmp_path: Path) -> None:
    units = {name: [case(name, ["reliability"] if name == "a" else [])] for name in "abc"}
    units["a"] = [CaseResult("a", "photo", units["a"][0].asked, 0.5)]
    (measurement,) = read([write(tmp_path / "run", units)])
    parts = domains.by_domain(measurement)
    sizes = {name: [len(run.cases) for run in runs.values()] for name, runs in parts.items()}
    assert sizes == {"ft: flag": [2], "ft: photo": [1]}
    (photo,) = parts["ft: photo"].values()
    assert photo.header.counts.edited == 1 and read_run(tmp_path / "run").header.counts.edited == 4


def test_drift_of_an_edit_that_does_nothing_is_none(
    cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        drift, "METHODS", [Variant("nothing", {"lr": 1e-30}, "ft"), Variant("much", {"lr": 1.0, "steps": 3}, "ft")]
    )
    assert cli("study", "drift", *args, "--at", "1,2", "--count", 5).code == 0
    rows = {(row["editor"], row["edits"], row["quantity"]): row for row in numbers("out/drift.csv")}
    assert len(rows) == 12
    for edits in "12":
        assert float(rows["nothing", edits, "kl"]["value"]) == pytest.approx(0, abs=1e-6)
        assert rows["nothing", edits, "same"]["value"] == "1.0" and rows["nothing", edits, "same"]["n"] == "5"
    assert float(rows["much", "2", "kl"]["value"]) > 1e-3

    monkeypatch.setattr(drift, "first_tokens", lambda *args: pytest.fail("measured again"))
    assert cli("study", "drift", *args, "--at", "1,2", "--count", 5).code == 0
    assert cli("study", "drift", *args, "--at", "1", "--count", 5).is_error("is of another model, data or request")
    Path("out/ft-lr=1.0-steps=3-drift.json").write_text("{")
    assert cli("study", "drift", *args, "--at", "1,2", "--count", 5).is_error("is damaged")


def test_a_probe_set_has_nothing_of_what_is_edited(
    cli: Cli, args: tuple[object, ...], tiny_folder: Path, mmedit: Path
) -> None:
    spec = RunSpec(model=str(tiny_folder), dataset="mmedit-vqa")
    lab = Lab(Request(spec=spec, data=mmedit, count=99), Path("out"))
    sequence, probes = drift.draw(lab, 1)
    (edited,) = sequence
    assert probes and edited.edit.image not in {query.image for query in probes}
    assert not {edited.edit.prompt} & {query.prompt for query in probes}
    assert all(query.target for query in probes) and len({(q.prompt, q.image) for q in probes}) == len(probes)
    with pytest.raises(UnikeError, match=r"too few cases to edit: \d that the model gets wrong, 9 are needed"):
        drift.draw(lab, 9)


def test_first_tokens_are_those_of_an_answer(taught: Backbone, cases: list[EditCase]) -> None:
    queries = [case.edit for case in cases] + [cases[0].probes[2].query]
    found = drift.first_tokens(taught, queries)
    for row, query in enumerate(queries):
        said = taught.tokenizer.decode([int(found[row].argmax())]).strip()
        assert taught.generate([query], max_new_tokens=1) == [said]
        assert torch.allclose(found[row], drift.first_tokens(taught, [query])[0], atol=1e-4)


def test_costs_count_what_is_read(taught: Backbone, cases: list[EditCase]) -> None:
    editor = registry.editors.get("ft")(steps=1)
    cost = measure(taught, editor, cases[:1], 2)
    asked = [cases[0].edit, *(probe.query for probe in cases[0].probes)]
    lengths = [int(taught.encode([query]).prompt_last) + 1 for query in asked]
    assert cost.questions == len(asked) and cost.prompt_tokens == pytest.approx(fmean(lengths), abs=0.01)
    edit = editor.edit(taught, cases[0].edit)
    assert cost.edit_bytes == sum(tensor.nbytes for tensor in edit.tensors.values()) and cost.ask_seconds > 0


# ---------------------------------------------------------------------- figures


def test_figures_have_the_numbers_of_the_runs(tmp_path: Path) -> None:
    (measurement,) = read([write(tmp_path / "run")])
    scores = scores_of(measurement, "strict/exact")
    values, (below, above) = in_percent([scores["m_generality"], None])
    row = scores["m_generality"]
    assert values[0] == 75 and below[0] == 75 - 100 * row["low"] and above[0] == 100 * row["high"] - 75
    assert values[1] != values[1], "what is not defined is not drawn"
    (third,) = (axes for axes in dots({"ft": scores}, "strict/exact").axes if axes.get_title() == "M-Gen.")
    assert list(third.lines[0].get_xdata()) == [75]
    figure = curves({"a": {0: scores, 8: scores}}, "n", "strict/exact", levels={"b": scores}, even=True)
    (panel,) = (axes for axes in figure.axes if axes.get_title() == "M-Gen.")
    assert [list(panel.lines[0].get_xdata()), list(panel.lines[0].get_ydata())] == [[0, 1], [75, 75]]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0", "8"]
