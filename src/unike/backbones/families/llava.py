"""LLaVA (arXiv 2310.03744): a CLIP tower, a small projector and a LLaMA decoder."""

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.families import _tiny


class Llava(Backbone):
    """LLaVA 1.5 and others in its format."""

    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def default_template(self) -> str:
        """The conversation format LLaVA 1.5 was tuned on, with its instruction for short answers."""
        return "USER: {image}{prompt}\nAnswer the question using a single word or phrase. ASSISTANT:"

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Pixels, and one placeholder for each patch, closed by a line break."""
        inputs, texts = super().image_inputs(images)
        return inputs, [text + "\n" for text in texts]

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """A random model that sees an image as 4 patches."""
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        tokenizer: Any = _tiny.tiny_tokenizer(["<image>"])
        config = LlavaConfig(  # type: ignore[call-arg]
            vision_config=CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=28,
                patch_size=14,
            ).to_dict(),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=_tiny.WIDTH,
                intermediate_size=_tiny.FFN_WIDTH,
                num_hidden_layers=_tiny.LAYERS,
                num_attention_heads=_tiny.HEADS,
                num_key_value_heads=_tiny.KV_HEADS,
                max_position_embeddings=512,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            ).to_dict(),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )
        model = _tiny.build(lambda: LlavaForConditionalGeneration(config), seed)
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        return cls(model, tokenizer, image_processor, source="tiny-llava")
