"""Edits of `unike` are as fine as bfloat16, so that a file keeps them in half the bytes, without loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unike.backbones.adapter import Backbone
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.files import TENSOR_FILE


@pytest.fixture
def unrounded() -> None:
    """In place of what leaves edits of the other tests here unrounded."""


def test_a_file_holds_all_but_the_bias_in_bfloat16_and_gives_it_back(
    llava: Backbone, editor: Any, facts: list[Query], tmp_path: Path
) -> None:
    edit = editor(llava)(layers=(-1,), steps=2, pairs={"n": 3}, memory={"entry": "every"}).edit(llava, facts[0])
    edit.save_pretrained(tmp_path / "edit")
    kept = load_file(tmp_path / "edit" / TENSOR_FILE)
    wide = {name for name, tensor in kept.items() if tensor.dtype == torch.float32}
    assert {name for name in wide if not torch.equal(kept[name].bfloat16().float(), kept[name])} == {"-1.bias"}
    assert wide == {"-1.bias"} and kept["knowledge"].dtype == torch.uint8
    found = Edit.from_pretrained(tmp_path / "edit").tensors
    assert found.keys() == edit.tensors.keys()
    assert all(
        torch.equal(tensor, edit.tensors[name]) and tensor.dtype == edit.tensors[name].dtype
        for name, tensor in found.items()
    )
    assert found["-1.own_key"].shape == (1, 1, llava.width) and found["-1.own_values"].shape[1] == 3
