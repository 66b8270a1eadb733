"""What a method says of its tensors, and files that say otherwise behind a valid seal."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tinies import tiny_backbone
from torch import Tensor

from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.folders import replace_folder
from unike.core.schema import parse_json
from unike.data.queries import Query
from unike.editors.ft import FT
from unike.editors.t_patcher import TPatcher
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.files import CONFIG_FILE, SAVED

Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize("name", registry.editors.names())
def test_every_method_says_what_tensors_it_has(name: str) -> None:
    editor = registry.editors.get(name)
    layout = editor.edit_class.layout(editor.config_class.parse({}), ())
    assert layout is not None and all(declared.shape[0] == "B" for declared in layout.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("-1.bias"), "the tensor -1.bias is missing"),
        (lambda t: t.update(more=torch.ones(1)), "there is a tensor more"),
        (lambda t: t.update({"-1.bias": torch.tensor(1.0)}), r"the tensor -1.bias has the shape \[\], not \[B, 5\]"),
        (lambda t: t.update({"-1.bias": torch.ones(2, 5)}), r"the shape \[2, 5\], not \[B, 5\] with B = 1"),
        (lambda t: t.update({"-1.values": torch.ones(1, 5, 31)}), "with D = 32"),
        (lambda t: t.update({"-1.bias": torch.ones(1, 5).half()}), "-1.bias is float16, not float32"),
        (lambda t: t.update({"-1.bias": torch.full((1, 5), torch.nan)}), "-1.bias is not finite"),
    ],
)
def test_tensors_that_are_not_the_methods_own(tmp_path: Path, change: Change, message: str) -> None:
    edit = TPatcher(steps=0).edit(tiny_backbone("llava"), Query("2 + 2?", None, "five"))
    forge(edit, tmp_path / "edit", change)
    with pytest.raises(UnikeError, match=rf"edit_config.json is damaged: .*{message}.*make the edit anew"):
        Edit.from_pretrained(tmp_path / "edit")


def forge(edit: Edit, folder: Path, change: Change) -> None:
    """Save an edit with other tensors, sealed."""
    edit.save_pretrained(folder)
    described = {
        k: v for k, v in json.loads((folder / CONFIG_FILE).read_text()).items() if k not in ("format", "sha256")
    }
    tensors = dict(edit.tensors)
    change(tensors)
    replace_folder(folder, SAVED.files(described, save(tensors)), known_by=CONFIG_FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update(down_proj=torch.ones(1, 3, 3)),
            r"down_proj has the shape \[1, 3, 3\], and down_proj.out is",
        ),
        (lambda t: t.pop("up_proj"), "the tensor up_proj is missing"),
        (lambda t: t.update(other=torch.ones(1, 3, 3)), "has no matrix other"),
    ],
)
def test_tensors_that_do_not_fit_the_model(tmp_path: Path, change: Change, message: str) -> None:
    backbone = tiny_backbone("llava")
    forge(FT(steps=0).edit(backbone, Query("2 + 2?", None, "five")), tmp_path / "edit", change)
    edit = Edit.from_pretrained(tmp_path / "edit")
    with pytest.raises(UnikeError, match=f"the edit '2 \\+ 2\\?' does not fit 'tiny-llava': .*{message}"):
        EditedModel(backbone, [edit])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 2000 + "]" * 2000, "nested too deeply"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ("9" * 5000, "a number has 5000 digits"),
        ("NaN", "NaN is not JSON"),
        ("{", "Expecting"),
    ],
)
def test_json_that_nobody_means(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_a_picture_whose_name_is_not_utf8_does_not_lose_the_edit(tmp_path: Path) -> None:
    edit = FT(steps=0).edit(tiny_backbone("llava"), Query("2 + 2?", None, "five"))
    latin = Path("caf\udce9.png")
    edit = edit.like(edit.tensors, [Query("2 + 2?", latin, "five")])
    edit.save_pretrained(tmp_path / "edit")
    assert Edit.from_pretrained(tmp_path / "edit").facts[0].image == latin
