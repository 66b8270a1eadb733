"""Every mistake a user can make ends in one line that says what is wrong, and in exit code 2."""

import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unike.backbones import load_backbone
from unike.core import images
from unike.core.folders import try_place

Cli = Callable[..., Any]

GOOD = ("--prompt", "2 + 2?", "--target", "five")


# ---------------------------------------------------------------------- known before the model is loaded


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
        ([*GOOD, "--set", "margin=NaN"], ["setting pairs.margin=nan", "finite"]),
        ([*GOOD, "--set", "key_init=cold"], ["setting pairs.key_init='cold'", "'raw'"]),
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


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    "command",
    [["edit", *GOOD], ["demo"], ["prepare"], ["train", "--editor", "mend"], ["bench", "--dataset", "pocket-vqa"]],
    ids=lambda each: each[0],
)
def test_a_place_that_takes_nothing_is_known_before_the_work(early: Cli, command: list[str]) -> None:
    for out in ("/proc/edit", "/proc/1/edit/deeper"):
        result = early(*command, "--out", out)
        assert result.is_error("cannot write /proc"), result


def test_a_trial_leaves_nothing(tmp_path: Path) -> None:
    for out in (tmp_path / "new", tmp_path / "new" / "deeper"):
        try_place(out)
    assert not list(tmp_path.iterdir())


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
    [["ask"], ["ask", "--prompt", "x", "--max-new-tokens", "0"], ["edit", *GOOD, "--imgae", "x"], ["models", "x"]],
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
        (["--prompt", "x", "--target", "cat</s>"], ["the target 'cat</s>' can never be answered", "says 'cat'"]),
        (
            ["--prompt", "x", "--target", "a cat\nor two"],
            ["'a cat\\nor two' has several lines", "write it in one line"],
        ),
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
    assert result.code == 0 and "knowledge" not in result.err


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
