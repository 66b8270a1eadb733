"""InternVL that cuts an oblong image in two."""

from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tinies.parts import build, text_config, tiny_tokenizer
from unike.backbones.families.internvl import InternVL


def internvl(seed: int = 0) -> InternVL:
    specials = ["<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tiny_tokenizer(specials, bos=False)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text_config(tokenizer)).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )
    model = build(lambda: InternVLForConditionalGeneration(config), seed)
    image_processor = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=2)
    return InternVL(model, tokenizer, image_processor, source="tiny-internvl")


TINIES = {"internvl": internvl}
