"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299).

Large images are cut into tiles, each with its own placeholders.
"""

from typing import Any, ClassVar

from torch import Tensor

from unike.backbones.adapter import Backbone

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
