"""What every backbone promises, on a tiny random model of every family that is found."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from patches import Patch, generation_configs, hooks_on
from tinies import tiny_backbone
from torch import Tensor, nn

from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import Hooks, trace
from unike.backbones.identity import fingerprint_0_1
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query

# ---------------------------------------------------------------------- nothing is left behind


def test_the_model_is_unchanged_and_bare_afterwards(backbone: Backbone, queries: list[Query]) -> None:
    weights = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    layers = list(backbone.layers)
    batch = backbone.encode(queries)
    backbone.forward(batch)
    before = hooks_on(backbone)
    with trace(list(backbone.layers)):
        backbone.run_from_split(backbone.run_to_split(batch, 2))
    backbone.generate(queries, max_new_tokens=2)
    assert hooks_on(backbone) == before
    after = backbone.model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert all(a is b for a, b in zip(backbone.layers, layers, strict=True))
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_everything_is_put_back_when_a_hook_fails(backbone: Backbone, queries: list[Query]) -> None:
    def fail(module, args, kwargs):
        raise ZeroDivisionError

    batch, layers = backbone.encode(queries), list(backbone.layers)
    state, configs = backbone.run_to_split(batch, 2), generation_configs(backbone)
    before = hooks_on(backbone)
    for run in (
        lambda: backbone.run_from_split(state),
        lambda: backbone.run_to_split(batch, -1),
        lambda: backbone.generate(queries),
    ):
        with pytest.raises(ZeroDivisionError), Hooks() as hooks:
            hooks.add_pre(backbone.layers[2], fail)
            run()
    assert hooks_on(backbone) == before
    assert all(a is b for a, b in zip(backbone.layers, layers, strict=True))
    assert all(a is b for a, b in zip(generation_configs(backbone), configs, strict=True))


# ---------------------------------------------------------------------- sites


def test_sites_have_the_promised_shapes(backbone: Backbone) -> None:
    width = backbone.width
    for i in range(backbone.n_layers):
        site, ffn = backbone.attention(i), backbone.ffn(i)
        assert tuple(site.q_proj.weight.shape) == (site.n_heads * site.head_dim, width)
        assert site.k_proj.weight.shape == site.v_proj.weight.shape == (site.n_kv_heads * site.head_dim, width)
        assert tuple(site.o_proj.weight.shape) == (width, site.n_heads * site.head_dim)
        assert site.scale == pytest.approx(site.head_dim**-0.5)
        assert ffn.gated == (len(ffn.matrices) == 3)
        assert list(ffn.matrices.values())[-1].weight.shape[0] == width
        assert backbone.input_norm(i).weight.shape == (width,)
    assert backbone.attention(-1).module is backbone.attention(backbone.n_layers - 1).module
    for wrong in (backbone.n_layers, -backbone.n_layers - 1):
        with pytest.raises(UnikeError, match=f"layer {wrong} is out of range"):
            backbone.layer_index(wrong)


def test_sites_are_where_they_are_said_to_be(backbone: Backbone, queries: list[Query]) -> None:
    site, ffn = backbone.attention(1), backbone.ffn(1)
    modules = [backbone.layers[1], backbone.input_norm(1), site.module, site.q_proj, ffn.inputs, ffn.outputs]
    with trace(modules) as (layer, norm, attention, q_proj, inputs, outputs):
        backbone.forward(backbone.encode(queries))
    assert torch.equal(norm.input, layer.input)
    assert torch.equal(attention.input, norm.output)
    assert torch.equal(q_proj.input, norm.output)
    after_attention, after_ffn = closing_norms(backbone.layers[1])
    residual = layer.input + after_attention(attention.output[0])
    assert inputs.input.numel() == residual.numel()
    assert torch.allclose(layer.output, residual + after_ffn(outputs.output).view_as(residual), atol=1e-5)


def closing_norms(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Gemma norms what attention and feed-forward network put out, before it joins the residual stream."""
    if hasattr(layer, "post_feedforward_layernorm"):
        return layer.post_attention_layernorm, layer.post_feedforward_layernorm
    return nn.Identity(), nn.Identity()


def test_a_hooked_patch_is_the_equation(backbone: Backbone, queries: list[Query]) -> None:
    """Against literal widening where that exists (ungated), against the formula by hand where it does not."""
    patch = Patch(backbone, (-1,))
    batch, site = backbone.encode(queries), backbone.ffn(-1)
    with trace([site.inputs, site.outputs]) as (inputs, plain):
        backbone.forward(batch)
    with Hooks() as hooks:
        patch.on(hooks)
        with trace(site.outputs) as hooked:
            patched = backbone.forward(batch)
    expected = plain.output + patch.term(-1, inputs.input)
    assert torch.allclose(hooked.output, expected, atol=1e-6)
    assert not torch.allclose(hooked.output, plain.output, atol=1e-2)
    if site.gated:
        return
    keys, bias, values = patch.weights[-1]
    wide = copy.deepcopy(backbone)
    layer = wide.layers[-1]
    layer.fc1 = widened(layer.fc1, torch.cat([layer.fc1.weight, keys.T]), torch.cat([layer.fc1.bias, bias]))
    layer.fc2 = widened(layer.fc2, torch.cat([layer.fc2.weight, values.T], dim=1), layer.fc2.bias)
    with trace(layer.fc2) as record:
        logits = wide.forward(batch)
    assert torch.allclose(record.output, hooked.output, atol=1e-6, rtol=1e-6)
    assert torch.allclose(logits, patched, atol=1e-5)


def widened(old: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    new = nn.Linear(weight.shape[1], weight.shape[0])
    new.weight, new.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return new


# ---------------------------------------------------------------------- loading


def test_save_load_and_fingerprint(
    make_backbone: Callable[..., Backbone], backbone: Backbone, queries: list[Query], tmp_path: Path
) -> None:
    assert make_backbone(1).fingerprint() != backbone.fingerprint()
    assert make_backbone(0).fingerprint() == backbone.fingerprint()
    backbone.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, device="cpu")
    assert type(loaded) is type(backbone)
    assert loaded.fingerprint() == backbone.fingerprint()
    assert loaded.template == backbone.template
    batch, again = backbone.encode(queries), loaded.encode(queries)
    assert torch.equal(batch.inputs["input_ids"], again.inputs["input_ids"])
    assert torch.equal(backbone.forward(batch), loaded.forward(again))
    assert loaded.generate(queries, max_new_tokens=4) == backbone.generate(queries, max_new_tokens=4)


def test_a_family_without_a_file_gets_the_generic_adapter(queries: list[Query], tmp_path: Path) -> None:
    llava = tiny_backbone("llava")
    both = {"vision_config": llava.config.vision_config.to_dict(), "text_config": llava.config.text_config.to_dict()}
    config = transformers.VipLlavaConfig(**both, image_token_id=llava.image_token_id, vision_feature_layers=[-1, -2])
    model = transformers.VipLlavaForConditionalGeneration(config)
    Backbone(model, llava.tokenizer, llava.image_processor, source="tiny").save_pretrained(tmp_path)
    generic = load_backbone(tmp_path, device="cpu")
    assert type(generic) is Backbone
    batch = generic.encode([*queries, Query("Who wrote it?", target="a poet")])
    assert torch.equal(generic.run_from_split(generic.run_to_split(batch, 2)), generic.forward(batch))
    assert len(generic.generate(queries, max_new_tokens=2)) == 3


def test_two_way_attention_is_refused() -> None:
    with pytest.raises(UnikeError, match="two-way attention"):
        Backbone.check_config(transformers.Gemma4Config(), "x")


def test_opt_with_projected_embeddings_is_refused() -> None:
    with pytest.raises(UnikeError, match="word_embed_proj_dim"):
        tiny_backbone("blip2-opt", word_embed_proj_dim=16)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("minni", "did you mean 'mini'"),
        ("blip2", "unknown backbone 'blip2'"),
        ("./nowhere/at/all", "no folder"),
        ("~/models", "no folder"),
    ],
)
def test_a_source_that_is_nothing_is_refused(source: str, message: str) -> None:
    with pytest.raises(UnikeError, match=message):
        load_backbone(source)


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (str(tmp_path), "nobody/nothing-of-this-name"):
        with pytest.raises(UnikeError, match="cannot load") as error:
            load_backbone(source)
        assert "\n" not in str(error.value)
    with pytest.raises(UnikeError, match="unknown dtype 'int3'"):
        registry.backbones.get("llava").from_pretrained(tmp_path, dtype="int3")
    with pytest.raises(UnikeError, match="unknown device 'gpu'"):
        registry.backbones.get("llava").from_pretrained(tmp_path, device="gpu")


# ---------------------------------------------------------------------- what tells models apart


def test_every_part_and_every_setting_counts(make_backbone: Callable[..., Backbone]) -> None:
    """Weights of all parts (one value is enough), the template, the pictures' processing and what ends an answer."""
    backbone = make_backbone()
    plain = backbone.fingerprint()
    assert make_backbone().fingerprint() == plain == backbone.fingerprint()
    weights = list(dict(backbone.model.named_parameters()).values())[::7]
    seen = {plain}
    for weight in weights:
        before = weight.flatten()[-1].clone()
        weight.data.flatten()[-1] += 1
        weight.add_(0)  # in place, as whoever changes weights does
        seen.add(backbone.fingerprint())
        weight.data.flatten()[-1] = before
        weight.add_(0)
    assert len(seen) == 1 + len(weights) > 4 and backbone.fingerprint() == plain
    backbone.template = backbone.template + " "
    assert backbone.fingerprint() not in seen
    backbone.template = backbone.template[:-1]
    other = make_backbone()
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert other.fingerprint() != plain
    assert backbone.fingerprint() == plain and backbone.is_known_as(plain)


def test_what_version_0_1_knew_a_model_by_is_still_understood(make_backbone: Callable[..., Backbone]) -> None:
    backbone = make_backbone()
    old = fingerprint_0_1(backbone)
    assert len(old) == 16 and backbone.is_known_as(old)
    assert not make_backbone(1).is_known_as(old)
