"""What `convert_minigpt4` writes: every tensor in its place, in a folder that is a backbone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

import unike
from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.backbones.convert import minigpt4 as conversion
from unike.backbones.convert.minigpt4 import RECORD, TEMPLATE, Parts, convert_minigpt4
from unike.backbones.families.blip2 import Blip2
from unike.data.queries import Query

Cli = Callable[..., Any]


def llm_state(parts: Parts) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for path in parts.llm.glob("*.bin"):
        state |= torch.load(path, weights_only=True)
    return state


def test_every_tensor_is_where_it_belongs(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "SHARD_BYTES", 30_000)
    told: list[tuple[str, int, int]] = []
    made = convert_minigpt4(
        parts.llm, parts.blip2, parts.projection, tmp_path / "out", progress=lambda *news: told.append(news)
    )
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert made.shards == len(files) > 3
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert made.tensors == len(written) and made.notes == ()
    assert made.size == sum(tensor.nbytes for tensor in written.values())
    assert told[-1] == ("copying tensors", len(written), len(written))

    projection = torch.load(parts.projection, weights_only=True)["model"]
    expected = {f"language_projection.{name.split('.')[1]}": tensor for name, tensor in projection.items()}
    expected |= load_file(parts.blip2 / "model-00001-of-00002.safetensors")
    llm = llm_state(parts)
    expected |= {f"language_model.{name}": tensor for name, tensor in llm.items() if "inv_freq" not in name}
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype, "each part keeps its precision"
        assert torch.equal(written[name][: len(tensor)], tensor), name
    grown = {name for name, tensor in expected.items() if written[name].shape != tensor.shape}
    assert grown == set(conversion.VOCABULARY)
    for name in grown:
        assert len(written[name]) == len(expected[name]) + 1
        assert torch.equal(written[name][-1], expected[name].float().mean(0).half())


def test_the_folder_is_a_backbone(minigpt4: Backbone, published: Path, pictures: list[Path]) -> None:
    assert type(minigpt4) is Blip2
    assert minigpt4.template == TEMPLATE
    projection = torch.load(published / "minigpt4.pth", weights_only=True)["model"]
    assert torch.equal(minigpt4.model.language_projection.weight, projection["llama_proj.weight"])
    assert torch.equal(minigpt4.model.language_projection.bias, projection["llama_proj.bias"])

    fact = Query("What is this?", pictures[0], "a cat")
    batch = minigpt4.encode([fact, Query("Who is on the bench?", pictures[1], "bob")])
    row = minigpt4.tokenizer.decode(batch.inputs["input_ids"][0])
    assert row.startswith("<s>###Human: <Img><image><image><image><image></Img> What is this? ###Assistant: a cat</s>")
    whole = minigpt4.forward(batch)
    for layer in (0, 2):
        assert torch.equal(minigpt4.run_from_split(minigpt4.run_to_split(batch, layer)), whole)
    one, other = (minigpt4.encode([Query(fact.prompt, picture, fact.target)]) for picture in (pictures[0], pictures[2]))
    assert not torch.equal(minigpt4.forward(one), minigpt4.forward(other)), "the picture counts"

    edit = unike.edit(minigpt4, image=pictures[0], prompt=fact.prompt, target="a cat", editor="ft", lr=0.02, steps=40)
    with edit.attached(minigpt4):
        assert minigpt4.ask(pictures[0], fact.prompt) == "a cat"


def test_plain_transformers_read_it(converted: Path) -> None:
    model, report = transformers.Blip2ForConditionalGeneration.from_pretrained(
        converted, output_loading_info=True, dtype="auto"
    )
    assert not any(report.values()), "nothing is missing, left over or misshapen"
    assert model.vision_model.dtype == model.language_model.dtype == torch.float16, "the language model's"
    assert model.config.image_token_index == model.config.text_config.vocab_size - 1
    processor = transformers.AutoProcessor.from_pretrained(converted, backend="pil")
    assert processor.num_query_tokens == 4
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_index


def test_saving_the_backbone_keeps_its_template(minigpt4: Backbone, tmp_path: Path) -> None:
    minigpt4.save_pretrained(tmp_path / "again")
    assert load_backbone(tmp_path / "again").template == TEMPLATE


def test_the_image_token_is_never_the_answer(minigpt4: Backbone, pictures: list[Path]) -> None:
    logits = minigpt4.forward(minigpt4.encode([Query("What?", pictures[0])]))
    others = torch.cat([logits[..., : minigpt4.image_token_id], logits[..., minigpt4.image_token_id + 1 :]], dim=-1)
    torch.testing.assert_close(logits[..., minigpt4.image_token_id], others.mean(-1), atol=2e-3, rtol=0)


def test_nothing_tells_where_the_parts_were(converted: Path, published: Path) -> None:
    for path in converted.glob("*.json"):
        assert str(published) not in path.read_text(), path
    record = json.loads((converted / RECORD).read_text())
    assert (record["llm"], record["blip2"], len(record["projection_sha256"])) == ("vicuna", "blip2", 64)


def test_the_command_tells_what_it_made(call: Cli, tmp_path: Path) -> None:
    result = call("--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    assert (told["model"], told["folder"], told["notes"]) == ("minigpt4", str(tmp_path / "out"), [])
    assert told["tensors"] > 90 and told["size"] > 100_000 and told["shards"] == 1


def test_a_vocabulary_with_room_is_not_grown(parts: Parts, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(parts.llm)
    tokenizer.add_tokens("<image>", special_tokens=True)  # whose row is then one of the published ones
    tokenizer.save_pretrained(parts.llm)
    config = json.loads((parts.llm / "config.json").read_text())
    config["vocab_size"] = len(tokenizer)
    (parts.llm / "config.json").write_text(json.dumps(config))
    state = llm_state(parts)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.full((1, state[name].shape[1]), 7.0).half()])
    for file in parts.llm.glob("*.bin*"):
        file.unlink()
    torch.save(state, parts.llm / "pytorch_model.bin")  # in one file
    convert_minigpt4(parts.llm, parts.blip2, parts.projection, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        for name in conversion.VOCABULARY:
            assert torch.equal(file.get_tensor(name), state[name.removeprefix("language_model.")])


def test_another_q_former_is_told(call: Cli, parts: Parts, tmp_path: Path) -> None:
    config = json.loads((parts.blip2 / "config.json").read_text())
    config["text_config"] = {"model_type": "opt"}
    (parts.blip2 / "config.json").write_text(json.dumps(config))
    result = call()
    assert result.code == 0
    assert result.err.startswith("note: MiniGPT-4's projection was trained on the Q-Former of Salesforce/blip2-flan-t5")
    assert f"use it as: --model {tmp_path / 'out'}" in result.out
