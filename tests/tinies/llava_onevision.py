"""LLaVA-OneVision that reads an image as a whole and in two tiles."""

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from tinies.parts import build, text_config, tiny_tokenizer
from unike.backbones.families.llava_onevision import LlavaOnevision


def llava_onevision(seed: int = 0) -> LlavaOnevision:
    tokenizer = tiny_tokenizer(["<image>", "<video>", "<|im_start|>", "<|im_end|>"], bos=False)
    grid = [[8, 16], [16, 8]]
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=Qwen2Config(**text_config(tokenizer)).to_dict(),
        image_grid_pinpoints=grid,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    model = build(lambda: LlavaOnevisionForConditionalGeneration(config), seed)
    image_processor = LlavaOnevisionImageProcessorPil(size={"height": 8, "width": 8}, image_grid_pinpoints=grid)
    return LlavaOnevision(model, tokenizer, image_processor, source="tiny-llava-onevision")


TINIES = {"llava_onevision": llava_onevision}
