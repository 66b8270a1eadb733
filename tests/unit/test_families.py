"""Families read images and prompts as their own processors in ``transformers`` do."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.data.queries import Query

PROMPT = "What is this?"


def paligemma(tiny: Backbone) -> tuple[Any, str]:
    tiny.image_processor.image_seq_length = 4
    return transformers.PaliGemmaProcessor(tiny.image_processor, tiny.tokenizer), f"<image>answer en {PROMPT}"


def gemma3(tiny: Backbone) -> tuple[Any, str]:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tiny.tokenizer._set_model_specific_special_tokens(names)
    processor = transformers.Gemma3Processor(tiny.image_processor, tiny.tokenizer, image_seq_length=4)
    return processor, tiny.template.format(image="<start_of_image>", prompt=PROMPT)


def instructblip(tiny: Any) -> tuple[Any, str]:
    parts = (tiny.image_processor, tiny.tokenizer, tiny.qformer_tokenizer)
    return transformers.InstructBlipProcessor(*parts, num_query_tokens=4), f"Question: {PROMPT} Short answer:"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor, of numpy
@pytest.mark.parametrize("make", [paligemma, gemma3, instructblip], ids=lambda make: make.__name__)
def test_a_question_reads_as_with_the_familys_processor(
    make: Callable[[Backbone], tuple[Any, str]], pictures: list[Path]
) -> None:
    tiny = tiny_backbone(make.__name__)
    processor, text = make(tiny)
    expected = processor(images=[Image.open(pictures[1])], text=[text], return_tensors="pt")
    found = tiny.encode([Query(PROMPT, pictures[1])]).inputs
    assert set(expected) - {"labels"} == set(found)
    for name, tensor in found.items():
        assert torch.equal(tensor, torch.as_tensor(expected[name])), name


def test_placeholders_of_families_whose_processor_needs_torchvision(pictures: list[Path]) -> None:
    """Their arithmetic is asked without building them: InternVL counts tiles, LLaVA-OneVision what it packs."""
    images = [Image.open(picture) for picture in pictures]

    tiny = tiny_backbone("internvl")
    own = SimpleNamespace(start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>")
    own.image_seq_length = 4
    tiles = tiny.image_processor(images=images, return_tensors="pt", crop_to_patches=True)
    replaced = transformers.InternVLProcessor.replace_image_token
    assert len(set(tiles["num_patches"].tolist())) > 1
    assert tiny.image_inputs(images)[1] == [replaced(own, tiles, number) + "\n" for number in range(3)]

    tiny = tiny_backbone("llava_onevision")
    processor: Any = object.__new__(transformers.LlavaOnevisionProcessor)
    vars(processor).update(image_processor=tiny.image_processor, num_image_tokens=4, image_token="<image>")
    vars(processor).update(vision_aspect_ratio="anyres_max_9", vision_feature_select_strategy="full")
    for sizes in (images, [Image.new("RGB", size) for size in [(8, 8), (100, 10), (10, 300), (64, 63)]]):
        inputs = tiny.image_processor(images=sizes, return_tensors="pt")
        counted = [processor.replace_image_token(inputs, number) + "\n" for number in range(len(sizes))]
        assert tiny.image_inputs(sizes)[1] == counted
    assert len(set(counted)) > 1


@pytest.mark.parametrize("family", ["internvl", "llava_onevision"])
def test_chat_formats_are_those_of_the_published_templates(family: str) -> None:
    """As the scripts that made the checkpoints wrote them; the instruction for short answers is ours to add."""
    published = "<|im_start|>user\n<image>\nQ<|im_end|>\n<|im_start|>assistant\n"
    template = tiny_backbone(family).template
    bare = template.replace("\nAnswer the question using a single word or phrase.", "")
    assert bare.format(image="<image>\n", prompt="Q") == published


def test_gemma_3_is_asked_in_its_own_turns() -> None:
    template = tiny_backbone("gemma3").template
    assert template.startswith("<start_of_turn>user\n{image}{prompt}")
    assert template.endswith("<end_of_turn>\n<start_of_turn>model\n")


def test_the_q_former_reads_the_question(pictures: list[Path]) -> None:
    """Two questions about one picture: not even its features are the same."""
    tiny = tiny_backbone("instructblip")
    batches = [tiny.encode([Query(prompt, pictures[0])]).inputs for prompt in ("Who is it?", "A cat?")]
    features = [
        tiny.model.get_image_features(
            **{key: batch[key] for key in ("pixel_values", "qformer_input_ids", "qformer_attention_mask")}
        ).pooler_output
        for batch in batches
    ]
    assert features[0].shape == features[1].shape == (1, 4, tiny.width)
    assert not torch.allclose(*features, atol=1e-2)


def test_image_features_see_each_other_and_text_does_not_look_ahead(pictures: list[Path]) -> None:
    """Gemma 3: what comes later in an image is seen by what comes earlier; what comes later in a text is not."""
    tiny = tiny_backbone("gemma3")
    batch = tiny.encode([Query(PROMPT, pictures[0])])
    with torch.no_grad():
        state = tiny.run_to_split(batch, 1)
        image = (batch.inputs["input_ids"][0] == tiny.image_token_id).nonzero()[:, 0]
        for moved, seen_by in [(int(image[-1]), int(image[0])), (int(image[-1]) + 6, int(image[-1]) + 5)]:
            hidden = state.hidden.clone()
            hidden[0, moved] += 1.0
            other = tiny.run_from_split(type(state)(**{**vars(state), "hidden": hidden}))
            changed = (other - tiny.run_from_split(state)).abs().amax(dim=-1)[0] > 1e-6
            assert changed[seen_by] == (moved == int(image[-1]))
            assert changed[moved]
