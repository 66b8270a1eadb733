"""``unike bench``, from the command line to the table, by one process and by several."""

import errno
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typed import instead

import unike
from unike.bench.header import Header
from unike.bench.outcome import CaseResult
from unike.bench.results import RunResults, read_header, read_run
from unike.bench.selection import read_tasks
from unike.bench.spec import RunSpec
from unike.bench.workers import Rendezvous, Shares, run, run_local, run_ray
from unike.cli import _shared, bench

Cli = Callable[..., Any]


@pytest.fixture
def args(tiny_folder: Path, mmedit: Path) -> tuple[object, ...]:
    """A quick run."""
    options = ("bench", "--model", tiny_folder, "--dataset", "mmedit-vqa", "--data", mmedit, "--editor", "ft")
    return (*options, "--set", "steps=2", "--max-new-tokens", 3)


def without_seconds(run: RunResults) -> dict[str, list[CaseResult]]:
    return {name: [replace(case, edit_seconds=0.0) for case in unit] for name, unit in sorted(run.units.items())}


# ---------------------------------------------------------------------- one process


def test_a_folder_of_mmedit_becomes_a_table(cli: Cli, args: tuple[object, ...]) -> None:
    result = cli(*args, "--out", "run", "--protocol", "strict", "--protocol", "mmedit")
    assert (result.code, result.err) == (0, "")
    assert "ft on " in result.out and "5 edits (0 left out as already right, 1 skipped)" in result.out
    assert "strict" in result.out and "mmedit" in result.out and "teacher_forced" not in result.out
    assert "results: run" in result.out
    found = read_run(Path("run"))
    assert sorted(found.units) == [f"vqa-eval-{n:05d}" for n in range(5)]
    assert found.cases[0].asked[0].image in {f"val2014/COCO_val2014_{n:012d}.jpg" for n in range(3)}

    again = json.loads(cli(*args, "--out", "run", "--protocol", "strict", "--protocol", "mmedit", "--json").out)
    assert again["header"] == {"format": 1, **found.header.to_json()} and again["out"] == "run"
    assert {row["protocol"] for row in again["summary"]} == {"strict", "mmedit"}
    other = cli(*args, "--out", "run")
    assert other.is_error(
        "run holds another run", 'protocols is ["strict", "mmedit"], not ["strict", "teacher_forced"]'
    )


@pytest.mark.parametrize("dataset", ["mmedit-vqa", "mmedit", "mmedit-vqa+mmedit-caption"])
def test_cross_task_takes_both_tasks_of_a_data_set(cli: Cli, args: tuple[object, ...], dataset: str) -> None:
    more = ("--dataset", dataset, "--setting", "cross-task", "--k", 4, "--out", "run")
    result = cli(*instead(args, *more), "--json")
    assert result.code == 0, result.err
    header = json.loads(result.out)["header"]
    assert read_header(Path("run")) == Header.from_json(header)
    assert (header["dataset"], header["k"], header["counts"]["edited"]) == ("mmedit-vqa+mmedit-caption", 4, 8)
    assert header["counts"]["skipped"] == 2


def test_the_header_names_the_template(cli: Cli, args: tuple[object, ...]) -> None:
    assert cli(*args, "--limit", 1, "--out", "own").code == 0
    assert cli(*args, "--limit", 1, "--out", "run", "--template", "mmedit-vqa").code == 0
    own, run = (read_header(Path(folder)) for folder in ("own", "run"))
    assert (own.spec.template, run.spec.template) == (None, "mmedit-vqa")
    assert own.fingerprint != run.fingerprint and "--template mmedit-vqa" in run.spec.command()
    other = cli(*args, "--limit", 1, "--out", "run")
    assert other.is_error("run holds another run", 'template is "mmedit-vqa", not null'), other
    older = {key: value for key, value in own.to_json().items() if key != "template"}
    assert Header.from_json(older).spec.template is None


def test_a_sequence_has_a_table_for_each_time_it_is_asked(cli: Cli, args: tuple[object, ...]) -> None:
    options = ("--setting", "sequential", "--k", 4, "--evaluate-at", "2,1", "--sample", 1, "--out", "run")
    result = cli(*args, *options)
    assert result.code == 0, result.err
    assert all(title in result.out for title in ("sequential", "sequential:at-1", "sequential:at-2"))
    assert read_run(Path("run")).header.spec.evaluate_at == (1, 2)


def test_bad_records_are_skipped_if_told(cli: Cli, args: tuple[object, ...], mmedit: Path) -> None:
    path = mmedit / "vqa_eval.json"
    records = json.loads(path.read_text())
    del records[0]["loc"]
    (mmedit / "val2014" / "bad.jpg").write_text("no picture")
    records[1]["image"] = "val2014/bad.jpg"
    path.write_text(json.dumps(records))
    assert cli(*args, "--out", "run").is_error("vqa_eval.json, record 0: loc missing")
    records[0]["loc"] = "who?"
    path.write_text(json.dumps(records))
    assert cli(*args, "--out", "run").is_error("case vqa-eval-00001: not an image that can be read")
    assert not Path("run").exists()
    result = cli(*args, "--out", "run", "--on-error", "skip", "--json")
    # the case of the bad picture, and the one that has it as its near thing
    assert json.loads(result.out)["header"]["counts"] == {"read": 5, "skipped": 3, "right": 0, "edited": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dataset", "pocket-vqas"), "unknown data set 'pocket-vqas'; did you mean 'pocket-vqa'"),
        (("--dataset", "pocket-vqa"), "name none"),
        (("--split", "dev"), "mmedit has no split 'dev' (known: train, eval)"),
        (("--split", "train"), "vqa_train.json"),
        (("--editor", "ftt"), "unknown editor 'ftt'; did you mean 'ft'"),
        (("--set", "stepz=3"), "unknown setting 'stepz'; did you mean 'steps'"),
        (("--setting", "both"), "unknown setting 'both'"),
        (("--k", 3), "k, evaluate-at and sample are for sequences"),
        (("--setting", "sequential", "--k", 0), "k is 0"),
        (("--setting", "sequential", "--evaluate-at", "1,x"), "--evaluate-at '1,x' is not a list of numbers"),
        (("--setting", "cross-task", "--k", 3), "k is 3, which 2 tasks cannot share evenly"),
        (("--protocol", "loose"), "unknown protocol 'loose'"),
        (("--on-error", "cry"), "--on-error 'cry' is neither 'stop' nor 'skip'"),
        (("--device", "gpu9"), "unknown device 'gpu9'"),
        (("--out", "there/file"), "there/file is not a folder"),
        (("--out", "there"), "there holds something else"),
    ],
)
def test_mistakes_are_known_before_the_model_is_loaded(
    cli: Cli, args: tuple[object, ...], options: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "unike.bench.workers.load_backbone", lambda *args, **kwargs: pytest.fail("the model was loaded")
    )
    Path("there").mkdir()
    Path("there/file").write_text("mine")
    assert cli(*instead((*args, "--out", "run"), *options)).is_error(message)
    assert not Path("run").exists()


def test_cells() -> None:
    assert bench.cell(None) == ""
    assert bench.cell({"value": None}) == "n/a"
    assert bench.cell({"value": 0.5, "low": 0.25, "high": 1.0}) == "50.0 [25, 100]"


def test_progress_is_shown_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _shared.progress_bars() as report:
        report("editing", 1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(_shared.ERR, "_force_terminal", True)
    monkeypatch.setattr(_shared.ERR, "width", 100)
    with _shared.progress_bars() as report:
        report("editing", 1, 2)
        report("nothing", 0, 0)
    told = capsys.readouterr().err
    assert "editing" in told and "1/2" in told and "nothing" not in told


def test_the_speed_of_evaluation_can_be_measured(
    cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "evaluation_speed.py"
    monkeypatch.setattr(sys, "argv", [script.name, "--model", str(tiny_folder), "--limit", "1"])
    runpy.run_path(str(script), run_name="__main__")
    report = json.loads(capsys.readouterr().out)
    assert report["cases"] == 1 and report["ratio"] > 0


def test_a_disk_that_fills_up_ends_in_one_line(
    cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int, content: bytes) -> int:
        if content.startswith(b'{"unit"'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(number, content)

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        result = cli(*args, "--out", "run")
    assert result.is_error("cannot write run/results.jsonl: No space left on device; run again"), result
    assert [path.name for path in Path("run").iterdir()] == ["results.jsonl"]
    assert cli(*args, "--out", "run").code == 0


# ---------------------------------------------------------------------- several


@dataclass(frozen=True)
class Job:
    """A run and where its files are."""

    spec: RunSpec
    out: Path
    data: Path

    def alone(self, out: Path) -> RunResults:
        """By this process."""
        return run(self.spec, out, read_tasks(self.spec, self.data))


@pytest.fixture
def job(tiny_folder: Path, mmedit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = RunSpec(
        model=str(tiny_folder),
        editor="ft",
        settings={"steps": 2},
        dataset="mmedit-vqa",
        batch=2,
        max_new_tokens=3,
        device="cpu",
    )
    return Job(spec, tmp_path / "together", mmedit)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    together = run_local(job.spec, job.out, job.data, 2, lambda *news: told.append(news))
    assert sorted(path.name for path in job.out.iterdir()) == ["results.0.jsonl", "results.1.jsonl"]
    assert ("editing", 5, 5) in told
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "fresh"))
    alone = job.alone(tmp_path / "alone")
    assert without_seconds(together) == without_seconds(alone)
    (job.out / "results.1.jsonl").unlink()
    assert without_seconds(job.alone(job.out)) == without_seconds(alone), "it goes on with one process"


@pytest.mark.slow
def test_what_stops_one_process_stops_all(job: Job) -> None:
    job.data.joinpath("val2014_image_rephrase/1.png").write_text("no picture")
    with pytest.raises(unike.UnikeError, match=r"case vqa-eval-0000\d: not an image that can be read"):
        run_local(job.spec, job.out, job.data, 2)


@pytest.mark.slow
def test_what_stops_one_process_later_stops_the_others_too(job: Job) -> None:
    """The first process waits for the second, which has found that its file is taken."""
    job.out.mkdir()
    (job.out / "results.1.jsonl").touch()
    with (
        FileLock(job.out / ".results.1.jsonl.lock"),
        pytest.raises(unike.UnikeError, match=r"results\.1\.jsonl is being written by another process"),
    ):
        run_local(job.spec, job.out, job.data, 2)


@pytest.mark.slow
def test_accelerate_launch_gives_what_one_process_gives(job: Job, tmp_path: Path) -> None:
    alone = job.alone(tmp_path / "alone")
    launch = ["torch.distributed.run", "--nproc-per-node", 2, "-m", "unike", "bench"]  # as accelerate does on GPUs
    data = [
        "--model",
        job.spec.model,
        "--dataset",
        "mmedit-vqa",
        "--data",
        job.data,
        "--editor",
        "ft",
        "--set",
        "steps=2",
    ]
    more = ["--batch", 2, "--max-new-tokens", 3, "--device", "cpu", "--out", job.out, "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(unike.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, [*launch, *data, *more])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout[done.stdout.index("{") :])["out"] == str(job.out), "the main process alone reports"
    assert sorted(path.name for path in job.out.iterdir()) == ["results.0.jsonl", "results.1.jsonl"]
    assert without_seconds(read_run(job.out)) == without_seconds(alone)


@pytest.mark.slow
def test_a_local_ray_gives_what_one_process_gives(job: Job, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    alone = job.alone(tmp_path / "alone")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        told: list[tuple[str, int, int]] = []
        together = run_ray(job.spec, job.out, job.data, 2, lambda *news: told.append(news))
        assert without_seconds(together) == without_seconds(alone)
        assert ("editing", 5, 5) in told
        with pytest.raises(unike.UnikeError, match="3 workers need 3 CPUs, the Ray cluster has 2"):
            run_ray(job.spec, job.out, job.data, 3)
        with pytest.raises(unike.UnikeError, match="holds another run"):
            run_ray(replace(job.spec, settings={"steps": 3}), job.out, job.data, 2)
    finally:
        ray.shutdown()


def test_ray_that_is_missing_is_said(cli: Cli, args: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli(*args, "--ray", "--workers", 2, "--out", "run").is_error("run: pip install ray")


def test_a_meeting_opens_when_all_have_come() -> None:
    meeting = Rendezvous(2)
    first = meeting.arrive()
    assert not meeting.is_open(first)
    assert meeting.is_open(meeting.arrive()) and meeting.is_open(first)
    second = meeting.arrive()
    assert meeting.is_open(first) and not meeting.is_open(second), "each meeting is one of its own"
    meeting.tell(0, "editing", 1, 2)
    assert (meeting.news(), meeting.news()) == ([(0, "editing", 1, 2)], [])


def test_shares_are_added_up() -> None:
    told: list[tuple[str, int, int]] = []
    shares = Shares(lambda *news: told.append(news))
    for rank, done in ((0, 1), (1, 0), (0, 2)):
        shares.tell(rank, "editing", done, 3)
    assert told == [("editing", 1, 3), ("editing", 1, 6), ("editing", 2, 6)]
