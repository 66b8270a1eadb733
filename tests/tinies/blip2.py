"""BLIP-2 with either decoder."""

from typing import Any

from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    OPTConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tinies.parts import FFN_WIDTH, WIDTH, build, text_config, tiny_tokenizer
from unike.backbones.families.blip2 import Blip2


def opt(seed: int = 0, **text: Any) -> Blip2:
    tokenizer = tiny_tokenizer(["<image>"])
    shared = text_config(tokenizer)
    for name in ("intermediate_size", "num_key_value_heads"):  # of LLaMA; OPT has other names, or nothing of the kind
        del shared[name]
    own = {"ffn_dim": FFN_WIDTH, "word_embed_proj_dim": WIDTH, "dropout": 0.1}
    return around(tokenizer, OPTConfig(**(shared | own | text)), seed, source="tiny-blip2-opt")


def llama(seed: int = 0, **text: Any) -> Blip2:
    tokenizer = tiny_tokenizer(["<image>"])
    return around(tokenizer, LlamaConfig(**text_config(tokenizer, **text)), seed, source="tiny-blip2-llama")


def around(tokenizer: Any, decoder: Any, seed: int, source: str) -> Blip2:
    """The same vision tower and Q-Former for both."""
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**small, image_size=28, patch_size=14).to_dict(),
        qformer_config=Blip2QFormerConfig(**small, vocab_size=8, encoder_hidden_size=16).to_dict(),
        text_config=decoder.to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = build(lambda: Blip2ForConditionalGeneration(config), seed)
    return Blip2(model, tokenizer, BlipImageProcessorPil(size={"height": 28, "width": 28}), source=source)


TINIES = {"blip2-opt": opt, "blip2-llama": llama}
