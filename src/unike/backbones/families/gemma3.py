"""Gemma 3 (arXiv 2503.19786): a SigLIP tower, pooled to 256 features, and a decoder most of whose layers slide.

The features of one image attend to each other in both directions; they end before the question does, so what comes
before the prompt's end is the same under every edit that acts from there on.
"""

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.families import _tiny


class Gemma3(Backbone):
    """Gemma 3 with vision (4B and larger)."""

    name: ClassVar[str] = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)

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

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """A random model, whose layers slide and look at everything in turns."""
        from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        specials = ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>"]
        tokenizer: Any = _tiny.tiny_tokenizer(specials)
        begin, end, image, *_ = tokenizer.convert_tokens_to_ids(specials)
        head_dim = _tiny.WIDTH // _tiny.HEADS
        # The lowest looks at everything: the template's end alone is longer than the window.
        sliding = {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"] * 2}
        gemma = _tiny.text_config(tokenizer, head_dim=head_dim, query_pre_attn_scalar=head_dim, **sliding)
        make: Any = Gemma3Config  # its type stub lacks keywords
        config = make(
            vision_config=SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=16,
                patch_size=4,
                vision_use_head=False,
            ).to_dict(),
            text_config=Gemma3TextConfig(**gemma).to_dict(),
            mm_tokens_per_image=4,
            boi_token_index=begin,
            eoi_token_index=end,
            image_token_index=image,
        )
        model = _tiny.build(lambda: _tiny.amplified(Gemma3ForConditionalGeneration(config)), seed)
        image_processor = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
        return cls(model, tokenizer, image_processor, source="tiny-gemma3")
