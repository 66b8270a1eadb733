"""Gemma 3 whose layers slide and look at everything in turns."""

from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tinies.parts import HEADS, WIDTH, amplified, build, text_config, tiny_tokenizer
from unike.backbones.families.gemma3 import Gemma3


def gemma3(seed: int = 0) -> Gemma3:
    specials = ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = tiny_tokenizer(specials)
    begin, end, image, *_ = tokenizer.convert_tokens_to_ids(specials)
    head_dim = WIDTH // HEADS
    # The lowest looks at everything: the template's end alone is longer than the window.
    sliding = {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"] * 2}
    text = text_config(tokenizer, head_dim=head_dim, query_pre_attn_scalar=head_dim, **sliding)
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        vision_use_head=False,
    )
    config = Gemma3Config(
        vision_config=vision.to_dict(),
        text_config=Gemma3TextConfig(**text).to_dict(),
        mm_tokens_per_image=4,
        boi_token_index=begin,
        eoi_token_index=end,
        image_token_index=image,
    )
    model = build(lambda: amplified(Gemma3ForConditionalGeneration(config)), seed)
    return Gemma3(model, tokenizer, Gemma3ImageProcessorPil(size={"height": 16, "width": 16}), source="tiny-gemma3")


TINIES = {"gemma3": gemma3}
