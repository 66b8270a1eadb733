"""Gemma 3 (arXiv 2503.19786): a SigLIP tower, pooled to 256 features, and a decoder most of whose layers slide.

The features of one image attend to each other in both directions; they end before the question does, so what comes
before the prompt's end is the same under every edit that acts from there on.
"""

from typing import Any, ClassVar

from torch import Tensor

from unike.backbones.adapter import Backbone


class Gemma3(Backbone):
    """Gemma 3 with vision (4B and larger)."""

    name: ClassVar[str] = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)

    @property
    def turn_end(self) -> str:
        """Of its chat format."""
        return "<end_of_turn>"

    def default_template(self) -> str:
        """Its chat format; the tokenizer begins it with its own bos."""
        return (
            "<start_of_turn>user\n{image}{prompt}\nAnswer with a single word or phrase.<end_of_turn>\n"
            "<start_of_turn>model\n"
        )

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Pixels, and the placeholders between two marks, in a paragraph of their own. Nothing is cropped."""
        pixels = self._pixels(images, do_pan_and_scan=False)["pixel_values"]
        before, after = self.tokenizer.convert_ids_to_tokens([self.config.boi_token_id, self.config.eoi_token_id])
        text = f"\n\n{before}{self.image_token * self.config.mm_tokens_per_image}{after}\n\n"
        return {"pixel_values": pixels}, [text] * len(images)

    def _sequence_inputs(self, input_ids: Tensor, prompt_last: Tensor, has_images: bool) -> dict[str, Tensor]:
        """1 for images, 0 for text; given for text alone, too, so that masks have one form."""
        return {"token_type_ids": (input_ids == self.image_token_id).long()}
