"""What every backbone promises, on a tiny random model of every family that is found."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from decoding import greedy_without_cache
from processor import needs_bfloat16
from tinies import tiny_backbone
from torch import Tensor, nn

from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import running
from unike.backbones.forward.functional import target_positions, token_nll
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, trace
from unike.backbones.forward.split import SplitState
from unike.backbones.identity import fingerprint_0_1
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors import checks as laws
from unike.editors.checks import Law


@pytest.fixture
def queries(pictures: list[Path]) -> list[Query]:
    return [
        Query("What is this?", pictures[0], "a cat"),
        Query("Which colour has the thing in the middle of it?", pictures[1], "bright red"),
        Query("Who?", pictures[2], "the baker, on a bench"),
    ]


@pytest.fixture(params=["sdpa", "eager"])
def attention_kernel(request: pytest.FixtureRequest, backbone: Backbone) -> Iterator[None]:
    usual = backbone.text_config._attn_implementation
    if request.param == "sdpa" and usual != "sdpa":
        pytest.skip("Gemma 2 caps attention scores, which sdpa cannot")
    backbone.text_stack.set_attn_implementation(request.param)
    with trace(backbone.attention(0).module) as record:
        backbone.forward(backbone.encode([Query("Who?")]))
    assert (record.output[1] is None) == (request.param == "sdpa"), "the other kernel is in use"
    yield
    backbone.text_stack.set_attn_implementation(usual)


class Patch:
    """``relu(q K + b) V`` beside the feed-forward networks of some layers."""

    def __init__(self, backbone: Backbone, layers: tuple[int, ...], size: int = 3, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / shape[0] ** 0.5

        self.backbone, self.layers = backbone, layers
        width = backbone.width
        self.weights = {i: (draw(width, size), draw(size), draw(size, width)) for i in layers}

    def term(self, i: int, q: Tensor) -> Tensor:
        keys, bias, values = self.weights[i]
        return torch.relu(q @ keys + bias) @ values

    def on(self, hooks: Hooks) -> None:
        for i in self.layers:
            site, seen = self.backbone.ffn(i), {}

            def before(module, args, kwargs, seen=seen):
                seen["q"] = args[0]

            def after(module, args, kwargs, output, i=i, seen=seen):
                return output + self.term(i, seen["q"])

            hooks.add_pre(site.inputs, before)
            hooks.add(site.outputs, after)


def hooks_on(backbone: Backbone) -> int:
    """How many hooks there are; transformers itself leaves some on LLaVA's vision tower after the first forward."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())


def generation_configs(backbone: Backbone) -> list[Any]:
    """The settings of whatever in the model can generate: of BLIP-2 also its language model."""
    return [module.generation_config for module in backbone.model.modules() if hasattr(module, "generation_config")]


# ---------------------------------------------------------------------- the split forward


@pytest.mark.usefixtures("attention_kernel")
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.name)
def test_laws_that_also_unlisted_models_are_checked_for(backbone: Backbone, queries: list[Query], law: Law) -> None:
    assert law.measure(backbone, queries) <= (1e-5 if law.allowed is None else law.allowed)


def test_a_split_state_knows_its_layer_and_serves_some_positions(backbone: Backbone, queries: list[Query]) -> None:
    batch = backbone.encode(queries)
    state = backbone.run_to_split(batch, -1)
    assert state.layer == backbone.n_layers - 1
    positions = target_positions(batch.labels)
    some = backbone.run_from_split(state, positions=positions)
    assert torch.allclose(some, backbone.forward(batch)[positions], atol=1e-5)


def test_split_of_text_alone(backbone: Backbone) -> None:
    batch = backbone.encode([Query("Who wrote it?", target="a poet"), Query("And when was that?", target="1805")])
    state = backbone.run_to_split(batch, 2)
    assert torch.equal(backbone.run_from_split(state), backbone.forward(batch))


def test_split_runs_nothing_twice(backbone: Backbone, queries: list[Query]) -> None:
    batch = backbone.encode(queries)
    with trace(list(backbone.layers)) as records:
        state = backbone.run_to_split(batch, 2)
        assert [record.count for record in records] == [1, 1, *[0] * (backbone.n_layers - 2)]
        backbone.run_from_split(state)
        assert [record.count for record in records] == [1] * backbone.n_layers


def test_rows_of_a_state_can_be_repeated(backbone: Backbone, queries: list[Query]) -> None:
    state = backbone.run_to_split(backbone.encode(queries), 1)
    rows = [2, 0, 0, 1, 2]
    expanded = state.expand(rows)
    assert len(expanded) == 5
    assert torch.equal(expanded.labels, state.labels[rows])
    assert torch.allclose(backbone.run_from_split(expanded), backbone.run_from_split(state)[rows], atol=1e-5)
    single = backbone.run_to_split(backbone.encode(queries[:1]), 1)
    repeated = backbone.run_from_split(single.expand([0, 0]))
    assert torch.allclose(repeated, backbone.run_from_split(single)[[0, 0]], atol=1e-5)


def test_gradients_through_the_split_equal_those_of_the_full_forward(backbone: Backbone, queries: list[Query]) -> None:
    batch = backbone.encode(queries)
    patch = Patch(backbone, (-2, -1))
    parameters = [p.requires_grad_() for weights in patch.weights.values() for p in weights]
    state = backbone.run_to_split(batch, -2)
    with Hooks() as hooks:
        patch.on(hooks)
        full = torch.autograd.grad(token_nll(backbone.forward(batch), batch.labels).sum(), parameters)
        logits = backbone.run_from_split(state, positions=target_positions(state.labels))
        split = torch.autograd.grad(token_nll(logits, state.labels).sum(), parameters)
    for a, b in zip(full, split, strict=True):
        assert a.abs().max() > 0
        assert torch.allclose(a, b, atol=1e-5)
    assert not state.hidden.requires_grad


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.usefixtures("attention_kernel")
def test_a_shortened_state_is_a_state(backbone: Backbone, queries: list[Query], padding_side: str) -> None:
    """It can be advanced, and its rows picked; that it ends as the whole one is a law."""
    batch = backbone.encode(queries, padding_side=padding_side)
    state = backbone.run_to_split(batch, 1)
    short = backbone.shorten(state)
    if backbone.reads_prompts_both_ways:
        assert short is state, "nothing of a prompt is settled before its end"
        return
    assert short.start == int(batch.prompt_last.min()) > 0
    assert backbone.shorten(short) is short
    assert torch.equal(short.labels, batch.labels[:, short.start :])
    real = batch.inputs["attention_mask"].bool()[:, short.start :]
    whole = backbone.run_from_split(short)
    assert torch.allclose(backbone.run_from_split(backbone.advance(short, -1))[real], whole[real], atol=1e-5)
    for read in (state, short, short.expand([0, 1, 2])):
        with trace(backbone.attention(2).module, stop="input") as record:
            backbone.run_from_split(read)
        means = read.prefill().over_prompt(record.input, 2)
        if read is state:
            spans = zip(batch.inputs["attention_mask"].argmax(dim=1), batch.prompt_last, strict=True)
            expected = [x[first : p + 1].mean(dim=0) for x, (first, p) in zip(record.input, spans, strict=True)]
        assert torch.allclose(means, torch.stack(expected), atol=1e-5)
    rows = [2, 0, 0]
    picked = backbone.run_from_split(short.expand(rows))
    assert torch.allclose(picked[real[rows]], whole[rows][real[rows]], atol=1e-5)


def test_a_shortened_pass_reads_only_what_is_left(backbone: Backbone, queries: list[Query]) -> None:
    short = backbone.shorten(backbone.run_to_split(backbone.encode(queries), 1))
    with trace(backbone.layers[-1]) as record:
        backbone.run_from_split(short)
    assert record.input.shape[:2] == short.labels.shape


def test_gradients_through_a_shortened_state_are_those_of_the_whole(backbone: Backbone, queries: list[Query]) -> None:
    """Of whatever acts from the prompts' ends on: here, of a change of each layer's output there."""
    state = backbone.run_to_split(backbone.encode(queries), -2)
    shift = torch.zeros(2, backbone.width, requires_grad=True)

    def gradient(state: SplitState) -> Tensor:
        def push(number: int, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
            prefill = running()
            assert prefill is not None
            hidden = output[0] if isinstance(output, tuple) else output
            moved = hidden + prefill.from_prompt_last(hidden) * shift[number]
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        with Hooks() as hooks:
            for number in (0, 1):
                hooks.add(backbone.layers[number - 2], partial(push, number))
            logits = backbone.run_from_split(state, target_positions(state.labels))
            return torch.autograd.grad(token_nll(logits, state.labels).sum(), shift)[0]

    whole, short = gradient(state), gradient(backbone.shorten(state))
    assert whole.abs().amax(dim=1).min() > 0
    assert torch.allclose(whole, short, atol=1e-5)


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


# ---------------------------------------------------------------------- encoding


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("append_eos", [True, False])
def test_labels_are_exactly_the_target(
    backbone: Backbone, queries: list[Query], padding_side: str, append_eos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "append_eos", append_eos)
    batch = backbone.encode(queries, padding_side=padding_side)
    prompts = backbone.encode([Query(q.prompt, q.image) for q in queries], padding_side=padding_side)
    assert (prompts.labels == -100).all()
    for row, query in enumerate(queries):
        ids, labels, p = batch.inputs["input_ids"][row], batch.labels[row], int(batch.prompt_last[row])
        labelled = labels != -100
        assert torch.equal(labels[labelled], ids[labelled])
        text = backbone.tokenizer.decode(labels[labelled])
        assert text.strip() == query.target + (backbone.tokenizer.eos_token if append_eos else "")
        assert not labelled[: p + 1].any()
        assert labelled[p + 1]
        # Teacher forcing and generation read the same prompt.
        real = batch.inputs["attention_mask"][row].bool() & (torch.arange(len(ids)) <= p)
        alone = prompts.inputs["input_ids"][row][prompts.inputs["attention_mask"][row].bool()]
        assert torch.equal(ids[real], alone)
        assert prompts.inputs["input_ids"][row, prompts.prompt_last[row]] == ids[p]


def test_a_target_is_tokenised_with_its_prompt(backbone: Backbone) -> None:
    batch = backbone.encode([Query("What is it?", target="a thin cat")])
    alone = backbone.tokenizer("a thin cat", add_special_tokens=False)["input_ids"]
    labelled = batch.labels[batch.labels != -100].tolist()
    if not backbone.template.endswith("\n"):
        assert labelled[: len(alone)] != alone


def test_rows_of_a_mixed_batch_equal_single_rows(backbone: Backbone, queries: list[Query]) -> None:
    text = [Query("Who wrote the long book about it?", target="a poet"), Query("When?", target="1805")]
    mixed = [queries[0], text[0], queries[1], text[1], queries[2]]
    if not backbone.mixes_images:
        with pytest.raises(UnikeError, match="cannot mix"):
            backbone.encode(mixed)
    for group in [mixed] if backbone.mixes_images else [queries, text]:
        for padding_side in ("right", "left"):
            together = backbone.encode(group, padding_side=padding_side)
            logits = backbone.forward(together)
            for row, query in enumerate(group):
                single = backbone.encode([query])
                real = together.inputs["attention_mask"][row].bool()
                assert torch.equal(together.inputs["input_ids"][row][real], single.inputs["input_ids"][0])
                assert torch.allclose(logits[row][real], backbone.forward(single)[0], atol=1e-4)


def test_images_and_prompts_count(backbone: Backbone, pictures: list[Path]) -> None:
    batch = backbone.encode([Query("What is this?", pictures[0]), Query("What is this?", pictures[2])])
    rows = [backbone.forward(backbone.encode([Query("What is this?", picture)]))[0, -1] for picture in pictures[::2]]
    assert len(batch) == 2
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)


def test_what_cannot_be_encoded_is_refused(backbone: Backbone, pictures: list[Path]) -> None:
    for wrong, message in [
        ([], "no query"),
        ([Query("a", target="  ")], "target of 'a' is empty"),
        ([Query(f"a {backbone.image_token} b")], "holds the image placeholder"),
    ]:
        with pytest.raises(UnikeError, match=message):
            backbone.encode(wrong)
    with pytest.raises(UnikeError):
        backbone.encode([Query("a", pictures[0].with_name("missing.png"))])
    with pytest.raises(ValueError, match="padding_side"):
        backbone.encode([Query("a")], padding_side="middle")


@pytest.mark.parametrize("template", ["{image}{question}", "{image} only", "{prompt} only", "{image}{prompt}{", "{}"])
def test_a_wrong_template_is_refused(template: str) -> None:
    tiny = tiny_backbone("llava")
    with pytest.raises(UnikeError, match="template"):
        type(tiny)(tiny.model, tiny.tokenizer, tiny.image_processor, source="x", template=template)


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with pytest.raises(UnikeError, match="at most 512"):
        tiny_backbone("llava").encode([Query("word " * 600)])


# ---------------------------------------------------------------------- generation


@pytest.mark.usefixtures("attention_kernel")
def test_generate_under_hooks_equals_decoding_without_a_cache(backbone: Backbone, queries: list[Query]) -> None:
    asked = [*queries[:2], Query("Who wrote it?")]
    plain = backbone.generate(asked, max_new_tokens=6)
    with Hooks() as hooks:
        Patch(backbone, (-2, -1)).on(hooks)
        hooked = backbone.generate(asked, max_new_tokens=6)
        assert hooked == [greedy_without_cache(backbone, query, 6) for query in asked]
        assert len(backbone.generate(asked, max_new_tokens=3, num_beams=2)) == 3
    assert hooked != plain
    assert backbone.generate(asked, max_new_tokens=6) == plain


def test_generate_ignores_targets_and_a_checkpoints_own_settings(backbone: Backbone, queries: list[Query]) -> None:
    bare = [Query(q.prompt, q.image) for q in queries]
    expected = backbone.generate(bare, max_new_tokens=6)
    assert backbone.generate(queries, max_new_tokens=6) == expected
    with pytest.MonkeyPatch.context() as patch:
        for config in generation_configs(backbone):
            patch.setattr(config, "repetition_penalty", 50.0)
            patch.setattr(config, "do_sample", True)
        assert backbone.generate(queries, max_new_tokens=6) == expected
    assert backbone.generate([]) == []
    assert backbone.ask(queries[0].image, queries[0].prompt, max_new_tokens=6) == expected[0]
    assert backbone.ask(str(queries[0].image), queries[0].prompt, max_new_tokens=6) == expected[0]


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


@needs_bfloat16
def test_half_precision(backbone: Backbone, queries: list[Query], tmp_path: Path) -> None:
    """Of every family; `unit/test_laws.py` measures every law on one, whatever the processor."""
    backbone.save_pretrained(tmp_path)
    half = load_backbone(tmp_path, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint() == backbone.fingerprint()
    batch = half.encode(queries)
    assert torch.equal(half.run_from_split(half.run_to_split(batch, 2)), half.forward(batch))


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
