"""LLaVA (arXiv 2310.03744): a CLIP tower, a small projector and a LLaMA decoder."""

from typing import Any, ClassVar

from torch import Tensor

from unike.backbones.adapter import Backbone


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
