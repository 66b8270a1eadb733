"""MiniGPT-4 from its parts: scaled-down parts with the published names of their tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tinies import tiny_backbone
from tinies.parts import FFN_WIDTH, HEADS, LAYERS, build, tiny_tokenizer
from tinies.parts import WIDTH as NARROW

from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.backbones.convert.minigpt4 import Parts, convert_minigpt4

Cli = Callable[..., Any]

WIDTH = 2 * NARROW
"""Of the language model; the Q-Former's is 16."""


def save_llm(folder: Path) -> None:
    """Vicuna's layout: two pickled shards in half precision with an index, and constants of the rotary embedding."""
    tokenizer = tiny_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=FFN_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = build(lambda: transformers.LlamaForCausalLM(config), seed=1).half()
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = dict(model.state_dict())
    state |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(LAYERS)}
    weight_map = {name: f"pytorch_model-0000{1 + ('layers' in name)}-of-00002.bin" for name in state}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in state if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def save_blip2(folder: Path) -> None:
    """BLIP-2 with FlanT5-XXL by its config; of the language model's tensors only one is there, in a missing shard."""
    tiny = tiny_backbone("blip2-opt", seed=2)
    tiny.image_processor.save_pretrained(folder)
    config = tiny.config.to_dict() | {"text_config": {"model_type": "t5", "d_model": 4096}}
    transformers.Blip2Config(**config).save_pretrained(folder)
    kept = ("vision_model.", "qformer.", "query_tokens")
    state = {name: tensor for name, tensor in tiny.model.state_dict().items() if name.startswith(kept)}
    save_file(state, folder / "model-00001-of-00002.safetensors")
    weight_map = dict.fromkeys(state, "model-00001-of-00002.safetensors")
    weight_map |= {"language_model.shared.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def save_projection(path: Path) -> None:
    """As MiniGPT-4's training code leaves it behind."""
    generator = torch.Generator().manual_seed(3)
    model = {
        "llama_proj.weight": torch.randn(WIDTH, 16, generator=generator) / 4,
        "llama_proj.bias": torch.randn(WIDTH, generator=generator),
    }
    training = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "config": {"run": {"seed": 42}}, "epoch": 3}
    torch.save({"model": model, **training}, path)


def parts_in(folder: Path) -> Parts:
    return Parts(folder / "vicuna", folder / "blip2", folder / "minigpt4.pth")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    parts = parts_in(folder)
    parts.llm.mkdir()
    parts.blip2.mkdir()
    save_llm(parts.llm)
    save_blip2(parts.blip2)
    save_projection(parts.projection)
    return folder


@pytest.fixture
def parts(published: Path, tmp_path: Path) -> Parts:
    """One's own, to spoil."""
    return parts_in(shutil.copytree(published, tmp_path / "parts"))


@pytest.fixture
def call(cli: Cli, parts: Parts, tmp_path: Path) -> Cli:
    def run(*args: object) -> Any:
        given = ("--llm", parts.llm, "--blip2", parts.blip2, "--projection", parts.projection)
        return cli("models", "convert", "minigpt4", *given, "--out", tmp_path / "out", *args)

    return run


@pytest.fixture(scope="session")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To read only."""
    parts, out = parts_in(published), tmp_path_factory.mktemp("converted") / "out"
    convert_minigpt4(parts.llm, parts.blip2, parts.projection, out)
    return out


@pytest.fixture(scope="session")
def minigpt4(converted: Path) -> Backbone:
    return load_backbone(converted)
