"""InternVL3 (arXiv 2504.10479) as ``transformers`` has it (checkpoints ``OpenGVLab/InternVL3-*-hf``).

Large images are cut into tiles, followed by a thumbnail; all of them are rows of ``pixel_values``.
"""

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.families import _tiny


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

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """A random model that cuts an oblong image in two."""
        from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

        specials = ["<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>"]
        tokenizer: Any = _tiny.tiny_tokenizer(specials, bos=False)
        make: Any = InternVLConfig  # its type stub lacks keywords
        config = make(
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
            },
            text_config=Qwen2Config(**_tiny.text_config(tokenizer)).to_dict(),
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        )
        model = _tiny.build(lambda: InternVLForConditionalGeneration(config), seed)
        image_processor = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=2)
        return cls(model, tokenizer, image_processor, source="tiny-internvl")
