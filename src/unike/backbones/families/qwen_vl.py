"""Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631).

An image keeps its own resolution, so the number of its placeholders follows from its grid of patches; positions are
three-dimensional, which the model derives from ``mm_token_type_ids``.
"""

from typing import Any, ClassVar

from torch import Tensor

from unike.backbones.adapter import Backbone


class QwenVL(Backbone):
    """The Qwen-VL models from the second generation on."""

    name: ClassVar[str] = "qwen_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")

    def default_template(self) -> str:
        """Qwen's chat format without a system message."""
        return (
            "<|im_start|>user\n{image}{prompt}\nAnswer with a single word or phrase.<|im_end|>\n<|im_start|>assistant\n"
        )

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Patches of all images in one line, and one placeholder for each merged square of them."""
        inputs = self._pixels(images)
        merged = inputs["image_grid_thw"].prod(dim=-1) // self.image_processor.merge_size**2
        before, after = self.tokenizer.convert_ids_to_tokens(
            [self.config.vision_start_token_id, self.config.vision_end_token_id]
        )
        texts = [f"{before}{self.image_token * count}{after}" for count in merged.tolist()]
        return {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}, texts

    def _sequence_inputs(self, input_ids: Tensor, prompt_last: Tensor, has_images: bool) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (input_ids == self.image_token_id).int()} if has_images else {}
