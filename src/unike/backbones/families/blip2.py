"""BLIP-2 (arXiv 2301.12597) with an OPT or LLaMA decoder, and MiniGPT-4 (arXiv 2304.10592), which is one with Vicuna.

A Q-Former turns an image into a fixed number of features. Two oddities of the implementation in ``transformers`` are
dealt with here: its forward pass insists on an image, so text alone goes to the language model; and its placeholders
come before the tokenizer's beginning-of-sequence token.

A config may bring its own ``prompt_template``; `unike.backbones.convert.minigpt4` writes MiniGPT-4's there.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.families import _tiny
from unike.backbones.forward.replica import replica
from unike.core.errors import UnikeError

MINIGPT4_TEMPLATE = "###Human: <Img>{image}</Img> {prompt} ###Assistant:"
"""The conversation that MiniGPT-4 was tuned on in its second stage (section 3.3)."""

TURN = "###"
"""What every turn of that conversation begins with, and every answer of MiniGPT-4 therefore ends with."""


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
        """The first line; of MiniGPT-4, what comes before it gives the word back."""
        text = super().answer_text(ids)
        return text.split(TURN, 1)[0].strip() if self.template.startswith(TURN) else text

    @property
    def _image_leads(self) -> bool:
        return self.template.startswith("{image}")

    def _adds_special_tokens(self, image_text: str) -> bool:
        return not (image_text and self._image_leads)

    def _fill(self, prompt: str, image_text: str) -> str:
        """Without an image, the tags that MiniGPT-4 has around it are left out too."""
        template = self.template if image_text else self.template.replace("<Img>{image}</Img> ", "{image}")
        return template.format(image=image_text, prompt=prompt)

    @property
    def generator(self) -> Any:
        """The language model."""
        return self.model.language_model

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        if "pixel_values" in inputs:
            return super()._call(inputs)
        logits: Tensor = self.model.language_model(**inputs, use_cache=False).logits
        return logits

    def _generate(self, inputs: dict[str, Tensor], config: Any) -> Tensor:
        language_model = replica(self.generator, generation_config=config)
        model = replica(self.model, modules={"language_model": language_model})
        answers = model if "pixel_values" in inputs else language_model
        ids: Tensor = answers.generate(**inputs, generation_config=config)
        return ids

    @classmethod
    def tiny(cls, seed: int = 0, text: str = "opt", **text_kwargs: Any) -> Self:
        """A random model with an OPT (or ``text="llama"``) decoder.

        Args:
            seed: Of the weights.
            text: The decoder's family.
            **text_kwargs: Further fields of its config.
        """
        from transformers import (
            Blip2Config,
            Blip2ForConditionalGeneration,
            Blip2QFormerConfig,
            Blip2VisionConfig,
            LlamaConfig,
            OPTConfig,
        )
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        tokenizer: Any = _tiny.tiny_tokenizer(["<image>"])
        shared: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": _tiny.WIDTH,
            "num_hidden_layers": _tiny.LAYERS,
            "num_attention_heads": _tiny.HEADS,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        if text == "opt":
            opt = {"ffn_dim": _tiny.FFN_WIDTH, "word_embed_proj_dim": _tiny.WIDTH, "dropout": 0.1}
            text_config: Any = OPTConfig(**(shared | opt | text_kwargs))
        else:
            llama = {"intermediate_size": _tiny.FFN_WIDTH, "num_key_value_heads": _tiny.KV_HEADS}
            text_config = LlamaConfig(**(shared | llama | text_kwargs))
        small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        config = Blip2Config(
            vision_config=Blip2VisionConfig(**small, num_attention_heads=2, image_size=28, patch_size=14).to_dict(),
            qformer_config=Blip2QFormerConfig(
                **small, vocab_size=8, num_attention_heads=2, encoder_hidden_size=16
            ).to_dict(),
            text_config=text_config.to_dict(),
            num_query_tokens=4,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
        model = _tiny.build(lambda: Blip2ForConditionalGeneration(config), seed)
        image_processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
        return cls(model, tokenizer, image_processor, source=f"tiny-blip2-{text}")

    @classmethod
    def tinies(cls) -> dict[str, Callable[..., Backbone]]:
        """One of each decoder family."""

        def llama(seed: int = 0) -> Backbone:
            return cls.tiny(seed, text="llama")

        return {"blip2-opt": cls.tiny, "blip2-llama": llama}
