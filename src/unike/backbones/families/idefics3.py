"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299).

Large images are cut into tiles, each with its own placeholders.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.families import _tiny

FAKE, GLOBAL, END = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"


class Idefics3(Backbone):
    """Idefics3, SmolVLM and SmolVLM2 (images only)."""

    name: ClassVar[str] = "idefics3"
    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")

    def default_template(self) -> str:
        """The chat format; SmolVLM opens a turn with ``<|im_start|>``, Idefics3 with its tokenizer's own bos."""
        opening = "<|im_start|>" if "<|im_start|>" in self.tokenizer.get_vocab() else ""
        return opening + "User:{image}{prompt}\nAnswer with a single word or phrase." + END + "\nAssistant:"

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Tiles ``[images, tiles, 3, H, W]`` with a pixel mask, and each tile's placeholders and place in the grid."""
        inputs = self._pixels([[image] for image in images], return_row_col_info=True)
        grid = zip((row[0] for row in inputs["rows"]), (column[0] for column in inputs["cols"]), strict=True)
        texts = [self._image_text(int(rows), int(columns)) for rows, columns in grid]
        return {key: inputs[key] for key in ("pixel_values", "pixel_attention_mask") if key in inputs}, texts

    def _image_text(self, rows: int, columns: int) -> str:
        """What the processors of both families write for one image."""
        vision = self.config.vision_config
        tile = self.image_token * int((vision.image_size // vision.patch_size) ** 2 / self.config.scale_factor**2)
        text = ""
        for row in range(1, rows + 1):
            text += "".join(f"{FAKE}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
        return text + ("\n" if rows else "") + FAKE + GLOBAL + tile + FAKE

    @classmethod
    def tiny(cls, seed: int = 0, family: str = "idefics3") -> Self:
        """A random model that cuts an image into four tiles and an overview.

        Args:
            seed: Of the weights.
            family: ``"idefics3"`` or ``"smolvlm"``.
        """
        import transformers
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
        specials = ["<image>", FAKE, GLOBAL, END, *tiles, *(["<|im_start|>"] if family == "smolvlm" else [])]
        tokenizer: Any = _tiny.tiny_tokenizer(specials, bos=family == "idefics3")
        prefix, processor = {
            "idefics3": ("Idefics3", Idefics3ImageProcessorPil),
            "smolvlm": ("SmolVLM", SmolVLMImageProcessorPil),
        }[family]
        config = getattr(transformers, f"{prefix}Config")(
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
            },
            text_config={
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "hidden_size": _tiny.WIDTH,
                "intermediate_size": _tiny.FFN_WIDTH,
                "num_hidden_layers": _tiny.LAYERS,
                "num_attention_heads": _tiny.HEADS,
                "num_key_value_heads": _tiny.KV_HEADS,
                "max_position_embeddings": 512,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )
        model = _tiny.build(lambda: getattr(transformers, f"{prefix}ForConditionalGeneration")(config), seed)
        image_processor = processor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
        return cls(model, tokenizer, image_processor, source=f"tiny-{family}")

    @classmethod
    def tinies(cls) -> dict[str, Callable[..., Backbone]]:
        """One of each family."""

        def smolvlm(seed: int = 0) -> Backbone:
            return cls.tiny(seed, family="smolvlm")

        return {"idefics3": cls.tiny, "smolvlm": smolvlm}
