"""InstructBLIP (arXiv 2305.06500) with Vicuna: a BLIP-2 whose Q-Former reads the question too.

So the features of an image depend on what is asked about it. The Q-Former has a tokenizer of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

from unike.backbones.families import _tiny
from unike.backbones.families.blip2 import Blip2
from unike.backbones.loading import read_tokenizer
from unike.core.errors import UnikeError
from unike.data.queries import Query

QFORMER_TOKENIZER = "qformer_tokenizer"
"""Folder within a checkpoint."""


class InstructBlip(Blip2):
    """InstructBLIP with a decoder-only language model."""

    name: ClassVar[str] = "instructblip"
    model_types: ClassVar[tuple[str, ...]] = ("instructblip",)

    def __init__(self, *parts: Any, qformer_tokenizer: Any, **kwargs: Any) -> None:
        """As a `Backbone`, and the tokenizer of the Q-Former."""
        super().__init__(*parts, **kwargs)
        self.qformer_tokenizer = qformer_tokenizer

    @classmethod
    def read_processors(cls, source: str) -> dict[str, Any]:
        """The Q-Former's tokenizer, too."""
        own = {"qformer_tokenizer": read_tokenizer(source, subfolder=QFORMER_TOKENIZER)}
        return super().read_processors(source) | own

    @classmethod
    def processors_of(cls, processor: Any, source: str) -> dict[str, Any]:
        """The Q-Former's tokenizer, too."""
        own = getattr(processor, QFORMER_TOKENIZER, None)
        if own is None:
            raise UnikeError(f"{source}: the processor has no {QFORMER_TOKENIZER}; give an InstructBlipProcessor")
        return super().processors_of(processor, source) | {QFORMER_TOKENIZER: own}

    @property
    def processors(self) -> dict[str, Any]:
        """The Q-Former's tokenizer, too."""
        return super().processors | {"qformer_tokenizer": self.qformer_tokenizer}

    def save_pretrained(self, folder: str | Path) -> None:
        """As `read_processors` reads it."""
        super().save_pretrained(folder)
        self.qformer_tokenizer.save_pretrained(Path(folder) / QFORMER_TOKENIZER)

    def _read_images(self, queries: Sequence[Query]) -> tuple[dict[str, Tensor], list[str]]:
        inputs, texts = super()._read_images(queries)
        if queries:
            read = self.qformer_tokenizer(
                [self._fill(query.prompt.strip(), "").strip() for query in queries],
                padding=True,
                truncation=True,
                max_length=self.config.qformer_config.max_position_embeddings,
                return_tensors="pt",
            )
            inputs |= {f"qformer_{key}": read[key] for key in ("input_ids", "attention_mask")}
        return inputs, texts

    @classmethod
    def tiny(cls, seed: int = 0, text: str = "llama", **text_kwargs: Any) -> Self:
        """A random model with a LLaMA decoder.

        Args:
            seed: Of the weights.
            text: The decoder's family; there is but one.
            **text_kwargs: Further fields of its config.
        """
        from transformers import (
            InstructBlipConfig,
            InstructBlipForConditionalGeneration,
            InstructBlipQFormerConfig,
            InstructBlipVisionConfig,
            LlamaConfig,
        )
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        tokenizer: Any = _tiny.tiny_tokenizer(["<image>"])
        qformer_tokenizer: Any = _tiny.tiny_tokenizer()
        small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        config = InstructBlipConfig(
            vision_config=InstructBlipVisionConfig(
                **small, num_attention_heads=2, image_size=28, patch_size=14
            ).to_dict(),
            qformer_config=InstructBlipQFormerConfig(
                **small, vocab_size=len(qformer_tokenizer), num_attention_heads=2, encoder_hidden_size=16
            ).to_dict(),
            text_config=LlamaConfig(**_tiny.text_config(tokenizer, **text_kwargs)).to_dict(),
            num_query_tokens=4,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
        model = _tiny.build(lambda: InstructBlipForConditionalGeneration(config), seed)
        return cls(
            model,
            tokenizer,
            BlipImageProcessorPil(size={"height": 28, "width": 28}),
            qformer_tokenizer=qformer_tokenizer,
            source=f"tiny-instructblip-{text}",
        )

    @classmethod
    def tinies(cls) -> dict[str, Any]:
        """One."""
        return {cls.name: cls.tiny}
