"""Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631).

An image keeps its own resolution, so the number of its placeholders follows from its grid of patches; positions are
three-dimensional, which the model derives from ``mm_token_type_ids``.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.families import _tiny


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

    @classmethod
    def tiny(cls, seed: int = 0, generation: str = "2_5") -> Self:
        """A random model.

        Args:
            seed: Of the weights.
            generation: ``"2"``, ``"2_5"`` or ``"3"``.
        """
        import transformers
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        specials = [
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ]
        tokenizer: Any = _tiny.tiny_tokenizer(specials, bos=False)
        ids = dict(zip(specials, tokenizer.convert_tokens_to_ids(specials), strict=True))
        vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
        if generation == "2":
            vision |= {"embed_dim": 16, "hidden_size": _tiny.WIDTH, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": _tiny.WIDTH}
        if generation == "2_5":
            vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        if generation == "3":
            vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
        family = {"2": "Qwen2VL", "2_5": "Qwen2_5_VL", "3": "Qwen3VL"}[generation]
        config = getattr(transformers, f"{family}Config")(
            vision_config=vision,
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": _tiny.WIDTH,
                "intermediate_size": _tiny.FFN_WIDTH,
                "num_hidden_layers": _tiny.LAYERS,
                "num_attention_heads": _tiny.HEADS,
                "num_key_value_heads": _tiny.KV_HEADS,
                "head_dim": _tiny.WIDTH // _tiny.HEADS,
                "max_position_embeddings": 512,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
        model = _tiny.build(lambda: getattr(transformers, f"{family}ForConditionalGeneration")(config), seed)
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 24 * 24}
        )
        return cls(model, tokenizer, image_processor, source=f"tiny-qwen{generation}-vl")

    @classmethod
    def tinies(cls) -> dict[str, Callable[..., Backbone]]:
        """One of each generation."""

        def make(generation: str) -> Callable[..., Backbone]:
            return lambda seed=0: cls.tiny(seed, generation)

        return {f"qwen{generation}_vl": make(generation) for generation in ("2", "2_5", "3")}
