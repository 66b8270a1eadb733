"""A command line to call, with a tiny model in a folder and a cache folder of its own; a benchmark in miniature."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import miniature
import pytest
from PIL import Image
from tinies import tiny_backbone

from unike import api
from unike.backbones.adapter import Backbone
from unike.cli import _shared, main
from unike.data.queries import EditCase, Query
from unike.editors.common.anchors import Anchors


@dataclass(frozen=True)
class Result:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str

    def is_error(self, *parts: str) -> bool:
        """Whether it is one line for the user, without a traceback, that says all of this."""
        line = self.err.removesuffix("\n")
        told = line.startswith("error: ") and "\n" not in line and all(part in line for part in parts)
        return self.code == 2 and not self.out and told


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, for ``--model``."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_backbone("llava").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def known(home: Path) -> Path:
    """The knowledge of the model in `tiny_folder`."""
    return home / "knowledge" / tiny_backbone("llava").fingerprint()


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, known: Path
) -> Callable[..., Result]:
    """``cli("ask", "--prompt", "x")``: `main` in this process, in an empty folder, with two anchors instead of 96."""
    shutil.copytree(known, tmp_path / "home" / "knowledge" / known.name)
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(_shared.OUT, "width", 160)
    monkeypatch.setattr(api, "default_anchors", lambda: Anchors([Query("What is the capital of Peru?"), Query("Why?")]))

    def call(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["unike", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    return call


@pytest.fixture
def early(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command line, which may not get as far as loading a model."""

    def loaded(*args: object) -> None:
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr(_shared, "load", loaded)
    return cli


# ---------------------------------------------------------------------- a benchmark in miniature


@pytest.fixture
def mmedit(tmp_path: Path) -> Path:
    """MMEdit as it is published, in miniature: six records of each task, one without a target."""
    folder = tmp_path / "mmedit"
    names = [f"val2014/COCO_val2014_{n:012d}.jpg" for n in range(3)] + ["val2014_image_rephrase/1.png"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), (60 * number, 99, 200)).save(folder / name)
    for task, file in (("vqa", "vqa_eval.json"), ("caption", "caption_eval_edit.json")):
        records = [
            {
                "src": f"{task} {n}?",
                "pred": "no",
                "rephrase": f"So, {task} {n}?",
                "alt": ("yes", "no", "red", 2, "blue", "")[n],
                "image": names[n % 3],
                "image_rephrase": names[3],
                "loc": f"nq question: who is {n}",
                "loc_ans": "bob",
                "m_loc": names[(n + 1) % 3],
                "m_loc_q": "What grows here?",
                "m_loc_a": "roots",
            }
            for n in range(6)
        ]
        (folder / file).write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="session")
def cases(pictures: list[Path]) -> list[EditCase]:
    """Four cases."""
    return [miniature.case(number, pictures) for number in range(4)]


@pytest.fixture(scope="session")
def taught(cases: list[EditCase]) -> Backbone:
    """A tiny model that has learnt to answer the cases' questions, most of them wrongly."""
    return miniature.teach(cases)
