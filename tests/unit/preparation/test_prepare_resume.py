"""A preparation that is killed goes on where it stopped, and ends with the same bytes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from preparing import ANSWERS, CONFIG, asked

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.folders import WORK
from unike.data.queries import EditCase, Probe
from unike.editors.unike.prepare.pipeline import prepare
from unike.editors.unike.prepare.work import Work

pytestmark = pytest.mark.usefixtures("at_home")


class Killed(BaseException):
    """Not an error that anybody may catch."""


def prepared(backbone: Backbone, cases: list[EditCase], out: Path, kill_at: int | None = None) -> dict[str, bytes]:
    """The files, or `Killed` at one of the calls of ``progress``."""
    calls = 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal calls
        if calls == kill_at:
            raise Killed(stage)
        calls += 1

    prepare(backbone, cases, out, CONFIG, progress=progress)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def of_gate(cases: list[EditCase], number: int) -> tuple[Probe, ...]:
    """Another picture of the thing, as two neighbours are said to show, and one of a thing of its kind."""
    same, near = cases[number ^ 1].edit, cases[(number + 2) % len(cases)].edit
    return Probe("m_generality", same), Probe("near_locality", near)


def test_a_run_that_is_killed_goes_on(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again and again, a little later each time, it asks everything once and ends with the same bytes."""
    cases = [replace(case, probes=case.probes + of_gate(cases, number)) for number, case in enumerate(cases)]
    whole = prepared(backbone, cases, tmp_path / "whole")
    assert b"gate.contrast" in whole["knowledge.safetensors"]
    assert len(asked(backbone)) == 40
    asked(backbone).clear()
    stages, resumed = set(), {}
    for kill_at in [0, 20, *range(39, 999)]:
        try:
            resumed = prepared(backbone, cases, tmp_path / "resumed", kill_at)
            break
        except Killed as killed:
            stages.add(str(killed))
    reading = {"reading pictures", "reading states", "reading texts", "reading pictures for the gate"}
    assert stages == reading | {"asking", "layer -2", "layer -1"}
    assert resumed == whole
    assert len(asked(backbone)) == 40


def test_finished_work_is_not_done_again(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        prepared(backbone, cases, tmp_path / "out", kill_at=len(cases) + 3 + 1)
    assert any(path.name.startswith("states-00000") for path in (tmp_path / "out" / WORK).iterdir())

    def again(*args: object) -> None:
        raise AssertionError("states are read twice")

    monkeypatch.setattr("unike.editors.unike.prepare.states.read_some", again)
    prepared(backbone, cases, tmp_path / "out")


def test_torn_files_are_written_again(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    whole = prepared(backbone, cases, tmp_path / "whole")
    with pytest.raises(Killed):
        prepared(backbone, cases, tmp_path / "torn", kill_at=len(cases) + 3 + 3 + 1 + 3)
    work = tmp_path / "torn" / WORK
    torn = [work / "answers.jsonl", *work.glob("*.safetensors")]
    assert len(torn) > 2
    for path in torn:
        path.write_bytes(path.read_bytes()[:-7])
    asked(backbone).clear()
    assert prepared(backbone, cases, tmp_path / "torn") == whole
    assert len(asked(backbone)) == 16, "the batch whose last answer was torn"


def test_bad_work_is_told(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad" / WORK).mkdir(parents=True)
    (tmp_path / "bad" / WORK / "answers.jsonl").write_text("[1]\n")
    with pytest.raises(UnikeError, match=r"answers.jsonl is damaged; delete it"):
        prepare(backbone, cases, tmp_path / "bad", CONFIG)
    (tmp_path / "full" / WORK / "answers.jsonl").mkdir(parents=True)
    monkeypatch.setattr(Work, "answers", lambda self: {})
    with pytest.raises(UnikeError, match=r"cannot write .*answers.jsonl: Is a directory"):
        prepare(backbone, cases, tmp_path / "full", CONFIG)


def test_work_is_json_that_people_can_read(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        prepared(backbone, cases, tmp_path / "out", kill_at=len(cases) + 3)
    lines = [json.loads(line) for line in (tmp_path / "out" / WORK / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert {line["answer"] for line in lines} <= set(ANSWERS)
