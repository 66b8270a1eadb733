"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): a SigLIP tower and a Gemma decoder.

A prefix language model: image and prompt attend to each other in both directions, the answer to what is before it. So
what an edit does at the prompt's end also moves, one layer up, what was read before it, and no part of a prompt can be
finished once for all edits.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.families import _tiny


class PaliGemma(Backbone):
    """PaliGemma and PaliGemma 2; those called ``mix`` answer questions as they come."""

    name: ClassVar[str] = "paligemma"
    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    reads_prompts_both_ways: ClassVar[bool] = True

    def default_template(self) -> str:
        """Its task syntax for questions, in English."""
        return "{image}" + self.tokenizer.bos_token + "answer en {prompt}\n"

    def _adds_special_tokens(self, image_text: str) -> bool:
        return self.tokenizer.bos_token not in self.template  # it comes after the image, and not twice

    def _sequence_inputs(self, input_ids: Tensor, prompt_last: Tensor, has_images: bool) -> dict[str, Tensor]:
        """0 within the prompt, 1 in the answer."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return {"token_type_ids": (positions > prompt_last[:, None]).long()}

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """A random PaliGemma 2, whose layers slide and look at everything in turns."""
        from transformers import (
            Gemma2Config,
            PaliGemmaConfig,
            PaliGemmaForConditionalGeneration,
            SiglipVisionConfig,
        )
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        tokenizer: Any = _tiny.tiny_tokenizer(["<image>"])
        head_dim = _tiny.WIDTH // _tiny.HEADS
        gemma = _tiny.text_config(tokenizer, head_dim=head_dim, query_pre_attn_scalar=head_dim, sliding_window=16)
        make: Any = PaliGemmaConfig  # its type stub lacks keywords
        config = make(
            vision_config=SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
                vision_use_head=False,
            ).to_dict(),
            text_config=Gemma2Config(**gemma).to_dict(),
            projection_dim=_tiny.WIDTH,
            hidden_size=_tiny.WIDTH,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
        model = _tiny.build(lambda: _tiny.amplified(PaliGemmaForConditionalGeneration(config)), seed)
        image_processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
        return cls(model, tokenizer, image_processor, source="tiny-paligemma2")
