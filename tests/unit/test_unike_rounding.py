"""Edits of `unike` are as fine as bfloat16, so that a file keeps them in half the bytes, without loss."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tinies import tiny_backbone

from unike.data.queries import Query
from unike.editors.unike.editor import UniKE
from unike.edits.edit import Edit
from unike.edits.files import TENSOR_FILE


def test_a_file_holds_all_but_the_bias_in_bfloat16_and_gives_it_back(tmp_path: Path, facts: list[Query]) -> None:
    backbone = tiny_backbone("llava")
    edit = UniKE(layers=(-1,), steps=2, memory={"k": 4}, pairs={"n": 3}).edit(backbone, facts[0])
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
    assert found["-1.own_key"].shape == (1, 1, backbone.width) and found["-1.own_values"].shape[1] == 3
