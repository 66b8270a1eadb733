"""Qwen-VL of each generation."""

from functools import partial
from typing import Any

import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tinies.parts import HEADS, WIDTH, build, text_config, tiny_tokenizer
from unike.backbones.families.qwen_vl import QwenVL

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]

CLASSES = {"2": "Qwen2VL", "2_5": "Qwen2_5_VL", "3": "Qwen3VL"}
"""What each generation's classes in ``transformers`` begin with."""


def qwen(generation: str, seed: int = 0) -> QwenVL:
    tokenizer = tiny_tokenizer(SPECIALS, bos=False)
    ids = dict(zip(SPECIALS, tokenizer.convert_tokens_to_ids(SPECIALS), strict=True))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = getattr(transformers, f"{CLASSES[generation]}Config")(
        vision_config=vision_config(generation),
        text_config=text_config(tokenizer, head_dim=WIDTH // HEADS, rope_parameters=rope),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = build(lambda: getattr(transformers, f"{CLASSES[generation]}ForConditionalGeneration")(config), seed)
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 24 * 24}
    )
    return QwenVL(model, tokenizer, image_processor, source=f"tiny-qwen{generation}-vl")


def vision_config(generation: str) -> dict[str, Any]:
    shared = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    if generation == "2":
        return shared | {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    shared |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": WIDTH}
    if generation == "2_5":
        return shared | {"window_size": 16, "fullatt_block_indexes": [1]}
    return shared | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}


TINIES = {f"qwen{generation}_vl": partial(qwen, generation) for generation in CLASSES}
