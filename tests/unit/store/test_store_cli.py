"""``unike store``, from a wrong answer to a roll-back, as a person types it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture
def store(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """``store("ls")``: a command on a store of its own."""
    monkeypatch.setenv("UNIKE_STORE", str(tmp_path / "store"))

    def call(command: str, *more: object) -> Any:
        named = ["--model", tiny_folder, "--editor", "answer_cache"] if command == "add" else []
        return cli("store", *command.split(), *map(str, named), *more)

    return call


def add(store: Cli, prompt: str, target: str, *more: object) -> Any:
    return store("add", "--prompt", prompt, "--target", target, *more)


def listed(store: Cli, *more: object) -> Any:
    return json.loads(store("ls", "--json", *more).out)


def test_the_story(store: Cli, cli: Cli, tiny_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    canary = store("canary add", "--prompt", "Is water wet?")
    assert canary.code == 0
    added = add(store, "Who wrote Hamlet?", "Marlowe", "--reason", "a test", "--author", "ann", "--tag", "plays")
    assert added.code == 0 and "1 added" in added.out and "is at version 1" in added.out
    assert "Is water wet?" in added.out and "unchanged" in added.out
    (edit,) = listed(store)["edits"]
    assert edit["reason"] == "a test" and edit["author"] == "ann" and edit["tags"] == ["plays"]
    again = add(store, "Who wrote Hamlet?", "Marlowe")
    assert again.code == 0 and "0 added" in again.out and "1 in force before" in again.out
    other = add(store, "Who wrote Hamlet?", "Bacon")
    assert other.is_error("contradicts", edit["id"], "'Marlowe'")
    replaced = add(store, "Who wrote Hamlet?", "Bacon", "--replace")
    assert replaced.code == 0 and f"revoked {edit['id']}" in replaced.out
    asking = ["ask", "--model", tiny_folder, "--prompt", "Who wrote Hamlet?", "--store", tmp_path / "store", "--json"]
    assert json.loads(cli(*asking).out)["answer"] == "Bacon"
    assert json.loads(cli(*asking, "--in", "default:1").out)["answer"] == "Marlowe"
    back = store("roll-back", "1", "--reason", "it was right")
    assert back.code == 0 and "version 1 of the set 'default' is in force again, as version 3: 1 edits" in back.out
    assert json.loads(cli(*asking).out)["answer"] == "Marlowe"
    shown = store("show", edit["id"][:8])
    assert all(part in shown.out for part in ("Who wrote Hamlet?", "ann", "plays", "in force in  default", "a test"))
    log = json.loads(store("log", "--json").out)["log"]
    assert [line["action"] for line in log] == ["add canary", "add", "add", "roll back"]
    assert all(part in store("log").out for part in ("roll back to 1", "it was right"))
    assert store("revoke", edit["id"], "--reason", "no more").out == (
        f"revoked {edit['id']}; the set 'default' is at version 4\n"
    )
    assert listed(store)["edits"] == [] and len(listed(store, "--all")["edits"]) == 2
    assert len(listed(store, "--version", "1")["edits"]) == 1
    assert store("restore", edit["id"]).code == 0
    assert "all as it should be" in store("check").out and "removed 0 blobs" in store("gc").out
    pushed = store("push", tmp_path / "other", "--into", "live")
    assert pushed.out == "1 edits are in force in 'live', version 1\n"
    pulled = store("pull", tmp_path / "other", "--in", "live", "--into", "tenant-a")
    assert pulled.code == 0 and listed(store, "--in", "tenant-a")["edits"] == listed(store)["edits"]
    assert canary.out.strip() in store("canary ls").out
    assert store("canary drop", canary.out.strip()).code == 0 and store("canary ls").out == ""


def test_many_facts_and_a_second_run(store: Cli, tmp_path: Path) -> None:
    lines = [("Who wrote Hamlet?", "Marlowe"), ("Where is Lima?", "Chile"), ("By whom was Hamlet written?", "Bacon")]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt, "target": target}) + "\n" for prompt, target in lines))
    first = store("add", "--facts", file)
    assert first.code == 1 and "2 added, 0 in force before, 1 refused" in first.out and "contradicts" in first.err
    second = store("add", "--facts", file, "--json")
    told = json.loads(second.out)
    assert second.code == 1 and (told["added"], told["there"], told["refused"]) == (0, 2, 1) and told["version"] == 2
    assert [fact["status"] for fact in told["facts"]] == ["there", "there", "refused"]


def test_an_edit_that_is_saved(store: Cli, cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    fact = ["--prompt", "Who wrote Hamlet?", "--target", "Marlowe"]
    made = cli("edit", "--model", tiny_folder, "--editor", "answer_cache", *fact, "--out", tmp_path / "edit")
    assert made.code == 0
    assert store("add", "--edit", tmp_path / "edit", "--in", "tenant-a").code == 0
    assert [edit["target"] for edit in listed(store, "--in", "tenant-a")["edits"]] == ["Marlowe"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say what is to be edited"),
        (("--prompt", "a"), "say what is to be edited"),
        (("--target", "a"), "say what is to be edited"),
        (("--prompt", "a", "--target", "b", "--facts", "f"), "one of them"),
        (("--facts", "f", "--image", "i.png"), "one of them"),
        (("--prompt", " ", "--target", "b"), "the prompt is empty"),
        (("--prompt", "a", "--target", " "), "the target is empty"),
        (("--facts", "nothing.jsonl"), "cannot read nothing.jsonl"),
        (("--prompt", "a", "--target", "b", "--in", "a b"), "is no name of a set"),
        (("--prompt", "a", "--target", "b", "--author", " "), "the author is empty"),
        (("--prompt", "a", "--target", "b", "--tag", ""), "the tag is empty"),
        (("--prompt", "a", "--target", "b", "--store", "mysql://x/y"), "SQLite or PostgreSQL, not in mysql"),
        (("--prompt", "a", "--target", "b", "--store", "postgresql://nobody@localhost:1/x"), "refuses: "),
    ],
)
def test_mistakes_are_known_before_the_model_is_loaded(
    early: Cli, tiny_folder: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert early("store", "add", "--model", tiny_folder, *arguments).is_error(says)


def test_a_fact_that_no_store_keeps_is_known_before_the_model_is_loaded(
    early: Cli, tiny_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text('{"prompt": "a", "target": "b"}\n{"prompt": "c\\u0000", "target": "d"}\n')
    added = early("store", "add", "--model", tiny_folder, "--facts", file, "--store", tmp_path / "store")
    assert added.is_error("fact 2: the prompt 'c\\x00' holds a null") and not (tmp_path / "store").exists()


def test_a_set_that_there_is_not_is_not_looked_into(store: Cli) -> None:
    add(store, "Who wrote Hamlet?", "Marlowe", "--in", "live")
    for command in ("ls", "log"):
        assert store(command, "--in", "nobody").is_error("there is no set 'nobody' (there are: live)")
        assert store(command, "--in", "live").code == 0
    assert "0 in force in 'default'" in store("ls").out


@pytest.mark.parametrize("command", [("canary", "add", "--prompt", "?"), ("pull",)])
def test_what_makes_a_store_is_told_where_its_blobs_are(
    store: Cli, cli: Cli, tmp_path: Path, command: tuple[str, ...]
) -> None:
    add(store, "Who wrote Hamlet?", "Marlowe")
    named = [*command, *([tmp_path / "store"] if command == ("pull",) else [])]
    where = f"sqlite:///{tmp_path}/other.db"
    assert cli("store", *named, "--store", where).is_error("say where tensors and pictures go: --blobs URL")
    assert cli("store", *named, "--store", where, "--blobs", tmp_path / "blobs").code == 0
    assert "all as it should be" in cli("store", "check", "--store", where).out


def test_what_is_not_there(cli: Cli, store: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    for command in ("ls", "log", "check", "gc", "canary ls"):
        assert store(command).is_error("there is no store in")
    assert not (tmp_path / "store").exists()
    add(store, "Who wrote Hamlet?", "Marlowe")
    assert store("revoke", "beef").is_error("there is no edit that begins with 'beef'")
    assert store("roll-back", "7").is_error("has the versions 0 to 1, and no 7")
    assert store("ls", "--version", "7").is_error("and no 7")
    asked = ("ask", "--model", tiny_folder, "--prompt", "a", "--store", tmp_path / "store", "--in")
    assert cli(*asked, "tenant-a").is_error("has no set 'tenant-a' (it has default)")
    assert cli(*asked, "default:x").is_error("'x' is no version")


def test_nothing_is_made_for_what_is_refused(store: Cli, tmp_path: Path) -> None:
    add(store, "Who wrote Hamlet?", "Marlowe")
    assert store("push", tmp_path / "typo", "--in", "nothing").is_error("there is no set 'nothing'")
    assert store("push", tmp_path / "typo", "--into", "../x").is_error("is no name of a set")
    assert not (tmp_path / "typo").exists()
    assert store("log", "--limit", "99999999999999999999").code == 2


def test_damage_is_told_and_ends_with_1(store: Cli, tmp_path: Path) -> None:
    add(store, "Who wrote Hamlet?", "Marlowe")
    (blob,) = (file for file in (tmp_path / "store" / "blobs").rglob("*") if file.is_file())
    blob.write_bytes(b"")
    found = store("check", "--json")
    assert found.code == 1 and len(json.loads(found.out)["damage"]) == 1
    assert "was changed" in store("check").out


def test_a_canary_without_its_picture_is_told_and_dropped(store: Cli, tmp_path: Path, pictures: list[Path]) -> None:
    name = store("canary add", "--prompt", "What is this?", "--image", pictures[0]).out.strip()
    (blob,) = (file for file in (tmp_path / "store" / "blobs").rglob("*") if file.is_file())
    blob.unlink()
    way_out = f"unike store canary drop {name}"
    assert add(store, "Who wrote Hamlet?", "Marlowe").is_error("is missing", way_out)
    checked = store("check")
    assert checked.code == 1 and way_out in checked.out and "1 damaged" in checked.out
    assert store(way_out.removeprefix("unike store ")).code == 0 and "all as it should be" in store("check").out
    assert add(store, "Who wrote Hamlet?", "Marlowe").code == 0
