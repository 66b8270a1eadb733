"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): a SigLIP tower and a Gemma decoder.

A prefix language model: image and prompt attend to each other in both directions, the answer to what is before it. So
what an edit does at the prompt's end also moves, one layer up, what was read before it, and no part of a prompt can be
finished once for all edits.
"""

from typing import ClassVar

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.template import parse


class PaliGemma(Backbone):
    """PaliGemma and PaliGemma 2; those called ``mix`` answer questions as they come."""

    name: ClassVar[str] = "paligemma"
    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    reads_prompts_both_ways: ClassVar[bool] = True

    def default_template(self) -> str:
        """Its task syntax for questions, in English."""
        return "{image}" + self.tokenizer.bos_token + "answer en {prompt}\n"

    def _adds_special_tokens(self, image_text: str) -> bool:
        around = parse(self.template).around(bool(image_text))
        return self.tokenizer.bos_token not in around  # it comes after the image, and not twice

    def _sequence_inputs(self, input_ids: Tensor, prompt_last: Tensor, has_images: bool) -> dict[str, Tensor]:
        """0 within the prompt, 1 in the answer."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return {"token_type_ids": (positions > prompt_last[:, None]).long()}
