"""The control that does nothing: its scores are those of the unedited model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reports import write
from tinies import tiny_backbone

from unike import EditedModel, load_backbone, make_editor
from unike.backbones.forward.functional import target_tokens
from unike.bench.results import read_run
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.report import arrange, read, score_table

Cli = Callable[..., Any]


@pytest.fixture
def args(tiny_folder: Path, mmedit: Path) -> tuple[object, ...]:
    options = ("bench", "--model", tiny_folder, "--dataset", "mmedit-vqa", "--data", mmedit, "--editor", "no_edit")
    protocols = ("strict", "teacher_forced", "mmedit")
    return (*options, "--max-new-tokens", 3, *(word for name in protocols for word in ("--protocol", name)))


def test_it_changes_nothing(pictures: list[Path], tmp_path: Path) -> None:
    model = tiny_backbone("llava")
    fact = Query("What is this?", pictures[0], "a dog")
    edit = make_editor("no_edit").edit(model, fact)
    edit.save_pretrained(tmp_path / "edit")
    for made in (edit, Edit.from_pretrained(tmp_path / "edit")):
        assert made.tensors == {} and len(made) == 1
        logits = EditedModel(model, [made]).target_logits([fact])
        assert torch.equal(logits, EditedModel(model).target_logits([fact]))
    tuned = make_editor("ft", steps=3).edit(model, Query("Who wrote it?", None, "a cat"))
    both, alone = (EditedModel(model, edits).target_logits([fact]) for edits in ([tuned, edit], [tuned]))
    assert torch.equal(both, alone)


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_its_scores_are_the_unedited_models(
    cli: Cli, args: tuple[object, ...], tiny_folder: Path, mmedit: Path, engine: str
) -> None:
    assert cli(*args, "--out", "run", "--engine", engine).code == 0
    model = load_backbone(tiny_folder)
    shares = []
    for case in read_run(Path("run")).cases:
        for asked in case.asked:
            assert asked.after == asked.before
            if asked.kind.endswith("locality"):
                assert {value for value in asked.scores.values() if value is not None} == {1.0}
                continue
            assert asked.target is not None
            query = Query(asked.prompt, None if asked.image is None else mmedit / asked.image, asked.target)
            batch = model.encode([query])
            tokens = target_tokens(batch.labels)[1][:-1]  # without the end
            said = EditedModel(model).target_logits([query]).argmax(dim=-1)[:-1]
            share = (said == tokens).float().mean().item()
            assert asked.scores["teacher_forced/token"] == pytest.approx(share)
            assert asked.scores["mmedit/token"] == pytest.approx(share)
            shares.append(share)
        assert case.asked[0].scores["strict/exact"] == 0, "what is right already is not edited"
    assert shares


def test_sequences_too(cli: Cli, args: tuple[object, ...]) -> None:
    result = cli(*args, "--out", "run", "--setting", "sequential", "--k", 2, "--json")
    assert result.code == 0, result.err
    exact = {row["metric"]: row["value"] for row in json.loads(result.out)["summary"] if row["scorer"] == "exact"}
    assert exact["reliability"] == 0 and exact["t_locality"] == 1


def test_it_is_the_first_row_of_a_table(tmp_path: Path) -> None:
    for editor in ("answer_cache", "no_edit", "unike"):
        write(tmp_path / editor, editor=editor)
    (blocks,) = arrange(read([tmp_path]), "strict/exact")
    assert [name for name, _ in score_table(blocks, "strict/exact").rows] == ["no_edit", "answer_cache", "unike"]
