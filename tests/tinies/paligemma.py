"""PaliGemma 2 whose layers slide and look at everything in turns."""

from transformers import Gemma2Config, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tinies.parts import HEADS, WIDTH, amplified, build, text_config, tiny_tokenizer
from unike.backbones.families.paligemma import PaliGemma


def paligemma(seed: int = 0) -> PaliGemma:
    tokenizer = tiny_tokenizer(["<image>"])
    head_dim = WIDTH // HEADS
    text = text_config(tokenizer, head_dim=head_dim, query_pre_attn_scalar=head_dim, sliding_window=16)
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        vision_use_head=False,
    )
    config = PaliGemmaConfig(
        vision_config=vision.to_dict(),
        text_config=Gemma2Config(**text).to_dict(),
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = build(lambda: amplified(PaliGemmaForConditionalGeneration(config)), seed)
    image_processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    return PaliGemma(model, tokenizer, image_processor, source="tiny-paligemma2")


TINIES = {"paligemma": paligemma}
