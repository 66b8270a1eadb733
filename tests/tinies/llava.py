"""LLaVA that sees an image as 4 patches."""

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tinies.parts import build, text_config, tiny_tokenizer
from unike.backbones.families.llava import Llava


def llava(seed: int = 0) -> Llava:
    tokenizer = tiny_tokenizer(["<image>"])
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=LlamaConfig(**text_config(tokenizer)).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = build(lambda: LlavaForConditionalGeneration(config), seed)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return Llava(model, tokenizer, image_processor, source="tiny-llava")


TINIES = {"llava": llava}
