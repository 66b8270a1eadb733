"""``mini``: its glue around a random language model of 4 layers and a random, shallow EfficientNet.

Its pictures are smaller than those of the real one, or looking at them would cost more than all the rest.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, EfficientNetConfig, EfficientNetModel, LlamaConfig

from tinies.parts import WIDTH, build, text_config, tiny_tokenizer
from unike.backbones.families.mini import (
    FEATURES,
    IMAGE_TOKEN,
    LITE0,
    Connector,
    Mini,
    assemble,
    image_processor,
)


def mini(seed: int = 0) -> Mini:
    tokenizer = tiny_tokenizer(["<|im_start|>", IMAGE_TOKEN], bos=False)
    pictures = image_processor()
    pictures.size, pictures.crop_size = (
        {"shortest_edge": 64},
        {"height": 64, "width": 64},
    )  # or they cost more than the rest
    return Mini(build(lambda: glued(tokenizer), seed), tokenizer, pictures, source="tiny-mini")


def glued(tokenizer: Any) -> Any:
    adapter = {
        **{f"connector.{k}": v for k, v in Connector(16).state_dict().items()},
        "projector.weight": torch.zeros(WIDTH, FEATURES + 16),
        "projector.bias": torch.zeros(WIDTH),
    }
    encoder = EfficientNetModel(EfficientNetConfig(**{**LITE0, "depth_coefficient": 0.1})).eval()
    llm = AutoModelForCausalLM.from_config(LlamaConfig(**text_config(tokenizer, bos_token_id=None)))
    return assemble(llm, tokenizer, encoder, adapter)[0]


TINIES = {"mini": mini}
