"""LLaVA-OneVision (arXiv 2408.03326): a SigLIP tower, a projector and a Qwen2 decoder.

An image is read once as a whole and once in tiles (``anyres``), whose features end each row with a learned line break.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone


class LlavaOnevision(Backbone):
    """LLaVA-OneVision, images only."""

    name: ClassVar[str] = "llava_onevision"
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)

    def default_template(self) -> str:
        """Its chat format, with the instruction for short answers that LLaVA was tuned on."""
        return (
            "<|im_start|>user\n{image}{prompt}\nAnswer the question using a single word or phrase.<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Tiles ``[images, tiles, 3, H, W]`` with the images' sizes, and one placeholder for each packed feature."""
        inputs = self._pixels(images)
        texts = [self.image_token * self._count_packed(size) + "\n" for size in inputs["image_sizes"]]
        return {key: inputs[key] for key in ("pixel_values", "image_sizes", "batch_num_images")}, texts

    def _count_packed(self, size: Tensor) -> int:
        """How many features an image of a size ``[2]`` has: the model's own packing, of features of width 1."""
        from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

        vision = self.config.vision_config
        shape = tuple(size.tolist())
        if shape not in self._tokens_per_image:
            tiles = image_size_to_num_patches(list(shape), self.config.image_grid_pinpoints, vision.image_size)
            features = torch.zeros(tiles, (vision.image_size // vision.patch_size) ** 2, 1)
            packed, _ = self.model.model.pack_image_features(
                [features], size[None].cpu(), torch.zeros(1), self.config.vision_aspect_ratio
            )
            self._tokens_per_image[shape] = len(packed[0])
        return self._tokens_per_image[shape]
