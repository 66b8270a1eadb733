"""Edits in the model's own calls, in several threads, and around models that somebody has loaded already."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tinies import TINIES, tiny_backbone
from torch import Tensor

import unike
from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.stack import attached

FAMILIES = ("blip2-opt", "instructblip", "llava", "qwen3_vl", "gemma3")


def hooks_on(backbone: Backbone) -> int:
    """How many hooks there are; transformers itself leaves some on LLaVA's vision tower after the first forward."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())


SETTINGS: dict[str, dict[str, Any]] = {
    "unike": {"layers": (-2, -1), "steps": 3, "lr": 3e-2, "pairs": {"n": 3}, "memory": {"k": 4}},
    "ft": {"steps": 3, "lr": 1e-2},
}


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(request.param)


def editor(name: str, backbone: Backbone, make_knowledge: Callable[..., Any], folder: Path) -> Any:
    settings = dict(SETTINGS[name])
    if name == "unike":
        make_knowledge(backbone).save_pretrained(folder)
        settings["knowledge"] = str(folder)
    return registry.editors.get(name)(**settings)


@pytest.fixture(scope="module", params=SETTINGS)
def edits(
    request: pytest.FixtureRequest,
    backbone: Backbone,
    facts: list[Query],
    make_knowledge: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Edit]:
    """An edit for each fact, alone."""
    made = editor(request.param, backbone, make_knowledge, tmp_path_factory.mktemp("knowledge") / "known")
    return [made.edit(backbone, fact) for fact in facts]


def as_a_user_would(backbone: Backbone, queries: list[Query], **kwargs: Any) -> Tensor:
    """The new tokens of the transformers model's own ``generate``, ``[B, T]``."""
    batch = backbone.encode([Query(q.prompt, q.image) for q in queries], padding_side="left")
    ids = backbone.model.generate(**batch.inputs, do_sample=False, pad_token_id=0, **kwargs)
    return ids[:, -kwargs["max_new_tokens"] :]


def as_the_library_does(backbone: Backbone, queries: list[Query], edits: list[Edit]) -> list[str]:
    return EditedModel(backbone, edits).generate(queries, max_new_tokens=4)


# ---------------------------------------------------------------------- the model's own calls


@pytest.mark.parametrize("beams", [1, 2])
def test_the_models_own_generate_is_edited_too(
    backbone: Backbone, facts: list[Query], edits: list[Edit], beams: int
) -> None:
    same = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": beams}
    plain, hooks = as_a_user_would(backbone, facts, **same), hooks_on(backbone)
    with attached(backbone, edits[:2]):
        found = as_a_user_would(backbone, facts, **same)
        again = as_a_user_would(backbone, facts[::-1], **same)  # another prompt is read anew
    assert hooks_on(backbone) == hooks
    assert torch.equal(as_a_user_would(backbone, facts, **same), plain)
    assert not torch.equal(found, plain)
    assert torch.equal(again.flip(0), found)
    if beams == 1:
        asked = EditedModel(backbone, edits[:2]).generate(facts, max_new_tokens=4)
        said = [backbone.answer_text(row) for row in found.tolist()]
        assert all(text.startswith(answer) for text, answer in zip(said, asked, strict=True))


def test_the_models_own_forward_reads_prompts(backbone: Backbone, facts: list[Query], edits: list[Edit]) -> None:
    bare = [Query(q.prompt, q.image) for q in facts]
    batch = backbone.encode(bare)
    expected = backbone.forward(batch, EditedModel(backbone, edits[:1]).within_model)
    with attached(backbone, edits[:1]):
        found = backbone.model(**batch.inputs).logits
        assert torch.equal(backbone.forward(batch), expected), "the backbone's own passes are edited once, not twice"
    real = batch.inputs["attention_mask"].bool()
    assert torch.allclose(found[real], expected[real], atol=1e-5)
    assert not torch.allclose(found, backbone.forward(batch), atol=1e-3)


def test_blocks_within_each_other_act_together(backbone: Backbone, facts: list[Query], edits: list[Edit]) -> None:
    same = {"max_new_tokens": 4, "min_new_tokens": 4}
    with attached(backbone, edits[:2]):
        together = as_a_user_would(backbone, facts, **same)
    with edits[0].attached(backbone):
        once = as_a_user_would(backbone, facts, **same)
        with edits[1].attached(backbone):
            assert torch.equal(as_a_user_would(backbone, facts, **same), together)
        assert torch.equal(as_a_user_would(backbone, facts, **same), once)


def test_a_generation_without_a_cache_is_refused() -> None:
    backbone = tiny_backbone("llava")
    fact = Query("What is this?", None, "a cat")
    edit = registry.editors.get("ft")(**SETTINGS["ft"]).edit(backbone, fact)
    with edit.attached(backbone), pytest.raises(UnikeError, match="leave use_cache at True"):
        as_a_user_would(backbone, [fact], max_new_tokens=4, min_new_tokens=4, use_cache=False)


@pytest.mark.parametrize("option", [{"prefill_chunk_size": 3}, {"prompt_lookup_num_tokens": 2}])
def test_prompts_in_parts_and_assisted_decoding_are_refused(option: dict[str, int]) -> None:
    backbone, fact = tiny_backbone("llava"), Query("Who is there, and who is there again?", None, "a cat")
    edit = registry.editors.get("ft")(**SETTINGS["ft"]).edit(backbone, fact)
    with edit.attached(backbone), pytest.raises(UnikeError, match="give the whole prompt"):
        as_a_user_would(backbone, [fact], max_new_tokens=6, min_new_tokens=6, **option)


def test_a_cache_that_was_filled_before_is_refused() -> None:
    backbone, fact = tiny_backbone("llava"), Query("Who is there?", None, "a cat")
    edit = registry.editors.get("ft")(**SETTINGS["ft"]).edit(backbone, fact)
    inputs = backbone.encode([Query(fact.prompt)], padding_side="left").inputs
    cache = transformers.DynamicCache()
    backbone.model(input_ids=inputs["input_ids"][:, :3], past_key_values=cache, use_cache=True)
    with edit.attached(backbone):
        for _ in range(2):
            with pytest.raises(UnikeError, match="without past_key_values"):
                backbone.model(input_ids=inputs["input_ids"][:, 3:], past_key_values=cache, use_cache=True)
            backbone.model(**inputs)  # what was read before is not what that cache holds


# ---------------------------------------------------------------------- threads


def test_threads_never_see_each_others_edits(backbone: Backbone, facts: list[Query], edits: list[Edit]) -> None:
    """Eight threads with different edits get what they get one after another, in every way of asking."""
    stacks: list[list[Edit]] = [[], edits[:1], edits[1:2], edits[:2], edits[1::-1], edits[2:], edits, edits[::2]]
    batch = backbone.encode(facts)
    state = backbone.run_to_split(batch, 0)
    at_the_start = Barrier(len(stacks))

    def every_way(stack: list[Edit]) -> tuple[Any, ...]:
        model = EditedModel(backbone, stack)
        with attached(backbone, stack):
            ambient = backbone.forward(batch)
            native = as_a_user_would(backbone, facts, max_new_tokens=3, min_new_tokens=3)
        return (
            ambient,
            native,
            backbone.forward(batch, model.stack),
            backbone.run_from_split(state, acting=model.stack),
            model.generate(facts, max_new_tokens=3),
        )

    def with_the_others(stack: list[Edit]) -> list[tuple[Any, ...]]:
        at_the_start.wait()
        return [every_way(stack) for _ in range(2)]

    expected, hooks = [every_way(stack) for stack in stacks], hooks_on(backbone)
    assert not torch.equal(expected[0][0], expected[1][0])
    with ThreadPoolExecutor(len(stacks)) as pool:
        for found, alone in zip(pool.map(with_the_others, stacks), expected, strict=True):
            for each in found:
                assert all(torch.equal(a, b) for a, b in zip(each[:4], alone[:4], strict=True))
                assert each[4] == alone[4]
    assert hooks_on(backbone) == hooks


# ---------------------------------------------------------------------- models that are loaded already


def processor_of(backbone: Backbone) -> Any:
    return SimpleNamespace(**backbone.processors)


def test_a_loaded_model_is_wrapped(backbone: Backbone, facts: list[Query]) -> None:
    wrapped = unike.wrap(backbone.model, processor_of(backbone), source="mine")
    assert type(wrapped) is type(backbone) and wrapped.source == "mine"
    assert wrapped.fingerprint() == backbone.fingerprint()
    assert torch.equal(wrapped.forward(wrapped.encode(facts)), backbone.forward(backbone.encode(facts)))


def test_what_cannot_be_wrapped() -> None:
    backbone = tiny_backbone("llava")
    with pytest.raises(UnikeError, match="Linear is not a transformers model with a head"):
        unike.wrap(torch.nn.Linear(2, 2), None)
    with pytest.raises(UnikeError, match="LlavaModel is not a transformers model with a head; give the whole model"):
        unike.wrap(backbone.model.model, processor_of(backbone))
    with pytest.raises(UnikeError, match="mine: the processor has no image_processor"):
        unike.wrap(backbone.model, SimpleNamespace(tokenizer=backbone.tokenizer), source="mine")
    prompted = SimpleNamespace(peft_config={"default": SimpleNamespace(is_prompt_learning=True)})
    with pytest.raises(UnikeError, match="learns prompts"):
        unike.wrap(prompted, processor_of(backbone))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls what transformers has renamed
def test_a_peft_model_is_wrapped_with_its_adapter(facts: list[Query]) -> None:
    peft = pytest.importorskip("peft")
    make = TINIES["llava"]
    plain, backbone = make(), make()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = unike.wrap(peft.get_peft_model(backbone.model, config), processor_of(backbone), source="tuned")
    batch = tuned.encode(facts)
    assert not torch.allclose(tuned.forward(batch), plain.forward(batch), atol=1e-3)
    edit = registry.editors.get("ft")(steps=30, lr=1e-2).edit(tuned, facts[0])
    assert EditedModel(tuned, [edit]).generate(facts[:1], max_new_tokens=8) != tuned.generate(facts[:1])


# ---------------------------------------------------------------------- copies, and compiled models


def test_a_copy_is_another_model(facts: list[Query]) -> None:
    backbone = tiny_backbone("llava")
    edit = registry.editors.get("ft")(**SETTINGS["ft"]).edit(backbone, facts[0])
    batch, plain = backbone.encode(facts[:1]), backbone.forward(backbone.encode(facts[:1]))
    with edit.attached(backbone):
        with pytest.raises(UnikeError, match="copy it outside of the block"):
            copy.deepcopy(backbone)
        as_a_user_would(backbone, facts[:1], max_new_tokens=2)
        bare = copy.deepcopy(backbone.model)
    twin = copy.deepcopy(backbone)
    assert twin.fingerprint() == backbone.fingerprint() and twin.model is not backbone.model
    assert torch.equal(twin.forward(batch), plain)
    assert torch.allclose(bare(**batch.inputs).logits, plain, atol=1e-5), "the edit does not stay on a model's copy"
    with edit.attached(backbone):
        assert torch.equal(twin.forward(batch), plain)
        edited = backbone.forward(batch)
    with edit.attached(twin):
        assert torch.equal(twin.forward(batch), edited), "once, not twice"


def test_a_backbone_is_not_pickled() -> None:
    with pytest.raises(UnikeError, match=r"load it there: unike.load_backbone\(source\)"):
        pickle.dumps(tiny_backbone("llava"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo says much about what it does not trace
def test_a_model_that_was_compiled_before_is_edited_too() -> None:
    backbone, fact = tiny_backbone("blip2-opt"), Query("What is this?", None, "a cat")
    edit = registry.editors.get("ft")(**SETTINGS["ft"]).edit(backbone, fact)
    inputs = backbone.encode([Query(fact.prompt)]).inputs
    compiled = torch.compile(backbone.generator, backend="eager")
    plain = backbone.generator(**inputs).logits
    assert torch.allclose(compiled(**inputs).logits, plain, atol=1e-5)
    with edit.attached(backbone):
        edited = backbone.generator(**inputs).logits
        assert torch.allclose(compiled(**inputs).logits, edited, atol=1e-4)
    assert not torch.allclose(edited, plain, atol=1e-3)
    assert torch.allclose(compiled(**inputs).logits, plain, atol=1e-5)
