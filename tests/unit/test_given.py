"""What a program gives in the place of models, edits, questions, options and pictures: taken or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tinies import tiny_backbone

import unike
from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.images import load_image, picture
from unike.core.schema import parse_json
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.editors.ft import FT
from unike.edits.conflicts import in_force, question_of
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel, RowsEdited
from unike.edits.stack import attached

FACT = Query("2 + 2?", None, "five")


@pytest.fixture(scope="module")
def model() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture(scope="module")
def edit(model: Backbone) -> Edit:
    return FT(steps=2).edit(model, FACT)


def attach(model: Any, edits: Any) -> None:
    with attached(model, edits):
        pass


NO_MODEL, NO_EDIT, NO_QUERY = "a model is what unike", "edit(s are a list| is what)", "is a unike.Query, not"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda model, edit: EditedModel("mini", [edit]), NO_MODEL),
        (lambda model, edit: EditedModel(None), NO_MODEL),
        (lambda model, edit: EditedModel(model.model, [edit]), NO_MODEL),
        (lambda model, edit: RowsEdited("mini", [[edit]]), NO_MODEL),
        (lambda model, edit: attach("mini", [edit]), NO_MODEL),
        (lambda model, edit: edit.attached(None).__enter__(), NO_MODEL),
        (lambda model, edit: unike.edit("mini", prompt="?", target="x"), NO_MODEL),
        (lambda model, edit: FT().edit(None, FACT), NO_MODEL),
        (lambda model, edit: EditedModel(model, "edits/kenya"), NO_EDIT),
        (lambda model, edit: EditedModel(model, None), NO_EDIT),
        (lambda model, edit: EditedModel(model, [None]), NO_EDIT),
        (lambda model, edit: EditedModel(model, ["edits/kenya"]), NO_EDIT),
        (lambda model, edit: EditedModel(model, {"a": edit}), NO_EDIT),
        (lambda model, edit: attach(model, 5), NO_EDIT),
        (lambda model, edit: RowsEdited(model, [["edits/kenya"]]), NO_EDIT),
        (lambda model, edit: RowsEdited(model, [None]), NO_EDIT),
        (lambda model, edit: model.generate("2 + 2?"), NO_QUERY),
        (lambda model, edit: model.generate(["2 + 2?"]), NO_QUERY),
        (lambda model, edit: model.generate(None), NO_QUERY),
        (lambda model, edit: model.encode([("2 + 2?", None)]), NO_QUERY),
        (lambda model, edit: EditedModel(model).target_logits([None]), NO_QUERY),
        (lambda model, edit: RowsEdited(model, [[edit]]).generate(5), NO_QUERY),
        (lambda model, edit: FT().edit(model, "2 + 2?"), "a fact is a unike.Query"),
        (lambda model, edit: Anchors(["Why?"]), NO_QUERY),
        (lambda model, edit: unike.make_editor("ft", anchors=[FACT]), r"anchors are Anchors\("),
        (lambda model, edit: FT("fast"), "the settings of 'ft' are a FTConfig, not str 'fast'"),
        (lambda model, edit: unike.make_editor(None), "unknown editor None"),
        (lambda model, edit: Edit.from_pretrained(None), "a folder is a path, not NoneType"),
        (lambda model, edit: edit.save_pretrained(7), "a folder is a path, not int"),
        (lambda model, edit: unike.load_backbone("./nowhere", device=None, dtype=None), "nowhere"),
    ],
)
def test_another_object_is_one_line(model: Backbone, edit: Edit, call: Callable[..., Any], told: str) -> None:
    with pytest.raises(UnikeError, match=told) as caught:
        call(model, edit)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_generators_and_single_ones_are_taken(model: Backbone, edit: Edit) -> None:
    expected = EditedModel(model, [edit]).generate([FACT], max_new_tokens=3)
    for edits in ((each for each in [edit]), (edit,), edit):
        asked = EditedModel(model, edits)
        assert asked.generate((each for each in [FACT]), max_new_tokens=3) == expected  # type: ignore[arg-type]
    assert (
        RowsEdited(model, ((each for each in [edit]) for _ in range(2))).generate(  # type: ignore[arg-type]
            (FACT for _ in range(2)),  # type: ignore[arg-type]
            max_new_tokens=3,
        )
        == expected * 2
    )
    with attached(model, (each for each in [edit])):  # type: ignore[arg-type]
        assert model.generate(FACT, max_new_tokens=3) == expected  # type: ignore[arg-type]
    made = FT(steps=2).edit(model, (each for each in [FACT]))  # type: ignore[arg-type]
    assert all(torch.equal(tensor, edit.tensors[name]) for name, tensor in made.tensors.items())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 0}, "num_beams is int 0; it is a whole number from 1 on"),
        ({"num_beams": 1.5}, "num_beams is float 1.5"),
        ({"num_beams": None}, "num_beams is NoneType None"),
        ({"max_new_tokens": 0}, "max_new_tokens is int 0; it is a whole number from 1 on"),
        ({"max_new_tokens": "4"}, "max_new_tokens is str '4'"),
        ({"max_new_tokens": True}, "max_new_tokens is bool True"),
        ({"temperature": 0, "do_sample": True}, "temperature is int 0; it is a number above 0"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature is float nan"),
        ({"top_p": 7, "do_sample": True}, "top_p is int 7; it is a number above 0, at most 1"),
        ({"top_k": -3, "do_sample": True}, "top_k is int -3"),
        ({"repetition_penalty": "x"}, "repetition_penalty is str 'x'"),
        ({"min_p": 5, "do_sample": True}, "no answer can be generated with min_p=5"),
        ({"length_penalty": "long", "num_beams": 2}, "no answer can be generated with length_penalty='long'"),
    ],
)
def test_values_of_options_are_one_line(model: Backbone, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UnikeError) as caught:
        model.ask(None, "Who?", **{"max_new_tokens": 3, **options})
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_numbers_of_any_kind_are_taken(model: Backbone) -> None:
    expected = model.ask(None, "Who?", max_new_tokens=3, num_beams=2)
    assert model.ask(None, "Who?", max_new_tokens=np.int64(3), num_beams=np.int32(2), temperature=None) == expected
    assert model.ask(None, "Who?", max_new_tokens=3, do_sample=True, temperature=np.float32(0.5), top_k=5) is not None


def test_half_a_character_is_one_line(model: Backbone) -> None:
    half = "Who is \ud83d?"
    for call in (
        lambda: model.ask(None, half),
        lambda: model.encode([Query("Who?", None, half)]),
        lambda: model.check(Query(half)),
        lambda: unike.edit(model, prompt=half, target="x", editor="ft"),
        lambda: unike.edit(model, prompt="Who?", target=half, editor="ft"),
    ):
        with pytest.raises(UnikeError, match=r"is not valid Unicode: U\+D83D is half a character"):
            call()


# ---------------------------------------------------------------------- pictures


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where things are kept."""
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_none_are_no_picture(place: Path, value: float) -> None:
    pixels = np.full((4, 4, 3), 0.5)
    pixels[1, 1, 1] = value
    for given in (pixels, torch.from_numpy(pixels), pixels[..., 1]):
        with pytest.raises(UnikeError, match="some values are not finite"):
            picture(given)


def test_pictures_in_memory_of_any_mode(place: Path) -> None:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for mode in ("CMYK", "YCbCr", "HSV", "L", "1", "P", "RGBA", "LA", "RGBX", "I", "F", "RGBa"):
        source = rgb.convert("RGBA") if mode == "RGBa" else rgb
        image = source.convert(mode)
        kept = picture(image)
        assert kept is not None
        looks = image.convert("RGBA").convert("RGB") if mode in ("RGBa", "LA") else image.convert("RGB")
        apart = np.abs(np.asarray(load_image(kept), dtype=int) - np.asarray(looks, dtype=int)).max()
        assert apart <= (mode == "F"), mode  # rounded, where Pillow cuts off


# ---------------------------------------------------------------------- what an edit is about


def test_a_saved_edit_knows_its_picture(
    model: Backbone, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever became of the file, and wherever the process that reads the edit runs."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(pictures[0], "flag.png")
    older, newer = (FT(steps=1).edit(model, Query("Whose?", Path("flag.png"), t)) for t in ("a cat", "a dog"))
    elsewhere = FT(steps=1).edit(model, Query("Whose?", pictures[0], "a cow"))
    assert in_force([older, elsewhere]) == [elsewhere], "the same picture under another name"
    for name, made in {"older": older, "newer": newer}.items():
        made.save_pretrained(tmp_path / name)
    (fact,) = parse_json((tmp_path / "older" / "edit_config.json").read_text())["facts"]
    assert len(fact["picture"]) == 64

    shutil.copy(pictures[1], "flag.png")  # another picture
    monkeypatch.chdir(tmp_path)  # where there is none of that name
    read = [Edit.from_pretrained(tmp_path / name) for name in ("older", "newer")]
    assert [each.questions for each in read] == [older.questions] * 2
    assert in_force(read) == read[1:]
    assert in_force([*read, elsewhere]) == [elsewhere]
    assert read[0][0].questions == read[0].to("cpu").questions == older.questions
    read[0].save_pretrained(tmp_path / "again")
    assert Edit.from_pretrained(tmp_path / "again").questions == older.questions


def test_a_picture_that_is_gone_is_known_by_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of edits that were saved before pictures were kept: relative or absolute, it is one place."""
    monkeypatch.chdir(tmp_path)
    relative, absolute = Query("Whose?", Path("gone.png")), Query("Whose?", tmp_path / "gone.png")
    assert question_of(relative) == question_of(absolute) != question_of(Query("Whose?", tmp_path / "other.png"))
