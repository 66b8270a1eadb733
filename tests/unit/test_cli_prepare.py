"""``unike prepare``: a whole run on a tiny model, and what is refused before anything slow happens."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from unike.backbones.adapter import Backbone
from unike.cli import _shared
from unike.core.errors import UnikeError
from unike.data.datasets.pocket import Pocket
from unike.data.learning import EVALUATED, read_cases
from unike.data.queries import EditCase, Query
from unike.editors.unike.knowledge import Knowledge

Cli = Callable[..., Any]

TINY = ("--set", "layers=[-1]", "--set", "hidden=8", "--set", "truth_width=4", "--set", "max_epochs=2")


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 150th case of PocketEdit, every 40th for the gate, and a model that answers all of them with a number."""
    every: Callable[[Pocket, str], list[EditCase]] = Pocket.cases
    for_gate: Callable[[Pocket, str], list[EditCase]] = Pocket.scope_cases
    monkeypatch.setattr(Pocket, "cases", lambda self, split: every(self, split)[::150])
    monkeypatch.setattr(Pocket, "scope_cases", lambda self, split: for_gate(self, split)[::40])

    def generate(self: Backbone, queries: Sequence[Query], *, max_new_tokens: int) -> list[str]:
        return [str(len(query.prompt) + len(str(query.image))) for query in queries]

    monkeypatch.setattr(Backbone, "generate", generate)


@pytest.mark.slow
def test_a_run_from_the_command_line(cli: Cli, few_cases: None, tiny_folder: Path) -> None:
    args = ("prepare", "--model", tiny_folder, "--out", "knowledge", *TINY)
    result = cli(*args)
    assert (result.code, result.err) == (0, "")
    assert "prepared in" in result.out and "saved in knowledge" in result.out
    known = Knowledge.from_pretrained("knowledge")
    report = known.description["report"]
    assert re.search(rf"triplets +│ +{len(known)} │", result.out)
    assert {triplet.tag for triplet in known.triplets} > {"inaccurate recognition", "incorrect reasoning"}
    assert report["candidates"]["cases"] == len(Pocket().cases("train"))
    assert known.description["data"]["against"] == sum(len(Pocket().cases(split)) for split in EVALUATED)

    again = cli(*args, "--json")
    assert (again.code, again.err) == (0, "")
    told = json.loads(again.out)
    assert (told["already_there"], told["triplets"], told["fingerprint"]) == (True, len(known), known.fingerprint)
    assert told["report"] == report
    assert "already there: knowledge" in cli(*args).out


@pytest.mark.slow
def test_knowledge_of_another_template_is_other_knowledge(cli: Cli, few_cases: None, tiny_folder: Path) -> None:
    args = ("prepare", "--model", tiny_folder, "--out", "knowledge", *TINY, "--limit", 8, "--json")
    template = ("--template", "mmedit-vqa")
    assert json.loads(cli(*args, *template).out)["already_there"] is False
    assert Knowledge.from_pretrained("knowledge").description["backbone"]["chosen_template"] == "mmedit-vqa"
    assert json.loads(cli(*args, *template).out)["already_there"] is True
    other = cli(*args)
    assert other.is_error(f"run: unike prepare --model {tiny_folder}"), other
    assert "made with the template '{image}Question: {prompt} Short answer: || {prompt}'" in other.err


@pytest.mark.slow
def test_a_limit_and_one_task(cli: Cli, few_cases: None, tiny_folder: Path) -> None:
    args = ("prepare", "--model", tiny_folder, "--out", "knowledge", *TINY)
    result = cli(*args, "--limit", 8, "--task", "vqa", "--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    assert (told["triplets"], told["already_there"]) == (8, False)
    assert told["seconds"] > 0 < told["bytes"]
    assert told["report"]["candidates"]["cases"] == len(Pocket("vqa").cases("train"))


def test_nothing_of_either_task_leaks() -> None:
    cases, _, against, tags = read_cases("pocket", "train", "caption", None)
    assert {case.case_id.split("-")[0] for case in cases} == {"caption"}
    assert {tuple(case.case_id.split("-")[:2]) for case in against} == {
        (task, split) for task in ("vqa", "caption") for split in ("dev", "eval")
    }
    assert not {case.case_id for case in cases} & tags.keys(), "a caption has no tag"
    assert {case.case_id.split("-")[1] for case in read_cases("pocket", "dev", None, None)[2]} == {"eval"}


def test_what_lies_in_a_folder_is_read_from_there(tmp_path: Path) -> None:
    with pytest.raises(UnikeError, match=r"train\.json, VLKEB_images/ missing in"):
        read_cases("vlkeb", "train", None, tmp_path)
    with pytest.raises(UnikeError, match=r"vlkeb has no task 'vqa' \(known: none\)"):
        read_cases("vlkeb", "train", "vqa", tmp_path)


def test_help(cli: Cli) -> None:
    result = cli("prepare", "--help")
    assert result.code == 0
    for option in ("--model", "--data", "--split", "--task", "--data-dir", "--out", "--set", "--limit", "--json"):
        assert option in result.out
    assert "prepare" in cli("--help").out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--data", "poket"), "unknown dataset 'poket'; did you mean 'pocket'"),
        (("--split", "test"), "pocket has no split 'test' (known: train, dev, eval)"),
        (("--split", "eval"), "the eval split is only for reporting"),
        (("--task", "poetry"), "pocket has no task 'poetry'"),
        (("--data-dir", "here"), "name none"),
        (("--data", "mmedit", "--data-dir", "here"), "vqa_train.json"),
        (("--data", "mmedit", "--task", "poetry"), "mmedit has no task 'poetry'"),
        (("--set", "layers"), "is not KEY=VALUE"),
        (("--set", "layrs=[1]"), "unknown setting 'layrs'; did you mean 'layers'"),
        (("--set", "tau=0"), "setting tau=0"),
        (("--set", "limit=3", "--limit", "4"), "give it once"),
        (("--device", "abacus"), "unknown device 'abacus'"),
        (("--dtype", "float8"), "unknown dtype 'float8'"),
        (("--out", "mine"), "mine exists and is something else; choose another folder"),
        (("--out", "mine/thesis/x"), "thesis is not a folder"),
    ],
)
def test_bad_input_is_known_before_the_model_is_loaded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    def loaded(*args: object) -> None:
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr(_shared, "load", loaded)
    Path("mine").mkdir()
    Path("mine/thesis").write_text("years of work")
    assert cli("prepare", *(() if "--out" in args else ("--out", "knowledge")), *args).is_error(message)
    assert not Path("knowledge").exists()
