"""``unike train``: settings that are shared out, a whole run on a tiny model, and what is refused before that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unike.cli import _shared
from unike.core.errors import UnikeError
from unike.data.datasets.pocket import Pocket
from unike.data.learning import split_cases
from unike.data.queries import EditCase
from unike.editors.ft import FT
from unike.editors.mend.editor import MEND
from unike.editors.trained.config import split_settings, trainable


def test_settings_are_shared_out() -> None:
    network, loop = split_settings(MEND(), {"rank": 3, "steps": 7, "layers": [-1]})
    assert (network.rank, network.layers, loop.steps) == (3, (-1,), 7)
    for wrong, message in [
        ({"ranks": 3}, "unknown setting 'ranks'; did you mean 'rank'"),
        ({"batchs": 3}, "unknown setting 'batchs'; did you mean 'batch'"),
        ({"batch": 0}, "setting batch=0"),
        ({"rank": "many"}, "setting rank='many'"),
    ]:
        with pytest.raises(UnikeError, match=message):
            split_settings(MEND(), wrong)
    with pytest.raises(UnikeError, match="ft has no network to train"):
        trainable(FT())


Cli = Callable[..., Any]


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    every: Callable[[Pocket, str], list[EditCase]] = Pocket.cases
    monkeypatch.setattr(Pocket, "cases", lambda self, split: every(self, split)[::400])


@pytest.mark.slow
def test_a_run_from_the_command_line(cli: Cli, few_cases: None, tiny_folder: Path) -> None:
    small = [part for pair in ("layers=[-1]", "rank=2", "batch=2", "cases=3", "held_out=2") for part in ("--set", pair)]
    args = ("train", "--editor", "mend", "--model", tiny_folder, "--task", "vqa", "--steps", 2, *small)
    result = cli(*args, "--out", "net", "--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    assert told["saved"] == "net" and told["report"]["learned from"] == 3
    assert [entry["step"] for entry in told["log"]] == [0, 2]
    again = cli(*args, "--out", "net")
    assert again.code == 0 and "saved in net" in again.out and "before" in again.out
    edited = ("edit", "--model", tiny_folder, "--editor", "mend", "--prompt", "2 + 2?", "--target", "five", "--json")
    assert cli(*edited, "--set", "trained=net").code == 0
    assert cli("train", "--help").code == 0


def test_an_untrained_editor_is_one_line(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    args = ("edit", "--model", tiny_folder, "--editor", "mend", "--prompt", "2 + 2?", "--target", "five")
    assert cli(*args).is_error("mend has not been trained for", "run: unike train --editor mend --model")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--editor", "ft"), "ft has no network to train"),
        (("--editor", "mendd"), "unknown editor 'mendd'; did you mean 'mend'"),
        (("--editor", "mend", "--data", "poket"), "unknown dataset 'poket'"),
        (("--editor", "mend", "--task", "poetry"), "pocket has no task 'poetry'"),
        (("--editor", "mend", "--set", "rnk=3"), "unknown setting 'rnk'; did you mean 'rank'"),
        (("--editor", "mend", "--set", "steps=3", "--steps", "4"), "give it once"),
        (("--editor", "mend", "--device", "abacus"), "unknown device 'abacus'"),
        (("--editor", "mend", "--out", "mine"), "mine exists and is something else"),
    ],
)
def test_bad_input_is_known_before_the_model_is_loaded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(_shared, "load", lambda *_: pytest.fail("the model was loaded"))
    Path("mine").mkdir()
    Path("mine/thesis").write_text("years of work")
    assert cli("train", *args).is_error(message)


@pytest.mark.slow
def test_validation_is_on_dev_or_on_pictures_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, validation, against = split_cases("pocket", "vqa", None)
    assert {case.case_id.split("-")[1] for case in cases} == {"train"}
    assert {case.case_id.split("-")[1] for case in validation} == {"dev"}
    assert {case.case_id.split("-")[1] for case in against} == {"dev", "eval"}
    monkeypatch.setattr(Pocket, "splits", ("train", "eval"))
    learned, validation, against = split_cases("pocket", "vqa", None)
    assert len(learned) + len(validation) == len(cases) and 0.05 < len(validation) / len(cases) < 0.15
    assert not {case.edit.image for case in learned} & {case.edit.image for case in validation}
    assert {case.case_id.split("-")[1] for case in against} == {"eval"}
