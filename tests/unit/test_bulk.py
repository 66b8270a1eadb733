"""Many facts: each an edit in a folder of its own, in batches, resumable, and none is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone

from unike import make_editor
from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.common.bulk import LOG, edit_all, edits_in, read_facts, read_log
from unike.editors.ft import FT
from unike.edits.edit import Edit

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def llava() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture
def facts(pictures: list[Path]) -> list[Query]:
    """Of several lengths, with pictures and without, one of them twice."""
    first = Query("What is this?", pictures[0], "yes")
    return [first, Query("1 + 1?", target="no"), Query("What, then, is this?", pictures[1], "no"), first]


def write(file: Path, lines: str) -> Path:
    file.write_text(lines, encoding="utf-8")
    return file


# ---------------------------------------------------------------------- files


def test_lines_and_tables_say_the_same(tmp_path: Path, pictures: list[Path]) -> None:
    """Pictures lie beside the file; marks at the beginning, empty lines, commas and line breaks are what they are."""
    (tmp_path / "a.png").write_bytes(pictures[0].read_bytes())
    expected = [Query('Who, "exactly"?', tmp_path / "a.png", "Zoë"), Query("1 + 1?", None, "3")]
    told = [{"image": "a.png", "prompt": 'Who, "exactly"?', "target": "Zoë"}, {"prompt": "1 + 1?", "target": "3"}]
    lines = write(tmp_path / "f.jsonl", "\n\n".join(map(json.dumps, told)) + "\n")
    table = write(tmp_path / "f.csv", '\ufeffimage,prompt,target\r\na.png,"Who, ""exactly""?",Zoë\r\n,1 + 1?,3\r\n')
    assert read_facts(lines) == read_facts(table) == expected


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("f.jsonl", '{"prompt": "a", "target": "b"}\n{"prompt": 1, "target": "b"}', r"line 2: .*prompt"),
        ("f.jsonl", '{"prompt": "a"', "line 1: it is not JSON"),
        ("f.jsonl", '{"prompt": "a"}\n' * 7, r"line 1: .*target.*line 5: .*; and 2 more; mend"),
        ("f.jsonl", '{"prompt": " ", "target": "b"}', "line 1: the prompt is empty"),
        ("f.jsonl", '{"prompt": "a", "target": "b", "image": "none.png"}', r"line 1: .*none\.png"),
        ("f.jsonl", "\n", "has no fact"),
        ("f.csv", "prompt,answer\na,b\n", "line 1: its columns are 'prompt', 'answer'; name them"),
        ("f.csv", "prompt;target\na;b\n", "line 1: its columns are 'prompt;target'; name them prompt, target, image"),
        ("f.csv", "prompt,target,target\na,b,c\n", "line 1: its columns are 'prompt', 'target', 'target'; name"),
        ("f.csv", "prompt,target\na,b,c\n", "line 2: it has more fields than the head"),
        ("f.csv", 'prompt,target\na,"b', "it is not CSV"),
        ("f.csv", "prompt,target,Image\na,b,c.png\n", "line 1: its columns are .*'Image'; name"),
        ("f.jsonl", '{"prompt": "\\ud800 q", "target": "b"}', "line 1: .*half"),
        ("f.jsonl", '"hello"', "line 1"),
        ("f.csv", "prompt,target\na,b\nc,d\na,e\n", "line 4: it asks what line 2 asks, and wants another answer"),
    ],
)
def test_a_file_that_says_something_else_is_one_line(tmp_path: Path, name: str, content: str, told: str) -> None:
    with pytest.raises(UnikeError, match=told) as caught:
        read_facts(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_separators_within_a_text_end_no_line(llava: Backbone, tmp_path: Path) -> None:
    fact = Query("What is\u2028it?", None, "yes")
    assert read_facts(write(tmp_path / "f.jsonl", '{"prompt": "What is\u2028it?", "target": "yes"}\n')) == [fact]
    edit_all(llava, FT(steps=1), [fact], tmp_path / "run")
    assert [each.prompt for each in read_log(tmp_path / "run")] == [fact.prompt]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnikeError, match=r"cannot read .*nowhere"):
        read_facts(tmp_path / "nowhere.jsonl")
    (tmp_path / "latin.csv").write_bytes(b"prompt,target\nWo?,K\xf6ln\n")
    with pytest.raises(UnikeError, match="it is not UTF-8"):
        read_facts(tmp_path / "latin.csv")


# ---------------------------------------------------------------------- edits


def test_each_is_the_edit_that_it_would_be_alone(llava: Backbone, facts: list[Query], tmp_path: Path) -> None:
    editor, seen = FT(lr=1e-2, steps=3), []
    found = edit_all(llava, editor, facts, tmp_path, batch=2, progress=lambda *done: seen.append(done))
    assert [(each.prompt, each.target, each.new) for each in found] == [(f.prompt, f.target, True) for f in facts]
    assert found[0] == found[3] and len({each.edit for each in found}) == 3
    assert seen[0] == ("editing", 0, 3) and seen[-1] == ("editing", 3, 3)
    for fact, outcome in zip(facts, found, strict=True):
        saved, alone = Edit.from_pretrained(tmp_path / outcome.edit), editor.edit(llava, fact)
        assert saved.facts == (fact,)
        for name, tensor in alone.tensors.items():
            assert torch.allclose(saved.tensors[name], tensor, atol=1e-4), name
        with saved.attached(llava):
            assert llava.generate([fact], max_new_tokens=16) == [outcome.answer]
        assert outcome.took is fact.accepts(outcome.answer)


def test_a_run_goes_on_where_it_stopped(
    llava: Backbone, facts: list[Query], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after a batch loses nothing; one between an edit and its line in the log has that edit made again."""
    editor, made = FT(lr=1e-2, steps=1), []
    whole = edit_all(llava, editor, facts, tmp_path / "whole")
    edit = FT.edit

    def killed(self: FT, backbone: Backbone, some: list[Query]) -> Edit:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.extend(some)
        return edit(self, backbone, some)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FT, "edit", killed)
        edit_all(llava, editor, facts, tmp_path / "run", batch=1)
    log = tmp_path / "run" / LOG
    assert len(read_log(tmp_path / "run")) == 2
    log.write_bytes(log.read_bytes()[:-9])
    found = edit_all(llava, editor, facts, tmp_path / "run", batch=1)
    assert [each.model_copy(update={"new": True}) for each in found] == whole
    assert sum(each.new for each in {each.edit: each for each in found}.values()) == 2
    again = edit_all(llava, editor, facts, tmp_path / "run")
    assert not any(each.new for each in again) and [each.took for each in again] == [each.took for each in whole]
    other = edit_all(llava, FT(lr=1e-2, steps=2), facts, tmp_path / "run")
    assert all(each.new for each in other), "another method makes other edits"


def test_what_is_damaged_is_made_again(llava: Backbone, facts: list[Query], tmp_path: Path) -> None:
    found = edit_all(llava, FT(steps=1), facts, tmp_path)
    tensors = tmp_path / found[1].edit / "edit.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-3])
    assert [each.new for each in edit_all(llava, FT(steps=1), facts, tmp_path)] == [False, True, False, False]
    assert Edit.from_pretrained(tmp_path / found[1].edit).facts == (facts[1],)


def test_a_target_that_is_changed_back_is_in_force_again(llava: Backbone, tmp_path: Path) -> None:
    one, other = Query("Who?", target="yes"), Query("Who?", target="no")
    names = [edit_all(llava, FT(steps=1), [fact], tmp_path)[0].edit for fact in (one, other, one)]
    assert names[0] == names[2] != names[1]
    assert [folder.name for folder in edits_in(tmp_path)] == [names[1], names[0]]


def test_a_folder_without_a_finished_edit_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / LOG, "garbage\n")
    with pytest.raises(UnikeError, match="has no edit"):
        edits_in(tmp_path)
    assert edits_in(tmp_path / "single") == [tmp_path / "single"]


def test_a_method_that_holds_one_fact_is_refused(llava: Backbone, facts: list[Query], tmp_path: Path) -> None:
    with pytest.raises(UnikeError, match="'ike' puts one new fact"):
        edit_all(llava, make_editor("ike"), facts, tmp_path / "run")


def test_a_fact_that_cannot_be_edited_is_known_before_the_first_edit(
    llava: Backbone, facts: list[Query], tmp_path: Path
) -> None:
    with pytest.raises(UnikeError, match="several lines"):
        edit_all(llava, FT(steps=1), [*facts, Query("Who?", target="a\nb")], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_log_leads_nowhere_else(tmp_path: Path) -> None:
    line = {"prompt": "a", "image": None, "target": "b", "edit": "../../elsewhere", "answer": "b", "took": True}
    write(tmp_path / LOG, json.dumps(line) + "\n" + json.dumps(line | {"edit": "0123456789abcdef"}) + "\n")
    assert [each.edit for each in read_log(tmp_path)] == ["0123456789abcdef"]


# ---------------------------------------------------------------------- command line


def test_from_the_command_line(cli: Cli, tiny_folder: Path, pictures: list[Path]) -> None:
    lines = [{"prompt": "1 + 1?", "target": "no"}, {"prompt": "Who?", "target": "yes", "image": str(pictures[0])}]
    Path("facts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    args = ("edit", "--model", tiny_folder, "--editor", "ft", "--set", "lr=0.1", "--set", "steps=20")
    first = cli(*args, "--facts", "facts.jsonl")
    assert first.code == 0 and "2 facts, 2 edited now" in first.out and "saved in edits/facts" in first.out
    told = json.loads(cli(*args, "--facts", "facts.jsonl", "--json").out)
    assert (told["facts"], told["new"], len(told["edits"])) == (2, 0, 2)
    asked = cli("ask", "--model", tiny_folder, "--prompt", "1 + 1?", "--edit", "edits/facts", "--json")
    assert asked.code == 0 and len(json.loads(asked.out)["edits"]) == 2


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "say what is to be edited"),
        (("--prompt", "a"), "--prompt and --target, or --facts FILE"),
        (("--facts", "facts.jsonl", "--prompt", "a"), "leave --prompt out"),
        (("--prompt", "a", "--target", "b", "--batch", "2"), "--batch is for many facts"),
        (("--facts", "nowhere.csv"), "cannot read nowhere.csv"),
        (("--facts", "facts.jsonl", "--out", "mine"), "mine exists and is something else"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, tiny_folder: Path, args: tuple[str, ...], told: str) -> None:
    Path("facts.jsonl").write_text('{"prompt": "a", "target": "b"}')
    Path("mine").mkdir()
    Path("mine/thesis").write_text("years of work")
    assert cli("edit", "--model", tiny_folder, *args).is_error(told)
