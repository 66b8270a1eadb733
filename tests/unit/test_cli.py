"""The command line when all is well."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import unike
from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.cli import _shared, demo, edit
from unike.core.options import parse_settings
from unike.core.registry import backbones, editors
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.stack import attached

Cli = Callable[..., Any]

FLAG = "Which country does this flag belong to?"
FAST = ("--set", "steps=60", "--set", "lr=0.02")


def python(*args: object, home: Path, **kwargs: object) -> "subprocess.CompletedProcess[str]":
    """A real process, as a user starts it."""
    source = str(Path(unike.__file__).parents[1])
    env = os.environ | {"UNIKE_HOME": str(home), "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, args)],
        env=env,
        cwd=home,
        text=True,
        timeout=120,
        **({"capture_output": True} | kwargs),
    )


# ---------------------------------------------------------------------- edit and ask


@pytest.mark.slow
def test_edit_then_ask_in_processes_of_their_own(
    tiny_folder: Path, pictures: list[Path], tmp_path: Path, home: Path
) -> None:
    """Stdout is one JSON object, stderr is empty, and the saved edit works elsewhere."""
    shutil.copytree(home / "knowledge", tmp_path / "knowledge")
    model = ("--model", tiny_folder, "--image", pictures[0], "--prompt", FLAG)
    made = python("-m", "unike", "edit", *model, "--target", "Kenya", *FAST, "--json", home=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    result = json.loads(made.stdout)
    assert result["saved"] == "edits/kenya"
    assert [(row["kind"], row["after"], row["verdict"]) for row in result["answers"]] == [("edit", "Kenya", "right")]
    assert result["edit_seconds"] > 0 < result["load_seconds"]

    asked = python("-m", *shlex.split(result["ask"]), "--json", home=tmp_path)  # the command that was told
    assert (asked.returncode, asked.stderr) == (0, "")
    answer = json.loads(asked.stdout)
    assert answer["model"] == str(tiny_folder)
    assert answer["answer"] == "Kenya"
    assert answer["answer_without_edits"] == result["answers"][0]["before"] != "Kenya"


def test_edit_and_ask_before_the_model(cli: Cli, tiny_folder: Path, pictures: list[Path]) -> None:
    """With a method that cannot be attached."""
    model = ("--model", tiny_folder, "--image", pictures[0], "--prompt", FLAG)
    made = cli("edit", *model, "--target", "Kenya", "--editor", "answer_cache", "--json")
    assert (made.code, made.err) == (0, "")
    assert [row["after"] for row in json.loads(made.out)["answers"]] == ["Kenya"]
    asked = cli("ask", *model, "--edit", "edits/kenya", "--json")
    assert (asked.code, asked.err) == (0, "")
    assert json.loads(asked.out)["answer"] == "Kenya" != json.loads(asked.out)["answer_without_edits"]


def test_edit_shows_a_table_and_the_next_command(cli: Cli, tiny_folder: Path, pictures: list[Path]) -> None:
    args = ("--model", tiny_folder, "--image", pictures[0], "--prompt", FLAG, "--target", "Kenya", *FAST)
    result = cli("edit", *args, "--rephrase", "Whose [bold]flag[/bold] :flag: is this?")
    assert (result.code, result.err) == (0, "")
    table, told = result.out.split("edited in ")
    assert all(heading in table for heading in ("question", "before", "after", "verdict"))
    assert "right" in table
    assert "Whose [bold]flag[/bold] :flag: is this?" in table  # as it was written, not as markup
    assert "saved in edits/kenya" in told
    assert f"unike ask --model {tiny_folder} --image {pictures[0]} --prompt '{FLAG}' --edit edits/kenya" in told
    assert Edit.from_pretrained("edits/kenya").facts == (Query(FLAG, pictures[0], "Kenya"),)


def test_edit_of_text_alone_with_settings(cli: Cli, tiny_folder: Path) -> None:
    args = ("--model", tiny_folder, "--prompt", "2 + 2?", "--target", "five", "--out", "here/it/is", "--set", "steps=2")
    result = cli("edit", *args, "--set", "layers=[-1]", "--set", "pairs.key_init=raw", "--json")
    assert result.code == 0, result.err
    described = json.loads(Path("here/it/is/edit_config.json").read_text())
    assert (described["config"]["steps"], described["config"]["layers"]) == (2, [-1])
    assert described["config"]["pairs"]["key_init"] == "raw"
    assert described["facts"] == [{"image": None, "picture": None, "prompt": "2 + 2?", "target": "five"}]


def test_edit_uses_the_editor_that_was_named(cli: Cli, tiny_folder: Path) -> None:
    args = ("--model", tiny_folder, "--prompt", "2 + 2?", "--target", "five", "--set", "steps=1", "--editor", "ft")
    assert cli("edit", *args).code == 0
    assert Edit.from_pretrained("edits/five").editor == "ft"


def test_ask_attaches_a_stack(cli: Cli, tiny_folder: Path) -> None:
    for target in ("four", "five"):
        args = ("--model", tiny_folder, "--prompt", "2 + 2?", "--target", target, "--editor", "ft", "--set", "lr=0.05")
        assert cli("edit", *args).code == 0
    folders = ["edits/four", "edits/five"]
    stack = [part for folder in folders for part in ("--edit", folder)]
    result = json.loads(cli("ask", *args[:4], *stack, "--max-new-tokens", 5, "--json").out)
    backbone, edits = load_backbone(tiny_folder), [Edit.from_pretrained(folder) for folder in folders]
    plain = backbone.ask(None, "2 + 2?", max_new_tokens=5)
    with attached(backbone, edits):
        both = backbone.ask(None, "2 + 2?", max_new_tokens=5)
    assert result["edits"] == folders
    assert (result["answer_without_edits"], result["answer"]) == (plain, both)
    assert plain != both

    shown = cli("ask", *args[:4], *stack).out
    assert "without edits" in shown and "with 2 edits" in shown


def test_ask_keeps_the_order_of_the_edits(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Additive edits commute, so the answers cannot tell."""
    orders = []

    def spy(model: EditedModel, backbone: Backbone, edits: Sequence[Edit] = ()) -> None:
        orders.append([edit.facts[0].target for edit in edits])
        original(model, backbone, edits)

    original = EditedModel.__init__

    for target in ("one", "two"):
        args = ("--model", tiny_folder, "--prompt", "2 + 2?", "--target", target, "--editor", "ft", "--set", "steps=1")
        assert cli("edit", *args).code == 0
    monkeypatch.setattr(EditedModel, "__init__", spy)
    assert cli("ask", *args[:4], "--edit", "edits/two", "--edit", "edits/one").code == 0
    assert sorted(orders) == [[], ["two", "one"]]


def test_ask_without_edits_prints_the_answer_alone(cli: Cli, tiny_folder: Path, pictures: list[Path]) -> None:
    args = ("ask", "--model", tiny_folder, "--image", pictures[0], "--prompt", FLAG)
    answer = load_backbone(tiny_folder).ask(pictures[0], FLAG)
    result = cli(*args, "--json")
    assert json.loads(result.out)["answer"] == answer
    assert cli(*args).out == _shared.printable(answer) + "\n"


# ---------------------------------------------------------------------- demo, ls, models


def test_demo_has_five_rows(cli: Cli, tiny_folder: Path) -> None:
    result = cli("demo", "--model", tiny_folder, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert [row["kind"] for row in found["answers"]] == ["the edit", *demo.PROBES.values()]
    assert all(row["verdict"] in ("right", "wrong") for row in found["answers"][:3])
    assert all(row["verdict"] in ("unchanged", "changed") for row in found["answers"][3:])
    assert [row["image"] is None for row in found["answers"]] == [False, False, False, False, True]
    assert found["answers"][0]["image"] != found["answers"][2]["image"]
    assert Edit.from_pretrained("edits/demo").facts[0].target == found["target"]

    shown = cli("demo", "--model", tiny_folder)
    assert shown.code == 0
    assert all(kind in shown.out for kind in demo.PROBES.values())
    assert "loaded in" in shown.out and "saved in edits/demo" in shown.out


@pytest.mark.parametrize(
    ("kind", "before", "after", "verdict"),
    [
        ("edit", "Chad", "Kenya", "right"),
        ("t_generality", "Chad", " kenya.", "right"),
        ("m_generality", "Chad", "Chad", "wrong"),
        ("t_locality", "Lima", "Lima", "unchanged"),
        ("m_locality", "Lima", "Kenya", "changed"),
    ],
)
def test_verdicts_of_the_demo(kind: str, before: str, after: str, verdict: str) -> None:
    assert demo.judge(kind, before, after, "Kenya") == verdict


def test_verdicts_of_an_edit() -> None:
    asked = [Query(text, None, "Kenya") for text in "abc"]
    rows = edit.make_rows(asked, ["Chad", "Chad", "Chad"], ["Kenya", "Chad", "Mali"])
    assert [(row.kind, row.verdict) for row in rows] == [
        ("edit", "right"),
        ("rephrase", "unchanged"),
        ("rephrase", "changed"),
    ]


def test_ls_names_everything_there_is(cli: Cli) -> None:
    assert [entry["name"] for entry in json.loads(cli("ls", "editors", "--json").out)["editors"]] == editors.names()
    found = {entry["name"]: entry for entry in json.loads(cli("ls", "backbones", "--json").out)["backbones"]}
    assert list(found) == backbones.names()
    assert found["blip2"]["model_types"] == ["blip-2"]
    assert found["llava"]["description"] == "LLaVA 1.5 and others in its format."
    shown = cli("ls", "datasets").out
    assert "pocket" in shown and "flags" in shown


# ---------------------------------------------------------------------- the frame


def test_version_and_module(tmp_path: Path) -> None:
    result = python("-m", "unike", "--version", home=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"unike {unike.__version__}\n", "")


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    heavy = "[name for name in ('torch', 'transformers', 'PIL', 'pyarrow') if name in sys.modules]"
    code = f"import sys, unike.cli\ntry: unike.cli.app(['edit', '--help'])\nexcept SystemExit: print({heavy})"
    result = python("-c", code, home=tmp_path)
    assert result.stdout.endswith("\n[]\n"), result.stdout + result.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes fail otherwise there")
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
def test_a_closed_pipe_is_quiet(tmp_path: Path, form: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        streams = {"capture_output": False, "stdout": write, "stderr": subprocess.PIPE}
        result = python("-m", "unike", "ls", "datasets", *form, home=tmp_path, **streams)
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_ctrl_c_is_quiet(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unike.api.make_editor", interrupted)
    result = cli("edit", "--model", tiny_folder, "--prompt", "2 + 2?", "--target", "five")
    assert (result.code, result.out, result.err) == (130, "", "")
    assert not Path("edits").exists()


# ---------------------------------------------------------------------- small parts


def test_settings_are_json_where_they_can_be() -> None:
    found = parse_settings(["steps=3", "layers=[-1, -2]", "key_init=raw", "clip=null", "train_keys=false", "x=a=b"])
    assert found == {"steps": 3, "layers": [-1, -2], "key_init": "raw", "clip": None, "train_keys": False, "x": "a=b"}


def test_places_do_not_collide(cli: Cli, tiny_folder: Path) -> None:
    """The same edit is replaced, another with the same target is not, nor is anything else."""
    Path("edits/yes").mkdir(parents=True)
    Path("edits/yes/notes.txt").write_text("mine")
    args = ("edit", "--model", tiny_folder, "--target", "Yes!", "--set", "steps=1", "--json")
    places = [json.loads(cli(*args, "--prompt", prompt).out)["saved"] for prompt in ("Is it?", "Was it?", "Is it?")]
    assert places == ["edits/yes-2", "edits/yes-3", "edits/yes-2"]
    assert Path("edits/yes/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("target", "name"), [("New York City", "new-york-city"), ("../..", "edit"), ("北京", "北京")])
def test_slugs(cli: Cli, target: str, name: str) -> None:
    assert edit.free_place(Query("?", None, target), model="mini", editor="unike") == Path("edits") / name
    assert len(edit.free_place(Query("?", None, target * 99), model="mini", editor="unike").name) <= 40


def test_escape_sequences_of_a_model_do_not_reach_the_terminal() -> None:
    assert _shared.printable("\x1b[31mred\a") == "\ufffd[31mred\ufffd"
    assert _shared.printable("") == "(nothing)"
    assert _shared.printable("日本 é") == "日本 é"
