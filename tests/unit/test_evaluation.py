"""The benchmark as a whole, on a tiny model: what is edited, when it is asked, and that a killed run goes on."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from miniature import Prefix, Scatter

import unike
from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers
from unike.bench import runner as evaluation
from unike.bench.header import Counts
from unike.bench.lines import questions
from unike.bench.outcome import CaseResult
from unike.bench.results import RunResults, read_run
from unike.bench.runner import evaluate
from unike.bench.selection import Task, Unit, arrange, room
from unike.bench.spec import RunSpec
from unike.bench.summary import summarise
from unike.core.errors import UnikeError
from unike.data.queries import EditCase, Probe, Query, probe_kinds
from unike.editors.base import Editor
from unike.editors.common.anchors import Anchors
from unike.editors.mend.editor import MEND
from unike.editors.t_patcher import TPatcher
from unike.editors.unike.editor import UniKE
from unike.editors.unike.knowledge import Knowledge
from unike.edits.edited import EditedModel
from unike.edits.routing import RoutingEdit
from unike.edits.stack import attached


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))


@pytest.fixture
def source(cases: list[EditCase], pictures: list[Path]) -> Task:
    return Task("miniature", "eval", cases, skipped=2, image_root=pictures[0].parent)


def without_seconds(run: RunResults) -> dict[str, list[CaseResult]]:
    return {name: [replace(case, edit_seconds=0.0) for case in unit] for name, unit in sorted(run.units.items())}


def test_an_editor_without_its_network_is_told_before_anything_is_asked(
    taught: Backbone, source: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "ask", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UnikeError, match="run: unike train --editor mend"):
        evaluate(taught, MEND(), source, tmp_path / "run")


# ---------------------------------------------------------------------- one step


def test_every_case_is_edited_alone_and_asked_everything(taught: Backbone, source: Task, tmp_path: Path) -> None:
    editor = Scatter(lr=0.2)
    run = evaluate(taught, editor, source, tmp_path / "run", RunSpec(batch=3))
    assert sorted(run.units) == [case.case_id for case in source.cases]
    for case in source.cases:
        (result,) = run.units[case.case_id]
        assert (result.domain, result.sequence, result.position, result.when) == ("photo", None, 0, "end")
        assert [asked.kind for asked in result.asked] == ["reliability", *(probe.kind for probe in case.probes)]
        assert {asked.image for asked in result.asked} <= {"0.png", "1.png", "2.png", None}
        with editor.edit(taught, case.edit).attached(taught):
            for asked, query in zip(result.asked, [case.edit, *(probe.query for probe in case.probes)], strict=True):
                assert asked.after == taught.ask(query.image, query.prompt)
        assert result.asked[0].before == "tin bat"
        assert result.edit_seconds > 0
    assert {asked.kind for case in run.cases for asked in case.asked} == set(probe_kinds())


def test_what_follows_is_known_where_the_unedited_model_says_it_when_told(
    taught: Backbone, source: Task, tmp_path: Path
) -> None:
    case = source.cases[0]
    fact = f"{case.edit.prompt} {case.edit.target}."
    said = taught.ask(None, f"{fact} And then?")
    follows = [Probe("portability", Query("And then?", case.edit.image, answer)) for answer in (said, f"not {said}")]
    cases = [replace(case, probes=(*case.probes, follows[0])), replace(case, case_id="b", probes=(follows[1],))]
    run = evaluate(taught, Scatter(lr=0.2), replace(source, cases=cases), tmp_path / "run", RunSpec())
    known = {asked.target: asked.known for case in run.cases for asked in case.asked if asked.prompt == "And then?"}
    assert known == {said: True, f"not {said}": False}
    assert {a.known for case in run.cases for a in case.asked if a.kind != "portability"} == {None}
    rows = {row["metric"]: row["n"] for row in summarise(run) if row["protocol"] == "strict"}
    assert (rows["portability:known"], rows["portability"]) == (1, 3)


def test_the_header_says_what_the_numbers_depend_on(taught: Backbone, source: Task, tmp_path: Path) -> None:
    header = evaluate(taught, Scatter(lr=0.2), source, tmp_path / "run", RunSpec(limit=2, seed=3)).header
    assert header.counts == Counts(2, 2, 0, 2)
    spec = header.spec
    assert (spec.model, header.fingerprint) == ("tiny-llava", taught.fingerprint())
    assert (spec.editor, header.config["lr"], spec.settings) == ("scatter", 0.2, {"lr": 0.2})
    assert (spec.dataset, spec.split, spec.seed, spec.k) == ("miniature", "eval", 3, 1)
    assert (spec.dtype, spec.device, spec.max_new_tokens) == ("float32", "cpu", 16)
    assert header.unike == unike.__version__
    assert str(tmp_path) not in json.dumps(header.to_json())
    assert {"git", "threads", "cases", "protocols", "setting"} <= header.to_json().keys()


def test_a_run_does_not_go_on_with_other_knowledge(
    taught: Backbone, source: Task, make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    def learn(seed: int) -> str:
        known = make_knowledge(taught, seed=seed)
        triplets = tuple(replace(triplet, prompt=f"Whose is it, {triplet.prompt}") for triplet in known.triplets)
        known = replace(known, triplets=triplets)  # the others' questions are asked here
        known.save_pretrained(tmp_path / "knowledge")
        return known.fingerprint

    editor, first = UniKE(knowledge=str(tmp_path / "knowledge"), steps=1, layers=(-2, -1)), learn(seed=0)
    assert evaluate(taught, editor, source, tmp_path / "run", RunSpec(limit=1)).header.learned == first
    second = learn(seed=1)
    with pytest.raises(UnikeError, match=f'learned is "{first}", not "{second}"'):
        evaluate(taught, editor, source, tmp_path / "run", RunSpec(limit=1))


def test_a_run_does_not_go_on_with_other_anchors(taught: Backbone, source: Task, tmp_path: Path) -> None:
    def evaluated(anchor: str, folder: str, **settings: Any) -> Any:
        editor = TPatcher(steps=1, anchors=Anchors([Query(anchor), source.cases[0].edit]), **settings)
        return evaluate(taught, editor, source, tmp_path / folder, RunSpec(limit=1)).header.anchors

    first = evaluated("Is it far?", "run")
    assert evaluated("Is it far?", "run") == first
    with pytest.raises(UnikeError, match=f'anchors is "{first}", not "'):
        evaluated("Is it near?", "run")
    assert evaluated("Is it far?", "without a memory", memory_weight=0.0) is None


def test_cases_the_model_gets_right_are_left_out_and_counted(taught: Backbone, source: Task, tmp_path: Path) -> None:
    right = replace(source.cases[1], edit=replace(source.cases[1].edit, target="Tin bat."))
    cases = [right, *source.cases[2:]]
    run = evaluate(taught, Scatter(), replace(source, cases=cases), tmp_path / "run")
    assert right.case_id not in run.units
    assert run.header.counts == Counts(3, 2, 1, 2)
    with pytest.raises(UnikeError, match="too few cases to edit: 0 that the model gets wrong"):
        evaluate(taught, Scatter(), replace(source, cases=[right]), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_limit_counts_edits_and_the_seed_draws_them(taught: Backbone, source: Task, tmp_path: Path) -> None:
    drawn = set()
    for seed in range(4):
        run = evaluate(taught, Scatter(), source, tmp_path / str(seed), RunSpec(limit=2, seed=seed))
        again = evaluate(taught, Scatter(), source, tmp_path / f"{seed}-again", RunSpec(limit=2, seed=seed))
        assert without_seconds(run) == without_seconds(again) and len(run.units) == 2
        drawn.add(tuple(run.units))
    assert len(drawn) > 1


def test_answers_have_room_for_every_target(taught: Backbone, cases: list[EditCase]) -> None:
    def of(length: int) -> list[EditCase]:
        return [replace(cases[0], edit=replace(cases[0].edit, target="z" * (length - 1)))]  # and a space

    assert [room(taught, of(length)) for length in (3, 15, 16, 31, 32)] == [16, 16, 32, 32, 64]


# ---------------------------------------------------------------------- sequences


@pytest.mark.parametrize("editor", [Scatter(lr=0.3), Prefix()], ids=lambda editor: editor.name)
def test_sequences_are_asked_after_each_and_after_the_last(
    taught: Backbone, source: Task, tmp_path: Path, editor: Editor[Any]
) -> None:
    run = evaluate(taught, editor, source, tmp_path / "run", RunSpec(setting="sequential", k=2))
    assert list(run.units) == ["sequence-00000", "sequence-00001"]
    assert len({result.case_id for result in run.cases}) == 4, "sequences tile the cases"
    by_id = {case.case_id: case for case in source.cases}
    for number, results in enumerate(run.units.values()):
        assert [(r.when, r.position) for r in results] == [("own", 0), ("own", 1), ("end", 0), ("end", 1)]
        assert {r.sequence for r in results} == {number}
        facts = [by_id[r.case_id].edit for r in results[:2]]
        edits = []
        for fact in facts:
            with attached(taught, [edit for edit in edits if not isinstance(edit, RoutingEdit)]):
                edits.append(editor.edit(taught, fact))
        for result in results:
            stack = edits[: result.position + 1] if result.when == "own" else edits
            queries = [replace(query, target=None) for _, query in questions(by_id[result.case_id])]
            model = EditedModel(taught, stack)
            wanted = [model.generate([query], max_new_tokens=16)[0] for query in queries]
            assert [asked.after for asked in result.asked] == wanted
            assert result.asked[0].before == "tin bat", "locality is against the model before the first edit"
    own, end = ([r.asked for r in run.cases if r.when == when] for when in ("own", "end"))
    assert own != end


def test_curves_along_a_sequence(taught: Backbone, source: Task, tmp_path: Path) -> None:
    spec = RunSpec(setting="sequential", k=4, evaluate_at=(1, 3), sample=2)
    run = evaluate(taught, Scatter(lr=0.1), source, tmp_path / "run", spec)
    asked: dict[str, list[int]] = {}
    for result in run.cases:
        asked.setdefault(result.when, []).append(result.position)
    assert {when: len(positions) for when, positions in asked.items()} == {"at-1": 1, "at-3": 2, "end": 2}
    assert asked["at-1"] == [0] and max(asked["at-3"]) < 3
    again = evaluate(taught, Scatter(lr=0.1), source, tmp_path / "again", spec)
    assert without_seconds(run) == without_seconds(again)


def test_states_are_kept_only_up_to_a_limit(
    taught: Backbone, source: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec(setting="sequential", k=3)
    kept = evaluate(taught, Scatter(lr=0.1), source, tmp_path / "kept", spec)
    monkeypatch.setattr(evaluation, "KEPT_BYTES", 0)
    assert without_seconds(evaluate(taught, Scatter(lr=0.1), source, tmp_path / "read", spec)) == without_seconds(kept)


def test_cross_task_sequences_take_the_same_from_each_task(taught: Backbone, source: Task, tmp_path: Path) -> None:
    captions = [replace(case, case_id=f"caption-{case.case_id}", domain="caption") for case in source.cases]
    sources = [source, Task("captions", "eval", captions, image_root=source.image_root)]
    spec = RunSpec(setting="cross-task", k=4, protocols=("strict",), evaluate_at=(4,))
    run = evaluate(taught, Scatter(), sources, tmp_path / "run", spec)
    assert run.header.spec.dataset == "miniature+captions" and run.header.counts.edited == 8
    assert len(run.units) == 2
    orders = [[result.domain for result in results] for results in run.units.values()]
    assert all(sorted(order) == ["caption", "caption", "photo", "photo"] for order in orders)
    assert {asked.image for case in run.cases for asked in case.asked} <= {"0.png", "1.png", "2.png", None}
    for wrong, sources_given in ((spec, source), (RunSpec(), sources)):
        with pytest.raises(UnikeError, match="cross-task editing takes the cases of two tasks"):
            evaluate(taught, Scatter(), sources_given, tmp_path / "other", wrong)
    with pytest.raises(UnikeError, match="k is 3, which 2 tasks cannot share evenly"):
        evaluate(taught, Scatter(), sources, tmp_path / "other", replace(spec, k=3, evaluate_at=()))


def test_what_does_not_fill_a_sequence_is_left_out(cases: list[EditCase]) -> None:
    units = arrange([cases], RunSpec(setting="sequential", k=3))
    assert units == [Unit(units[0].cases, 0)] and len(units[0].cases) == 3
    with pytest.raises(UnikeError, match="too few cases to edit: 4 that the model gets wrong, 5 are needed"):
        arrange([cases], RunSpec(setting="sequential", k=5))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"setting": "onestep"}, "unknown setting 'onestep'; did you mean 'one-step'"),
        ({"engine": "slow"}, "unknown engine 'slow'"),
        ({"protocols": ("strict", "loose")}, "unknown protocol 'loose'"),
        ({"protocols": ()}, "unknown protocol ''"),
        ({"k": 5}, "k, evaluate-at and sample are for sequences"),
        ({"setting": "sequential", "k": 5, "evaluate_at": (6,)}, "evaluate-at 6 is after the end of a sequence of 5"),
        ({"setting": "sequential", "k": 5, "evaluate_at": (0,)}, "evaluate-at is 0"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"limit": -1}, "limit is -1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"setting": "sequential", "k": 5, "limit": 4}, "limit is 4, which is less than one sequence of 5 edits"),
        ({"max_new_tokens": 0}, "max-new-tokens is 0"),
    ],
)
def test_specs_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnikeError, match=message):
        RunSpec(**settings).check()


@pytest.mark.parametrize("bad", ["picture", "target", "placeholder", "length"])
def test_a_bad_case_stops_before_any_edit_or_is_left_out(
    taught: Backbone, source: Task, tmp_path: Path, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    case, fact = source.cases[2], source.cases[2].edit
    worse = {
        "picture": replace(case, edit=Query(fact.prompt, broken, fact.target)),
        "target": replace(case, edit=replace(fact, target="long " * 60)),
        "placeholder": replace(case, probes=(Probe("t_locality", Query(f"Why {taught.image_token}?")),)),
        "length": replace(case, probes=(Probe("t_locality", Query("long " * 5000)),)),
    }
    cases = [*source.cases[:2], worse[bad], source.cases[3]]
    data = replace(source, cases=cases)
    edited: list[Any] = []
    monkeypatch.setattr(Scatter, "make", lambda self, backbone, facts: edited.append(facts))
    with pytest.raises(UnikeError, match=r"case case-2: .*\(--on-error skip leaves such cases out\)"):
        evaluate(taught, Scatter(), data, tmp_path / "run")
    assert not edited and not (tmp_path / "run").exists()
    monkeypatch.undo()
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    run = evaluate(taught, Scatter(), data, tmp_path / "run", RunSpec(skip_bad=True))
    assert run.header.counts == Counts(4, 3, 0, 3)


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize("spec", [RunSpec(batch=3), RunSpec(setting="sequential", k=2)], ids=lambda spec: spec.setting)
def test_a_run_goes_on_with_what_is_missing(
    taught: Backbone, source: Task, tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(taught, Scatter(lr=0.1), source, tmp_path / "whole", spec)
    lines = (tmp_path / "whole" / "results.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(len(lines) + 1):
        folder = tmp_path / str(kept)
        folder.mkdir()
        torn = lines[kept][: len(lines[kept]) // 2] if kept < len(lines) else b""
        (folder / "results.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
        edited: list[Query] = []
        original = Scatter.make

        def spy(self: Scatter, backbone: Backbone, facts: list[Query]) -> Any:
            edited.extend(facts)  # noqa: B023
            return original(self, backbone, facts)  # noqa: B023

        monkeypatch.setattr(Scatter, "make", spy)
        run = evaluate(taught, Scatter(lr=0.1), source, folder, spec)
        monkeypatch.setattr(Scatter, "make", original)
        assert without_seconds(run) == without_seconds(whole)
        assert list(run.units) == list(whole.units)
        if kept == len(lines):
            assert not edited


def test_another_run_is_refused_before_anything_is_asked(
    taught: Backbone, source: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(taught, Scatter(lr=0.1), source, tmp_path / "run", RunSpec(limit=1))
    monkeypatch.setattr(Answers, "ask", lambda *args, **kwargs: pytest.fail("something was asked"))
    for editor, spec, message in [
        (Scatter(lr=0.2), RunSpec(limit=1), "there config.lr is 0.1, not 0.2;"),
        (Scatter(lr=0.1), RunSpec(limit=2), "limit is 1, not 2"),
        (Prefix(), RunSpec(limit=1), 'editor is "scatter", not "prefix"'),
    ]:
        with pytest.raises(UnikeError, match=message):
            evaluate(taught, editor, source, tmp_path / "run", spec)
    with pytest.raises(UnikeError, match="cases is "):
        evaluate(taught, Scatter(lr=0.1), replace(source, cases=source.cases[1:]), tmp_path / "run", RunSpec(limit=1))


KILLED = """
import os, pickle, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from miniature import Scatter, case, teach
from unike.bench.runner import evaluate
from unike.bench.selection import Task
from unike.bench.spec import RunSpec

pictures, out = [Path(arg) for arg in sys.argv[1:4]], Path(sys.argv[4])
cases = [case(number, pictures) for number in range(6)]
backbone = teach(cases)
draw = random.Random(int(sys.argv[5]))

def run(folder, spec):
    os.environ["UNIKE_HOME"] = str(folder / "home")
    source = Task("miniature", "eval", cases, image_root=pictures[0].parent)
    evaluate(backbone, Scatter(lr=0.3), source, folder / "run", spec)

for name, spec in {"one-step": RunSpec(batch=2), "sequential": RunSpec(setting="sequential", k=2)}.items():
    started = time.perf_counter()
    run(out / name / "whole", spec)
    longest = time.perf_counter() - started
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            run(out / name / "killed", spec)
            os._exit(0)
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        kills += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        if not os.WIFSIGNALED(status):
            break
        longest *= 1.1  # so that it ends
    print(name, kills)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no fork there")
@pytest.mark.slow
def test_a_run_that_is_killed_at_random_ends_as_one_that_is_not(pictures: list[Path], tmp_path: Path) -> None:
    """Killed wherever it is, as often as it takes: record for record the same, seconds apart."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", KILLED, *map(str, pictures), str(tmp_path), str(random.randrange(10**6))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command[-1]}: {done.stderr}"
    for line in done.stdout.splitlines():
        name, _ = line.split()
        whole, killed = (without_seconds(read_run(tmp_path / name / how / "run")) for how in ("whole", "killed"))
        assert killed == whole, f"seed {command[-1]}"
    kills = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(kills) == 2 and sum(kills) > 0
