"""Idefics3 and SmolVLM that cut an image into four tiles and an overview."""

from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tinies.parts import build, text_config, tiny_tokenizer
from unike.backbones.families.idefics3 import END, FAKE, GLOBAL, Idefics3

SPECIALS = ["<image>", FAKE, GLOBAL, END, *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))]


def fields(tokenizer: Any) -> dict[str, Any]:
    """What the configs of both share."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    return {
        "vision_config": vision,
        "text_config": text_config(tokenizer, model_type="llama"),
        "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
    }


SIZES = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}


def idefics3(seed: int = 0) -> Idefics3:
    tokenizer = tiny_tokenizer(SPECIALS)
    config = Idefics3Config(**fields(tokenizer))
    model = build(lambda: Idefics3ForConditionalGeneration(config), seed)
    return Idefics3(model, tokenizer, Idefics3ImageProcessorPil(**SIZES), source="tiny-idefics3")


def smolvlm(seed: int = 0) -> Idefics3:
    tokenizer = tiny_tokenizer([*SPECIALS, "<|im_start|>"], bos=False)
    config = SmolVLMConfig(**fields(tokenizer))
    model = build(lambda: SmolVLMForConditionalGeneration(config), seed)
    return Idefics3(model, tokenizer, SmolVLMImageProcessorPil(**SIZES), source="tiny-smolvlm")


TINIES = {"idefics3": idefics3, "smolvlm": smolvlm}
