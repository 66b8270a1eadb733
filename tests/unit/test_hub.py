"""Edits on the hub: against a hub that is a folder, and against a server that refuses."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, errors
from tinies import tiny_backbone

import unike
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.ft import FT, FTConfig
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.editor import UniKEEdit
from unike.edits import hub
from unike.edits.card import plain
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel

Cli = Callable[..., Any]


class FolderHub:
    """What `hub` asks of ``HfApi``, done in a folder; a revision is a folder, too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[list[str]] = []
        self.made: dict[str, bool] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made[repo_id] = private
        (self.root / repo_id / "main").mkdir(parents=True, exist_ok=True)

    def list_repo_files(self, repo_id: str) -> list[str]:
        return [path.name for path in (self.root / repo_id / "main").iterdir()]

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]) -> Any:
        place = self.root / repo_id / "main"
        for path in list(place.iterdir()):
            if any(fnmatch(path.name, pattern) for pattern in delete_patterns):
                path.unlink()
        shutil.copytree(folder_path, place, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{commit_message}")

    def snapshot_download(self, *, repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        source = self.root / repo_id / (revision or "main")
        if not source.is_dir():
            response = SimpleNamespace(status_code=404, headers={}, request=None)
            kind = errors.RevisionNotFoundError if revision else errors.RepositoryNotFoundError
            raise kind("404 Client Error\nRepository Not Found", response=response)
        self.fetched.append(allow_patterns)
        target = self.root / "cache" / repo_id / (revision or "main")
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, target / path.name)
        return str(target)


@pytest.fixture
def folder_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    found = FolderHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "api", lambda: found)
    return found


@pytest.fixture
def edit(facts: list[Query]) -> Edit:
    return FT(FTConfig(steps=30, lr=1e-2)).edit(tiny_backbone("llava"), facts[0])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------- pushing and reading


def test_what_was_pushed_does_the_same(folder_hub: FolderHub, edit: Edit, facts: list[Query]) -> None:
    where = edit.push_to_hub("some/edit", private=True)
    assert where.startswith("https://hub/some/edit/commit/Edit: What is this?")
    assert folder_hub.made == {"some/edit": True}
    found, model = Edit.from_pretrained("some/edit"), tiny_backbone("llava")
    assert folder_hub.fetched == [["edit_config.json", "edit.safetensors"]], "exactly the edit's files are asked for"
    logits = [EditedModel(model, [each]).target_logits(facts[:1]) for each in (edit, found)]
    assert torch.equal(*logits)
    assert found.questions == edit.questions, "it still knows its picture"
    assert Edit.from_pretrained("hf://some/edit").facts == found.facts


def test_nothing_of_this_machine_goes_along(
    folder_hub: FolderHub, edit: Edit, pictures: list[Path], tmp_path: Path
) -> None:
    config = UniKEConfig.parse({"ablation": "only_intrinsic", "layers": [-1], "knowledge": str(tmp_path)})
    tensors = {"-1.keys": torch.ones(1, 2, 4), "-1.bias": torch.ones(1, 2), "-1.values": torch.ones(1, 2, 4)}
    other = UniKEEdit(config, tensors, edit.facts, fingerprint="f" * 16, source=str(tmp_path / "my-model"))
    other.push_to_hub("some/edit")
    place = folder_hub.root / "some" / "edit" / "main"
    assert files(place) == ["README.md", "edit.safetensors", "edit_config.json"], "no picture"
    for path in place.iterdir():
        for name in (tmp_path, pictures[0].parent):
            assert str(name).encode() not in path.read_bytes(), path.name
    described = json.loads((place / "edit_config.json").read_text())
    assert described["facts"][0]["image"] == "0.png" and described["backbone"]["source"] == "my-model"
    assert described["config"]["knowledge"] is None


def test_the_picture_goes_along_if_asked(folder_hub: FolderHub, edit: Edit, pictures: list[Path]) -> None:
    edit.push_to_hub("some/edit", with_pictures=True)
    place = folder_hub.root / "some" / "edit" / "main"
    assert (place / "picture-0.png").read_bytes() == pictures[0].read_bytes()
    assert "![the picture](./picture-0.png)" in (place / "README.md").read_text()
    edit.push_to_hub("some/edit")
    assert "picture-0.png" not in files(place), "it is taken back"


def test_another_picture_is_not_pushed(folder_hub: FolderHub, pictures: list[Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(pictures[0].read_bytes())
    edit = FT(FTConfig(steps=1)).edit(tiny_backbone("llava"), Query("What is this?", mine, "a cat"))
    mine.write_bytes(pictures[1].read_bytes())
    with pytest.raises(UnikeError, match="is not the picture that was edited"):
        edit.push_to_hub("some/edit", with_pictures=True)
    mine.unlink()
    with pytest.raises(UnikeError, match=r"cannot read .*mine\.png"):
        edit.push_to_hub("some/edit", with_pictures=True)
    assert not folder_hub.made, "nothing was made before that was known"


def test_the_card_says_what_it_is(folder_hub: FolderHub, edit: Edit) -> None:
    edit.push_to_hub("some/edit", model=tiny_backbone("llava"))
    card = (folder_hub.root / "some" / "edit" / "main" / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "unike"\n')
    described = json.loads((folder_hub.root / "some" / "edit" / "main" / "edit_config.json").read_text())
    for told in (
        "| What is this? | a cat |",
        edit.questions[0][1],
        "`ft`",
        "tiny-llava",
        edit.fingerprint,
        unike.__version__,
        torch.__version__,
        described["sha256"],
        "hf://some/edit",
        "| a cat | right |",
    ):
        assert told in card, told
    assert "base_model" not in card, "a model without a page has no link"


def test_a_card_without_checks_says_so(folder_hub: FolderHub, edit: Edit) -> None:
    edit.push_to_hub("some/edit")
    assert "was not asked anything" in (folder_hub.root / "some" / "edit" / "main" / "README.md").read_text()


@pytest.mark.parametrize(
    "text", ["a | b", "<script>x</script>", "[x](javascript:y)", "two\nlines", "`x` & y", "# head"]
)
def test_what_somebody_wrote_is_text_on_the_card(text: str) -> None:
    shown = plain(text)
    assert "\n" not in shown and "<" not in shown
    for mark in "|[]()#`":
        assert shown.count(mark) == shown.count("\\" + mark)


def test_a_repository_of_something_else_is_left_alone(folder_hub: FolderHub, edit: Edit) -> None:
    place = folder_hub.root / "some" / "model" / "main"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UnikeError, match=r"some/model is there and holds something else \(model.safetensors\)"):
        edit.push_to_hub("some/model")
    assert files(place) == ["model.safetensors"]


def test_a_damaged_edit_is_refused(folder_hub: FolderHub, edit: Edit) -> None:
    edit.push_to_hub("some/edit")
    path = folder_hub.root / "some" / "edit" / "main" / "edit_config.json"
    path.write_text(path.read_text().replace("a cat", "a dog"))
    with pytest.raises(UnikeError, match="is damaged"):
        Edit.from_pretrained("some/edit")


# ---------------------------------------------------------------------- names


def test_a_folder_of_that_name_wins(
    folder_hub: FolderHub, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit.push_to_hub("some/edit")
    edit.save_pretrained("some/edit")
    folder_hub.fetched.clear()
    assert Edit.from_pretrained("some/edit").facts[0].image == edit.facts[0].image
    assert not folder_hub.fetched, "the hub is not asked"
    assert Edit.from_pretrained("hf://some/edit").facts[0].image == Path("0.png")
    assert folder_hub.fetched


def test_a_path_is_never_looked_for_on_the_hub(folder_hub: FolderHub, edit: Edit) -> None:
    edit.push_to_hub("some/edit")
    with pytest.raises(UnikeError, match="no edit in some/edit"):
        Edit.from_pretrained(Path("some/edit"))


def test_revisions(folder_hub: FolderHub, edit: Edit, tmp_path: Path) -> None:
    edit.push_to_hub("some/edit")
    shutil.copytree(folder_hub.root / "some/edit/main", folder_hub.root / "some/edit/v1")
    assert Edit.from_pretrained("hf://some/edit@v1").facts == Edit.from_pretrained("some/edit", revision="v1").facts
    for name, revision, told in (
        ("hf://some/edit@v2", None, "no such revision"),
        ("hf://some/edit@v1", "v2", "names one revision, and 'v2' is another"),
        (str(tmp_path), "v1", "is a folder, which has no revisions"),
    ):
        with pytest.raises(UnikeError, match=told):
            Edit.from_pretrained(name, revision=revision)
    with pytest.raises(UnikeError, match="leave @v1 out"):
        edit.push_to_hub("some/edit@v1")


@pytest.mark.parametrize(
    "name", ["hf://", "hf://some", "hf://a/b/c", "hf://some/edit@", "hf://../x", "hf://a/.b", "hf://a/b c"]
)
def test_what_is_no_name(folder_hub: FolderHub, name: str) -> None:
    with pytest.raises(UnikeError, match="is no edit on the hub; write hf://organisation/name"):
        Edit.from_pretrained(name)


# ---------------------------------------------------------------------- what the hub refuses


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with the status and the error that the server was given."""

    def answer(self) -> None:
        status, code = self.server.told  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = answer

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, str], None]]:
    """The real client of the hub, before a server that refuses; says with what."""
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    client = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_none")
    monkeypatch.setattr(hub, "api", lambda: client)

    def tell(status: int, code: str) -> None:
        server.told = (status, code)  # type: ignore[attr-defined]

    yield tell
    server.shutdown()
    server.server_close()
    thread.join()


REFUSALS = [
    (404, "RepoNotFound", "the hub has no such repository"),
    (404, "RevisionNotFound", "the repository has no such revision"),
    (403, "GatedRepo", "the repository is gated"),
    (403, "", "the hub does not let you"),
    (418, "", "the hub answers with status 418"),
]


@pytest.mark.parametrize(("status", "code", "told"), REFUSALS)
def test_the_hub_refuses_to_give(refusing: Callable[[int, str], None], status: int, code: str, told: str) -> None:
    refusing(status, code)
    with pytest.raises(UnikeError, match=f"cannot get hf://some/edit: {told}") as caught:
        Edit.from_pretrained("hf://some/edit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "code", "told"), [REFUSALS[0], *REFUSALS[3:]])
def test_the_hub_refuses_to_take(
    refusing: Callable[[int, str], None], edit: Edit, status: int, code: str, told: str
) -> None:
    refusing(status, code)
    with pytest.raises(UnikeError, match=f"cannot push to some/edit: {told}") as caught:
        edit.push_to_hub("some/edit")
    assert "\n" not in str(caught.value)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, edit: Edit) -> None:
    monkeypatch.setattr(hub, "api", lambda: HfApi(endpoint="http://127.0.0.1:9", token="hf_none"))
    with pytest.raises(
        UnikeError, match=r"cannot get hf://some/edit: the hub cannot be reached .*; check the connection$"
    ):
        Edit.from_pretrained("hf://some/edit")
    with pytest.raises(UnikeError, match=r"; and there is no such folder$"):
        Edit.from_pretrained("some/edit")
    with pytest.raises(UnikeError, match="cannot push to some/edit: the hub cannot be reached"):
        edit.push_to_hub("some/edit")


def test_the_hub_is_not_to_be_asked(monkeypatch: pytest.MonkeyPatch, edit: Edit) -> None:
    def asked() -> None:
        raise errors.OfflineModeIsEnabled("Cannot reach https://hub: offline mode is enabled.")

    monkeypatch.setattr(hub, "api", asked)
    with pytest.raises(UnikeError, match="cannot get hf://some/edit: HF_HUB_OFFLINE is set"):
        Edit.from_pretrained("hf://some/edit")


# ---------------------------------------------------------------------- on the command line


def test_push_then_ask(cli: Cli, folder_hub: FolderHub, tiny_folder: Path, pictures: list[Path]) -> None:
    asked = ("--model", tiny_folder, "--image", pictures[0], "--prompt", "What is this?")
    made = cli("edit", *asked, "--target", "a cat", "--editor", "ft", "--set", "lr=0.01", "--set", "steps=30")
    assert made.code == 0, made.err
    pushed = cli("push", "edits/a-cat", "some/edit", "--model", tiny_folder, "--json")
    assert (pushed.code, pushed.err) == (0, "")
    told = json.loads(pushed.out)
    assert told["ask"] == "hf://some/edit" and [row["after"] for row in told["answers"]] == ["a cat"]
    answer = json.loads(cli("ask", *asked, "--edit", "hf://some/edit", "--json").out)
    assert answer["answer"] == "a cat" != answer["answer_without_edits"]
    assert answer["edits"] == ["hf://some/edit"]


def test_ask_for_another_model_names_the_edit(early: Cli, folder_hub: FolderHub, edit: Edit) -> None:
    edit.push_to_hub("some/edit")
    result = early("ask", "--prompt", "?", "--edit", "hf://some/edit")
    assert result.is_error("the edit in hf://some/edit was made for 'tiny-llava'"), result


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("push", "missing", "some/edit"), "no edit in missing"),
        (("push", "saved", "no-name"), "'no-name' is no edit on the hub"),
        (("push", "saved", "some/edit", "--device", "gpu"), "unknown device 'gpu'"),
        (("ask", "--prompt", "?", "--edit", "hf://some/missing"), "cannot get hf://some/missing: the hub has no such"),
        (("ask", "--prompt", "?", "--edit", "hf://no name"), "is no edit on the hub"),
        (("ask", "--prompt", "?", "--edit", "some/edit"), "no edit in some/edit"),
    ],
)
def test_mistakes(early: Cli, folder_hub: FolderHub, edit: Edit, args: tuple[str, ...], told: str) -> None:
    edit.save_pretrained("saved")
    result = early(*args)
    assert result.is_error(told), result
    assert not folder_hub.made
