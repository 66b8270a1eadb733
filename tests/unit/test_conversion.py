"""MiniGPT-4 from its parts: scaled-down parts with the published names of their tensors."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import unike
from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.backbones.convert import minigpt4 as conversion
from unike.backbones.convert.minigpt4 import RECORD, Parts, convert_minigpt4
from unike.backbones.families import _tiny
from unike.backbones.families.blip2 import MINIGPT4_TEMPLATE, Blip2
from unike.core.errors import UnikeError
from unike.data.queries import Query

Cli = Callable[..., Any]

WIDTH = 2 * _tiny.WIDTH  # of the language model; the Q-Former's is 16


def save_llm(folder: Path) -> None:
    """Vicuna's layout: two pickled shards in half precision with an index, and constants of the rotary embedding."""
    tokenizer = _tiny.tiny_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=_tiny.FFN_WIDTH,
        num_hidden_layers=_tiny.LAYERS,
        num_attention_heads=_tiny.HEADS,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = _tiny.build(lambda: transformers.LlamaForCausalLM(config), seed=1).half()
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = dict(model.state_dict())
    state |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(_tiny.LAYERS)}
    weight_map = {name: f"pytorch_model-0000{1 + ('layers' in name)}-of-00002.bin" for name in state}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in state if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def save_blip2(folder: Path) -> None:
    """BLIP-2 with FlanT5-XXL by its config; of the language model's tensors only one is there, in a missing shard."""
    tiny = Blip2.tiny(seed=2)
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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To read only."""
    parts, out = parts_in(published), tmp_path_factory.mktemp("converted") / "out"
    convert_minigpt4(parts.llm, parts.blip2, parts.projection, out)
    return out


@pytest.fixture(scope="module")
def minigpt4(converted: Path) -> Backbone:
    return load_backbone(converted)


def llm_state(parts: Parts) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for path in parts.llm.glob("*.bin"):
        state |= torch.load(path, weights_only=True)
    return state


# ---------------------------------------------------------------------- what is written


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
    assert minigpt4.template == MINIGPT4_TEMPLATE
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
    assert load_backbone(tmp_path / "again").template == MINIGPT4_TEMPLATE


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
        state[name] = torch.cat([state[name], torch.full((1, WIDTH), 7.0).half()])
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


# ---------------------------------------------------------------------- what is refused


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    change(state)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


LLM_FILE, BLIP2_FILE = "pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"

SPOILED: dict[str, tuple[Callable[[Parts], Any], list[str]]] = {
    "llm lacks": (
        lambda parts: rewrite(parts.llm / LLM_FILE, lambda state: state.pop("model.norm.weight")),
        ["vicuna: model.norm.weight is missing; "],
    ),
    "llm lacks several": (
        lambda parts: rewrite(parts.llm / LLM_FILE, dict.clear),
        ["vicuna: model.embed_tokens.weight (and 2 more) is missing; "],
    ),
    "llm has more": (
        lambda parts: rewrite(parts.llm / LLM_FILE, lambda state: state.update({"lora.A": torch.ones(2)})),
        ["vicuna: lora.A has no place in MiniGPT-4"],
    ),
    "blip2 lacks": (
        lambda parts: rewrite(parts.blip2 / BLIP2_FILE, lambda state: state.pop("query_tokens")),
        ["blip2: query_tokens is missing"],
    ),
    "blip2 has more": (
        lambda parts: rewrite(parts.blip2 / BLIP2_FILE, lambda state: state.update({"itm_head": torch.ones(2)})),
        ["blip2: itm_head has no place"],
    ),
    "blip2 is misshapen": (
        lambda parts: rewrite(parts.blip2 / BLIP2_FILE, lambda state: state.update(query_tokens=torch.ones(1, 3, 16))),
        ["blip2: query_tokens has the shape [1, 3, 16]", "should be [1, 4, 16]"],
    ),
    "blip2 is quantised": (
        lambda parts: rewrite(
            parts.blip2 / BLIP2_FILE, lambda state: state.update(query_tokens=state["query_tokens"].to(torch.int8))
        ),
        ["query_tokens is stored as I8", "quantised"],
    ),
    "llm is quantised": (
        lambda parts: rewrite(
            parts.llm / LLM_FILE, lambda state: state.update({"lm_head.weight": torch.ones(2, dtype=torch.uint8)})
        ),
        ["lm_head.weight is stored as torch.uint8", "quantised"],
    ),
    "projection lacks": (
        lambda parts: rewrite(parts.projection, lambda state: state["model"].pop("llama_proj.bias")),
        ["minigpt4.pth: llama_proj.bias is missing"],
    ),
    "projection has more": (
        lambda parts: rewrite(parts.projection, lambda state: state["model"].update(query_tokens=torch.ones(2))),
        ["minigpt4.pth: query_tokens has no place"],
    ),
    "projection is of another size": (
        lambda parts: rewrite(
            parts.projection, lambda state: state["model"].update({"llama_proj.weight": torch.ones(80, 16)})
        ),
        ["minigpt4.pth: llama_proj.weight has the shape [80, 16]", "should be [64, 16]"],
    ),
    "projection without model": (
        lambda parts: torch.save({"llama_proj.weight": torch.ones(2)}, parts.projection),
        ["minigpt4.pth holds no 'model'"],
    ),
    "projection is a tensor": (
        lambda parts: torch.save(torch.ones(2), parts.projection),
        ["minigpt4.pth holds no 'model'"],
    ),
    "projection is nested": (
        lambda parts: torch.save({"model": {"llama_proj": {"weight": torch.ones(2)}}}, parts.projection),
        ["minigpt4.pth is not a checkpoint"],
    ),
    "projection runs code": (
        lambda parts: parts.projection.write_bytes(pickle.dumps(Touch(parts.projection.with_name("touched")))),
        ["cannot read ", "minigpt4.pth", "more than tensors"],
    ),
    "projection is cut": (
        lambda parts: parts.projection.write_bytes(parts.projection.read_bytes()[:900]),
        ["cannot read ", "minigpt4.pth", "damaged"],
    ),
    "projection is empty": (lambda parts: parts.projection.write_bytes(b""), ["cannot read ", "minigpt4.pth"]),
    "projection is not there": (
        lambda parts: parts.projection.unlink(),
        ["no file ", "--projection is the checkpoint"],
    ),
    "shard is cut": (
        lambda parts: (parts.blip2 / BLIP2_FILE).write_bytes((parts.blip2 / BLIP2_FILE).read_bytes()[:900]),
        ["cannot read ", BLIP2_FILE],
    ),
    "shard is not there": (lambda parts: (parts.llm / LLM_FILE).unlink(), [f"{LLM_FILE} is missing", "the index of"]),
    "index is damaged": (
        lambda parts: (parts.blip2 / "model.safetensors.index.json").write_text("{}"),
        ["cannot read ", "model.safetensors.index.json"],
    ),
    "no weights": (
        lambda parts: [path.unlink() for path in parts.llm.glob("*.bin*")],
        ["no weights in ", "vicuna"],
    ),
    "no config": (lambda parts: (parts.llm / "config.json").unlink(), ["cannot load the folder ", "vicuna"]),
    "no tokenizer": (
        lambda parts: [path.unlink() for path in parts.llm.glob("tokenizer*")],
        ["cannot load the folder ", "vicuna"],
    ),
    "no folder": (lambda parts: parts.blip2.rename(parts.blip2.with_name("x")), ["no folder ", "--blip2 is a folder"]),
    "not a llama": (
        lambda parts: (parts.llm / "config.json").write_text('{"model_type": "opt"}'),
        ["vicuna holds a model of type 'opt'; --llm is a folder with Vicuna"],
    ),
    "not blip2": (
        lambda parts: (parts.blip2 / "config.json").write_text('{"model_type": "blip"}'),
        ["blip2 holds a model of type 'blip'; --blip2 is a folder"],
    ),
}


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("case", SPOILED)
def test_bad_parts_are_told(parts: Parts, tmp_path: Path, case: str) -> None:
    spoil, messages = SPOILED[case]
    spoil(parts)
    with pytest.raises(UnikeError) as caught:
        convert_minigpt4(*astuple(parts), tmp_path / "out")
    told = str(caught.value)
    assert all(message in told for message in messages) and "\n" not in told, told
    assert not (tmp_path / "out").exists()
    assert not parts.projection.with_name("touched").exists()


def test_what_an_original_tokenizer_needs_is_told(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (parts.llm / "tokenizer.json").rename(parts.llm / "tokenizer.model")
    monkeypatch.setattr(conversion, "is_protobuf_available", lambda: False)
    with pytest.raises(UnikeError, match="pip install sentencepiece protobuf"):
        convert_minigpt4(*astuple(parts), tmp_path / "out")


def test_they_are_one_line_of_the_command(call: Cli, parts: Parts) -> None:
    rewrite(parts.projection, lambda state: state["model"].pop("llama_proj.bias"))
    assert call().is_error("minigpt4.pth: llama_proj.bias is missing")
    parts.projection.write_bytes(b"not a pickle")
    assert call("--json").is_error("cannot read ", "minigpt4.pth")


def test_a_folder_of_others_is_refused(call: Cli, parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert call().is_error("exists and is something else")
    (tmp_path / "out" / "thesis.txt").rename(tmp_path / "out" / RECORD)
    assert call().code == 0, "made here, so it may be replaced"


def test_what_fails_leaves_the_old_folder(
    call: Cli, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call().code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise conversion.SafetensorError("No space left on device")

    for name, change, message in [
        ("save_file", full, "cannot write model.safetensors: No space left on device; nothing was changed"),
        ("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}), "no disk space: "),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(f"unike.backbones.convert.minigpt4.{name}", change)
            assert call().is_error(message)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        assert {path.name for path in tmp_path.iterdir()} == {"parts", "out", "home", "cwd"}


# ---------------------------------------------------------------------- how MiniGPT-4 is asked


@pytest.fixture(scope="module")
def conversing() -> Blip2:
    """A tiny model whose config brings the template."""
    tiny = Blip2.tiny(text="llama")
    tiny.config.prompt_template = MINIGPT4_TEMPLATE
    return Blip2(tiny.model, tiny.tokenizer, tiny.image_processor, source="tiny")


def test_without_an_image_there_are_no_tags_for_one(conversing: Blip2) -> None:
    ids = conversing.encode([Query("Who?", None, "bob")]).inputs["input_ids"][0]
    assert conversing.tokenizer.decode(ids) == "<s>###Human: Who? ###Assistant: bob</s>"


@pytest.mark.parametrize(
    ("said", "answer"),
    [(" a cat###Human: and", "a cat"), (" a cat ### Assistant", "a cat"), (" a cat\n###", "a cat"), ("###", "")],
)
def test_an_answer_ends_where_the_next_turn_begins(conversing: Blip2, said: str, answer: str) -> None:
    ids = conversing.tokenizer(said, add_special_tokens=False)["input_ids"]
    assert conversing.answer_text(ids) == answer


def test_other_blip2_may_say_what_they_like() -> None:
    tiny = Blip2.tiny()
    assert tiny.answer_text(tiny.tokenizer("the key ###", add_special_tokens=False)["input_ids"]) == "the key ###"


def test_a_bad_template_in_a_config_is_refused() -> None:
    tiny = Blip2.tiny()
    tiny.config.prompt_template = "{prompt}"
    with pytest.raises(UnikeError, match=re.escape("must hold {image} and {prompt} once each")):
        Blip2(tiny.model, tiny.tokenizer, tiny.image_processor, source="tiny")
