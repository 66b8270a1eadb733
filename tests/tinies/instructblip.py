"""InstructBLIP with a LLaMA decoder."""

from typing import Any

from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tinies.parts import build, text_config, tiny_tokenizer
from unike.backbones.families.instructblip import InstructBlip


def instructblip(seed: int = 0) -> InstructBlip:
    tokenizer, qformer_tokenizer = tiny_tokenizer(["<image>"]), tiny_tokenizer()
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    qformer = InstructBlipQFormerConfig(**small, vocab_size=len(qformer_tokenizer), encoder_hidden_size=16)
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**small, image_size=28, patch_size=14).to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=LlamaConfig(**text_config(tokenizer)).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return InstructBlip(
        build(lambda: InstructBlipForConditionalGeneration(config), seed),
        tokenizer,
        BlipImageProcessorPil(size={"height": 28, "width": 28}),
        qformer_tokenizer=qformer_tokenizer,
        source="tiny-instructblip-llama",
    )


TINIES = {"instructblip": instructblip}
