"""InstructBLIP (arXiv 2305.06500) with Vicuna: a BLIP-2 whose Q-Former reads the question too.

So the features of an image depend on what is asked about it. The Q-Former has a tokenizer of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

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
    def read_processors(cls, source: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
        """The Q-Former's tokenizer, too."""
        own = read_tokenizer(source, trust_remote_code=trust_remote_code, subfolder=QFORMER_TOKENIZER)
        return super().read_processors(source, trust_remote_code=trust_remote_code) | {QFORMER_TOKENIZER: own}

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
                [self._fill(query, "").strip() for query in queries],
                padding=True,
                truncation=True,
                max_length=self.config.qformer_config.max_position_embeddings,
                return_tensors="pt",
            )
            inputs |= {f"qformer_{key}": read[key] for key in ("input_ids", "attention_mask")}
        return inputs, texts
