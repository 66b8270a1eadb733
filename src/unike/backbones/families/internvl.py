"""InternVL3 (arXiv 2504.10479) as ``transformers`` has it (checkpoints ``OpenGVLab/InternVL3-*-hf``).

Large images are cut into tiles, followed by a thumbnail; all of them are rows of ``pixel_values``.
"""

from typing import Any, ClassVar

from torch import Tensor

from unike.backbones.adapter import Backbone


class InternVL(Backbone):
    """InternVL3, images only."""

    name: ClassVar[str] = "internvl"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)

    def default_template(self) -> str:
        """Its chat format, with the instruction for short answers that its authors evaluate it with."""
        return (
            "<|im_start|>user\n{image}{prompt}\nAnswer the question using a single word or phrase.<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Tiles of all images in one line, and for each image the placeholders of all its tiles between two marks."""
        inputs = self._pixels(images, crop_to_patches=True)
        tile = self.image_token * self._count_features(inputs["pixel_values"][0])
        texts = [f"<img>{tile * count}</img>\n" for count in inputs["num_patches"].tolist()]
        return {"pixel_values": inputs["pixel_values"]}, texts
