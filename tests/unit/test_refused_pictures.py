"""Pictures that can be read, but not by the image processor of every family."""

from pathlib import Path

import pytest
from PIL import Image
from tinies import tiny_backbone

from unike.bench.runner import evaluate
from unike.bench.selection import Task
from unike.bench.spec import RunSpec
from unike.core import images
from unike.core.errors import UnikeError
from unike.data.queries import EditCase, Probe, Query
from unike.editors.ft import FT

SIZES = [(900, 3), (2000, 4), (3, 900)]


@pytest.fixture(autouse=True)
def longer_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2-VL's processor refuses sides of more than 200:1, which are too long for every other, too."""
    monkeypatch.setattr(images, "MAX_RATIO", 1000)


def picture(folder: Path, width: int, height: int) -> Path:
    path = folder / f"{width}x{height}.png"
    Image.new("RGB", (width, height), "red").save(path)
    return path


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_picture_that_the_processor_refuses_is_named(tmp_path: Path, width: int, height: int) -> None:
    backbone, path, good = tiny_backbone("qwen2_vl"), picture(tmp_path, width, height), picture(tmp_path, 30, 20)
    told = rf"cannot read: .*{path.name} has {width} x {height} pixels \(.*aspect ratio.*\); crop or scale it$"
    with pytest.raises(UnikeError, match=told):
        backbone.encode([Query("What is it?", good), Query("What is it?", path)])
    with pytest.raises(UnikeError, match=told):
        backbone.check_image(path)
    backbone.check_image(good)


@pytest.mark.parametrize("bad", ["edit", "probe"])
def test_cases_with_such_a_picture_are_left_out_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    thin, good = picture(tmp_path, 900, 3), picture(tmp_path, 30, 20)
    probe = Probe("m_locality", Query("And this?", thin if bad == "probe" else good, "red"))
    cases = [
        EditCase("thin", Query("What is it?", thin if bad == "edit" else good, "five"), (probe,)),
        EditCase("good", Query("What is it?", good, "five"), ()),
    ]
    backbone, task = tiny_backbone("qwen2_vl"), Task("mine", "eval", cases, image_root=tmp_path)
    with pytest.raises(UnikeError, match=r"case thin: image of a size .*--on-error skip"):
        evaluate(backbone, FT(steps=1), task, tmp_path / "run", RunSpec(max_new_tokens=3))
    run = evaluate(backbone, FT(steps=1), task, tmp_path / "run", RunSpec(max_new_tokens=3, skip_bad=True))
    assert [case.case_id for case in run.cases] == ["good"] and run.header.counts.skipped == 1
