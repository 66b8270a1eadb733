"""BLIP-2 (arXiv 2301.12597) with an OPT or LLaMA decoder.

A Q-Former turns an image into a fixed number of features. Two oddities of the implementation in ``transformers`` are
dealt with here: its forward pass insists on an image, so text alone goes to the language model; and its placeholders
come before the tokenizer's beginning-of-sequence token.

A config may bring its own ``prompt_template``, as that of a model does that was tuned on conversations afterwards.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.replica import replica
from unike.core.errors import UnikeError

TURN = "###"
"""What every turn begins with in the conversations that Vicuna was tuned on, and every answer therefore ends with."""


class Blip2(Backbone):
    """BLIP-2, InstructBLIP excluded (its Q-Former reads the question too)."""

    name: ClassVar[str] = "blip2"
    model_types: ClassVar[tuple[str, ...]] = ("blip-2",)
    mixes_images: ClassVar[bool] = False

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, **kwargs: Any) -> None:
        """Check the config too: a model may come from elsewhere than `from_pretrained`."""
        self.check_config(model.config, kwargs.get("source", "this model"))
        super().__init__(model, tokenizer, image_processor, **kwargs)

    @classmethod
    def check_config(cls, config: Any, source: str) -> None:
        """Refuse encoder-decoder language models and OPT with projected embeddings (opt-350m).

        The latter would run: the image's features, as wide as the decoder, are written into narrower embeddings, and
        rows get mixed up without a word.
        """
        text = config.text_config
        if not config.use_decoder_only_language_model:
            raise UnikeError(f"{source}: BLIP-2 with the encoder-decoder {text.model_type!r} is not supported; use OPT")
        projected = getattr(text, "word_embed_proj_dim", text.hidden_size)
        if projected != text.hidden_size:
            raise UnikeError(
                f"{source}: embeddings are {projected} wide but the decoder is {text.hidden_size} "
                "(word_embed_proj_dim); BLIP-2 mixes up images in such a model, so it is refused"
            )

    def default_template(self) -> str:
        """The config's own, or the one BLIP-2 is evaluated with on VQA."""
        return getattr(self.config, "prompt_template", None) or super().default_template()

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Pixels, and one placeholder for each query of the Q-Former."""
        text = self.image_token * self.config.num_query_tokens
        if self._image_leads:
            text += self.tokenizer.bos_token or ""
        return {"pixel_values": self._pixels(images)["pixel_values"]}, [text] * len(images)

    def answer_text(self, ids: Sequence[int]) -> str:
        """The first line; in a conversation, what comes before the word is given back."""
        text = super().answer_text(ids)
        return text.split(TURN, 1)[0].strip() if self.template.startswith(TURN) else text

    @property
    def _image_leads(self) -> bool:
        return self.template.startswith("{image}")

    def _adds_special_tokens(self, image_text: str) -> bool:
        return not (image_text and self._image_leads)

    @property
    def generator(self) -> Any:
        """The language model."""
        return self.model.language_model

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        if "pixel_values" in inputs:
            return super()._call(inputs)
        logits: Tensor = self.model.language_model(**inputs, use_cache=False).logits
        return logits

    def _generate(self, inputs: dict[str, Tensor], config: Any, **steering: Any) -> Tensor:
        language_model = replica(self.generator, generation_config=config)
        model = replica(self.model, modules={"language_model": language_model})
        answers = model if "pixel_values" in inputs else language_model
        ids: Tensor = answers.generate(**inputs, generation_config=config, **steering)
        return ids
