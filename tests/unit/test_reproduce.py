"""``unike reproduce paper`` run to tables on hand-made MMEdit and tiny models; interrupted, failing, and going on."""

import csv
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from reproducing import write_mmedit
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.bench.results import ResultsFile, read_run
from unike.data.queries import Query
from unike.editors.ft import FT
from unike.reproduce.log import FILE, read_log
from unike.reproduce.methods import METHODS
from unike.studies.ablation import ROWS

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four records of each task to be evaluated on, twelve to learn from."""
    return write_mmedit(tmp_path_factory.mktemp("published") / "mmedit")


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "blip2"
    tiny_backbone("blip2-opt").save_pretrained(folder)
    return folder


@pytest.fixture
def asked(blip2: Path, published: Path) -> tuple[object, ...]:
    """Table 1 with two methods that need nothing, of two cases a task."""
    options = ("--methods", "no_edit,ft", "--limit", 2, "--out", "out", "--device", "cpu")
    return ("reproduce", "paper", "--table", 1, "--model", blip2, "--data", published, *options)


def states(cli: Cli, asked: Sequence[object]) -> dict[str, str]:
    told = json.loads(cli(*asked, "--dry-run", "--json").out)
    return {step["step"]: step["state"] for step in told["steps"]}


RUNS = ("table1/no_edit-vqa", "table1/ft-vqa", "table1/no_edit-caption", "table1/ft-caption")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_is_made_interrupted_and_goes_on(
    cli: Cli, asked: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cli(*asked, "--dry-run")
    assert (before.code, before.err) == (0, "") and not Path("out").exists()
    assert "1. to do: table1/no_edit-vqa, no_edit on E-VQA, one-step; at most 2 edits; time and disk" in before.out
    assert "5 steps, 0 done; time left unknown" in before.out and "--probe trial" in before.out

    # The second case of the second run does not come to an end.
    append: Callable[..., None] = ResultsFile.append
    count = 0

    def cut(self: ResultsFile, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        append(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsFile, "append", cut)
        stopped = cli(*asked)
    assert stopped.code == 130 and "Traceback" not in stopped.err
    assert states(cli, asked) == {
        **dict(zip(RUNS, ("done", "begun", "to do", "to do"), strict=True)),
        "table1.md": "to do",
    }
    half = (Path("out") / RUNS[1] / "results.jsonl").read_bytes()
    going = cli(*asked, "--dry-run").out
    assert "2. begun: table1/ft-vqa, ft on E-VQA, one-step; 1 of 2 edits; about" in going
    assert "a guess (1 x" in going and "of any bench)" in going

    finished = cli(*asked)
    assert finished.code == 0 and finished.out == "tables: out/table1.md\n"
    told = finished.err.splitlines()
    assert [line.partition(":")[0] for line in told] == [f"step {n} of 5" for n in (2, 3, 4, 5)]
    assert "nothing left" in told[-1] and "left" in told[0]
    assert (Path("out") / RUNS[1] / "results.jsonl").read_bytes().startswith(half)
    assert all(read_run(Path("out") / run).finished for run in RUNS)
    assert {*states(cli, asked).values()} == {"done", "to do"}

    again = cli(*asked, "--json")
    assert again.code == 0 and json.loads(again.out)["files"] == ["out/table1.md"]
    assert [line.partition(":")[0] for line in again.err.splitlines()] == ["step 5 of 5"]
    check_table(Path("out"))


def check_table(out: Path) -> None:
    """Ours is what runs measured, theirs what the paper has, and the log has each run's own command."""
    text = (out / "table1.md").read_text()
    assert "Table 1 beside the paper's of BLIP-2 OPT (3.8B): strict" in text and "7.3B" not in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| FT (last layer), published")]
    assert len(lines) == 3 and all(line[2:7] == ["58.7", "54.2", "49.4", "67.7", "63.1"] for line in lines)
    assert "teacher-forced, on MMEdit" in text and "at most 2 cases were edited" in text
    assert (out / "table1.html").read_text().startswith("<!DOCTYPE html>")
    rows = rows_of(out / "table1.csv")
    assert len(rows) == 4 * 3 * 5
    for method, task, row in (("ft", "vqa", "58.7"), ("no_edit", "caption", "0.0")):
        run = read_run(out / "table1" / f"{method}-{task}")
        scores = [case.asked[0].scores["mmedit/token"] for case in run.cases]
        wanted = {"method": method, "task": task, "metric": "reliability", "protocol": "mmedit"}
        (found,) = [each for each in rows if wanted.items() <= each.items()]
        assert float(found["here_value"]) == pytest.approx(sum(filter(None, scores)) / len(scores))
        assert (found["published_blip2-opt_percent"], found["here_n"]) == (row, "2")
    log = {entry.step: entry for entry in read_log(out)}
    assert log.keys() == {*RUNS, "table1.md"}
    assert log[RUNS[1]].new == 1 and log[RUNS[3]].new == log[RUNS[3]].amount == 2
    for run in RUNS:
        header = read_run(out / run).header
        words = shlex.split(log[run].command)
        assert words[words.index("--editor") + 1] == header.spec.editor
        assert words[words.index("--dataset") + 1] == header.spec.dataset


def test_a_step_that_fails_is_named_and_others_are_kept(
    cli: Cli, asked: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no room for 9 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(FT, "make", full)
        failed = cli(*asked)
    *steps, line = failed.err.splitlines()
    assert failed.code == 2 and len(steps) == 2
    assert line.startswith("error: step 2 of 5 (table1/ft-vqa, ft on E-VQA, one-step) failed: MemoryError: no room")
    assert "the same command goes on with this step; alone it is: unike bench --model" in line
    entries = read_log(Path("out"))
    assert [(entry.step, entry.outcome) for entry in entries] == [(RUNS[0], "done"), (RUNS[1], "failed")]
    assert "MemoryError" in entries[1].traceback and f"out/{FILE}" in line

    # What a finished step has left is gone: it is done again.
    (Path("out") / RUNS[0] / "results.jsonl").unlink()
    assert states(cli, asked)[RUNS[0]] == "to do"


def test_the_estimate_is_from_a_probe(cli: Cli, asked: tuple[object, ...]) -> None:
    few = [*asked]
    few[few.index("no_edit,ft")] = "no_edit"
    assert cli(*few).code == 0
    more = [*few]
    more[more.index("out")] = "more"
    more[more.index("--limit") : more.index("--limit") + 2] = []
    found = json.loads(cli(*more, "--dry-run", "--json", "--probe", "out").out)
    runs = [step for step in found["steps"] if step["step"].startswith("table1/")]
    log = [entry for entry in read_log(Path("out")) if entry.kind.startswith("bench")]
    rate = sum(entry.seconds for entry in log) / 4
    assert [(step["amount"], step["basis"]) for step in runs] == [(4, "measured")] * 2
    assert all(step["seconds_left"] == pytest.approx(4 * rate) for step in runs)
    assert found["left"]["seconds"] == pytest.approx(8 * rate)
    assert not Path("more").exists()


def test_only_whole_sequences_are_counted(cli: Cli, blip2: Path, tmp_path: Path) -> None:
    data = write_mmedit(tmp_path / "many", train=1, evaluated=23)
    asked = ("reproduce", "paper", "--model", blip2, "--data", data, "--methods", "ft", "--dry-run", "--json")
    amounts = {step["step"]: step["amount"] for step in json.loads(cli(*asked).out)["steps"]}
    assert (amounts["table1/ft-vqa"], amounts["table2/ft-vqa-10"], amounts["table2/ft-vqa-20"]) == (23, 20, 20)
    assert amounts["table3/ft"] == 40


def test_missing_data_is_no_reason_not_to_plan(cli: Cli, blip2: Path, tmp_path: Path) -> None:
    told = cli("reproduce", "paper", "--table", 2, "--model", blip2, "--data", tmp_path / "none", "--dry-run")
    assert told.code == 0 and "number of edits unknown" in told.out
    assert "cannot be run yet: vqa_train.json" in told.out


def test_a_folder_is_written_by_one_process(cli: Cli, asked: tuple[object, ...]) -> None:
    from filelock import FileLock

    Path("out").mkdir()
    (Path("out") / FILE).touch()
    with FileLock(Path("out") / f".{FILE}.lock"):
        assert cli(*asked).is_error("out is being written by another process")


# ---------------------------------------------------------------------- all of it


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers everything with a number: a random one is never clearly wrong, and nothing is prepared."""

    def generate(self: Backbone, queries: Sequence[Query], *args: Any, **kwargs: Any) -> list[str]:
        return [str(len(query.prompt) + len(str(query.image))) for query in queries]

    monkeypatch.setattr(Backbone, "generate", generate)


@pytest.mark.slow
def test_knowledge_is_prepared_once_and_used(cli: Cli, answering: None, blip2: Path, published: Path) -> None:
    asked = ("reproduce", "paper", "--table", 1, "--model", blip2, "--data", published, "--out", "out")
    asked = (*asked, "--methods", "unike_paper", "--limit", 1, "--triplets", 8)
    assert cli(*asked).code == 0
    for task in ("vqa", "caption"):
        header = read_run(Path("out/table1") / f"unike_paper-{task}").header
        assert header.config["paper"] and header.learned
    kinds = [(entry.kind, entry.amount, entry.new) for entry in read_log(Path("out"))]
    assert kinds[:2] == [("prepare", 8, 8)] * 2
    # What runs were made from is no longer there: they are not taken for done.
    (Path("out/prepared/vqa") / "knowledge.json").unlink()
    assert states(cli, asked)["table1/unike_paper-vqa"] == "begun"
    assert states(cli, asked)["table1/unike_paper-caption"] == "done"


def saved(name: str, folder: Path) -> Path:
    tiny_backbone(name).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "title"), [("blip2-opt", "BLIP-2 OPT (3.8B)"), ("blip2-llama", "MiniGPT-4 (7.3B)")])
def test_table_1_with_every_method(
    cli: Cli, answering: None, published: Path, tmp_path: Path, name: str, title: str
) -> None:
    asked = ("reproduce", "paper", "--table", 1, "--model", saved(name, tmp_path / "model"), "--data", published)
    done = cli(*asked, "--out", "out", "--train-steps", 1, "--limit", 2, "--methods", ",".join(METHODS))
    assert (done.code, done.out) == (0, "tables: out/table1.md\n"), done.err
    assert f"beside the paper's of {title}: mmedit" in Path("out/table1.md").read_text()
    rows = rows_of(Path("out/table1.csv"))
    assert len(rows) == len(METHODS) * 2 * 3 * 5
    assert all(row["here_value"] for row in rows if row["protocol"] != "mmedit")
    rates = {row.name: read_run(row).header.config.get("lr") for row in Path("out/table1").glob("ft-*")}
    assert {*rates.values()} == {1e-4 if name == "blip2-llama" else 2e-4}


@pytest.mark.slow
def test_tables_of_sequences_and_their_averages(cli: Cli, tmp_path: Path) -> None:
    """Sequences of 20 take 20 cases of a task."""
    model, data = saved("blip2-llama", tmp_path / "model"), write_mmedit(tmp_path / "many", train=2, evaluated=20)
    asked = ("reproduce", "paper", "--model", model, "--data", data, "--out", "out", "--methods", "ft", "--limit", 20)
    done = cli(*asked)
    tables = [1, 2, 3, 5]
    assert (done.code, done.out) == (0, f"tables: {', '.join(f'out/table{table}.md' for table in tables)}\n"), done.err
    assert done.err.startswith("left out: Table 4 compares the parts of 'unike'")
    for table in (2, 3):
        assert "beside the paper's of MiniGPT-4 (7.3B): strict" in Path(f"out/table{table}.md").read_text()
    lines = [line for line in Path("out/table5.md").read_text().splitlines() if line.startswith("| ft, here")]
    cells = [cell.strip() for cell in lines[0].split("|")[2:-1]]
    assert (cells[0], cells[4]) == ("40", "80") and len(cells) == 8 and "n/a" not in cells
    # Ours are means as the paper's are: of the numbers of Tables 1 and 2.
    numbers = [row for row in rows_of(Path("out/table5.csv")) if (row["protocol"], row["k"]) == ("mmedit", "1")]
    locality = [float(row["here_value"]) for row in numbers if row["metric"].endswith("locality")]
    assert len(locality) == 4 and cells[3] == f"{100 * sum(locality) / 4:.1f}"
    again = cli(*asked)
    assert again.code == 0 and all(": Table" in line for line in again.err.splitlines()[1:])


@pytest.mark.slow
def test_table_4_is_the_ablation(cli: Cli, answering: None, published: Path, tmp_path: Path) -> None:
    asked = ("reproduce", "paper", "--table", 4, "--model", saved("blip2-llama", tmp_path / "model"))
    asked = (*asked, "--data", published, "--out", "out", "--limit", 1)
    done = cli(*asked)
    assert (done.code, done.out) == (0, "tables: out/table4.md\n"), done.err
    rows = rows_of(Path("out/table4.csv"))
    # What a spreadsheet would compute, a name that begins with +, is marked as text.
    assert {row["method"].lstrip("'") for row in rows} == {variant.name for variant in ROWS}
    places = {
        (row["task"], row["metric"], row["method"].lstrip("'")): row["published_minigpt4_percent"] for row in rows
    }
    assert places["vqa", "m_locality", "Intrin + IKE"] == "50.1"
    assert places["caption", "t_generality", "UniKE as in the paper"] == "95.7"
    assert places["vqa", "reliability", "+ gate"] == ""
    assert [line.partition(":")[0] for line in cli(*asked).err.splitlines()] == ["step 5 of 5"]
