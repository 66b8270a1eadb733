"""What people pass as a picture, a target or an option: it is taken, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tinies import tiny_backbone

import unike
from unike.backbones import loading
from unike.core.errors import UnikeError
from unike.core.images import load_image, picture
from unike.data.queries import Query


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def forms(folder: Path) -> dict[str, Any]:
    path = folder / "one picture.png"
    Image.fromarray(pixels()).save(path)
    tensor = torch.from_numpy(pixels())
    return {
        "a path": path,
        "text": str(path),
        "a file's address": path.as_uri(),
        "PIL": Image.open(path),
        "bytes": path.read_bytes(),
        "an array": pixels(),
        "floats": pixels() / 255,
        "a tensor": tensor,
        "channels first": tensor.permute(2, 0, 1),
        "one in a list": [path],
    }


def test_every_form_of_a_picture_is_the_picture(tmp_path: Path) -> None:
    for name, form in forms(tmp_path).items():
        found = picture(form)
        assert found is not None and np.array_equal(np.asarray(load_image(found)), pixels()), name


def test_a_model_is_asked_about_any_form(tmp_path: Path) -> None:
    backbone = tiny_backbone("llava")
    answers = {backbone.ask(form, "What is this?", max_new_tokens=4) for form in forms(tmp_path).values()}
    assert len(answers) == 1
    edit = unike.edit(backbone, image=Image.fromarray(pixels()), prompt="What?", target="a cat", editor="ft", steps=0)
    assert edit.facts[0].image == picture(pixels()), "kept by its content"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("https://example.org/cat.png", "is on the net, and nothing is fetched"),
        (["a.png", "b.png"], "2 pictures were given; a question is about one, or none"),
        (b"not a picture", "these 13 bytes are no picture"),
        (7, "a picture is a path, a PIL image, bytes or an array, and not int"),
        (np.full((4, 4), -1), r"neither 0\.\.255 nor 0\.\.1"),
        (np.zeros((2, 3, 4, 5)), "a picture is a path"),
        ({"image": 1}, "and not dict"),
    ],
)
def test_what_is_no_picture_is_one_line(wrong: Any, told: str) -> None:
    with pytest.raises(UnikeError, match=told) as caught:
        picture(wrong)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_one_line() -> None:
    with pytest.raises(UnikeError, match=r"the target of 'How many\?' is 5, which is not text; write '5'"):
        Query("How many?", None, 5)  # type: ignore[arg-type]
    with pytest.raises(UnikeError, match="the prompt is None"):
        Query(None)  # type: ignore[arg-type]
    with pytest.raises(UnikeError, match=r"is a bytes, not a path; give unike\.picture"):
        Query("What?", b"x")  # type: ignore[arg-type]
    assert Query("What?", "a.png").image == Path("a.png")  # type: ignore[arg-type]


def test_options_of_generation_are_taken_or_refused() -> None:
    backbone = tiny_backbone("llava")
    torch.manual_seed(0)
    drawn = {backbone.ask(None, "Who?", max_new_tokens=6, do_sample=True, temperature=9.0) for _ in range(5)}
    assert len(drawn) > 1
    with pytest.raises(UnikeError, match="unknown generation option 'temprature'; did you mean 'temperature'"):
        backbone.ask(None, "Who?", temprature=2.0)


def test_slow_bfloat16_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cpu = torch.device("cpu")
    for known, lines in ((True, 0), (False, 1)):
        monkeypatch.setattr(loading, "has_bfloat16", lambda known=known: known)
        caplog.clear()
        assert loading.resolve_dtype("bfloat16", cpu) is torch.bfloat16
        assert loading.resolve_dtype("float32", cpu) is torch.float32
        said = [record.getMessage() for record in caplog.records if record.name == "unike"]
        assert len(said) == lines and all("no instructions for bfloat16" in line for line in said)
