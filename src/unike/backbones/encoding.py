"""From questions to tensors. The only place with images, templates, padding and labels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from unike.backbones import template as templates
from unike.backbones.forward.split import IGNORE, Batch
from unike.backbones.given import check_unicode, given_queries
from unike.backbones.sites import Parts
from unike.core.errors import UnikeError
from unike.core.images import load_image
from unike.core.memo import MemoOf
from unike.data.queries import Query

REFUSALS = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError)
"""What image processors raise for pictures they cannot take."""

_SIZES: MemoOf[tuple[int, int], None] = MemoOf()


class TooLong(UnikeError):
    """A query takes more tokens than a model reads."""


class Encoding(Parts):
    """A model with what turns text and images into what it reads.

    Args:
        model: As in `Parts`.
        tokenizer: Its fast tokenizer.
        image_processor: Its image processor.
        source: As in `Parts`.
        template: What stands around a question, as `unike.backbones.template` reads it; None for the family's own.

    Raises:
        UnikeError: As `Parts`; the tokenizer is slow, or the template is not usable.
    """

    name: ClassVar[str] = "base"
    mixes_images: ClassVar[bool] = True
    """Whether one batch may hold queries with and without an image."""

    append_eos: bool = True
    """Whether a target ends with the tokenizer's end-of-sequence token, so that an edit also learns to stop."""

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, *, source: str, template: str | None = None
    ) -> None:
        """Check what is needed to encode."""
        super().__init__(model, source)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        if not tokenizer.is_fast:
            raise UnikeError(f"{source}: a fast tokenizer is needed, to tell a target's tokens from the prompt's")
        self.template = templates.written(self.default_template() if template is None else template)
        self._tokens_per_image: dict[tuple[int, ...], int] = {}

    @property
    def turn_end(self) -> str:
        """What ends an answer that is not the last of a conversation."""
        return str(self.tokenizer.eos_token or "") if self.append_eos else ""

    def default_template(self) -> str:
        """The family's template."""
        return "{image}Question: {prompt} Short answer:"

    @property
    def chosen_template(self) -> str | None:
        """The template, a preset by its name; None for the family's own."""
        return None if self.template == self.default_template() else templates.named(self.template)

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that a visual feature replaces."""
        token_id = getattr(self.config, "image_token_id", None)
        if token_id is None:
            raise UnikeError(f"{self.source}: the config names no image token")
        return int(token_id)

    @property
    def image_token(self) -> str:
        """Text of the placeholder that a visual feature replaces."""
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        if token is None:
            raise UnikeError(f"{self.source}: the tokenizer does not know the image token {self.image_token_id}")
        return str(token)

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Turn images into what the model reads.

        Args:
            images: RGB images as PIL gives them, one for each query that has one.

        Returns:
            Keyword arguments of the model, and for each image the text that stands for it: the placeholder as often
            as the model has visual features for it, with whatever the family wraps around.

        The generic form fits families with one row of ``pixel_values`` for each image. How many features an image of
        this size has is asked of the model itself, once.
        """
        pixels = self._pixels(images)["pixel_values"]
        return {"pixel_values": pixels}, [self.image_token * self._count_features(row) for row in pixels]

    def _pixels(self, images: list[Any], **kwargs: Any) -> dict[str, Any]:
        """The image processor's tensors, on the model's device and in its dtype."""
        inputs = self.image_processor(images=images, return_tensors="pt", **kwargs)
        moved = {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        moved["pixel_values"] = moved["pixel_values"].to(self.dtype)
        return moved

    @torch.no_grad()
    def _count_features(self, pixels: Tensor) -> int:
        shape = tuple(pixels.shape)
        if shape not in self._tokens_per_image:
            features = self.model.get_image_features(pixel_values=pixels[None]).pooler_output
            self._tokens_per_image[shape] = sum(feature.reshape(-1, feature.shape[-1]).shape[0] for feature in features)
        return self._tokens_per_image[shape]

    def _sequence_inputs(self, input_ids: Tensor, prompt_last: Tensor, has_images: bool) -> dict[str, Tensor]:
        """Further keyword arguments of the model that follow from the tokens, ``[B, S]``, and where prompts end."""
        return {}

    def _adds_special_tokens(self, image_text: str) -> bool:
        """Whether the tokenizer puts its own special tokens around a text."""
        return True

    def encode(self, queries: Sequence[Query], *, padding_side: str = "right") -> Batch:
        """Turn queries into tensors. The only place with images, templates, padding and labels.

        Prompt and target are tokenised together, as one text, and told apart by their characters: tokenised on its own,
        ``"answer"`` would be another token than ``" answer"``.

        Args:
            queries: At least one.
            padding_side: ``"right"`` to score targets, ``"left"`` to generate.

        Returns:
            A batch on the model's device.

        Raises:
            UnikeError: No query, or something else; an image that cannot be read or is of a size that the processor
                refuses, an empty target, a prompt that is too long or holds a placeholder of its own, or queries with
                and without an image where the family cannot mix them.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is 'left' or 'right', not {padding_side!r}")
        queries = given_queries(queries)
        if not queries:
            raise UnikeError("there is nothing to encode: no query was given")
        with_image = [query for query in queries if query.image is not None]
        if with_image and len(with_image) < len(queries) and not self.mixes_images:
            raise UnikeError(
                f"{self.name} cannot mix queries with and without an image in one batch; encode them apart"
            )
        image_inputs, image_texts = self._read_images(with_image)
        texts = iter(image_texts)
        rows = [self.tokenize(query, next(texts) if query.image is not None else "") for query in queries]

        length = max(len(ids) for ids, _ in rows)
        self._check_length(length)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.full((len(rows), length), self.tokenizer.eos_token_id or 0 if pad is None else pad)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORE)
        prompt_last = torch.tensor([of_prompt for _, of_prompt in rows]) - 1
        for row, (ids, of_prompt) in enumerate(rows):
            start = length - len(ids) if padding_side == "left" else 0
            stop = start + len(ids)
            tokens = torch.tensor(ids)
            input_ids[row, start:stop] = tokens
            attention_mask[row, start:stop] = 1
            labels[row, start + of_prompt : stop] = tokens[of_prompt:]
            prompt_last[row] += start
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= self._sequence_inputs(input_ids, prompt_last, bool(with_image)) | image_inputs
        shown = input_ids == self.image_token_id if with_image else None
        asked = tuple(self.without_picture(ids[:of_prompt]) for ids, of_prompt in rows)
        return Batch(inputs, labels, prompt_last, asked, shown).to(self.device)

    def without_picture(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A prompt's tokens without the placeholders of visual features."""
        placeholder = getattr(self.config, "image_token_id", None)
        return tuple(token for token in ids if token != placeholder)

    def asked(self, tokens: Sequence[int]) -> str:
        """The question that a prompt asks, without the template around it.

        Args:
            tokens: Of the prompt, see `without_picture`. Of a conversation it is the last question.
        """
        text = self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = templates.parse(self.template).question_in(text)
        for token in {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}:
            text = text.replace(token, " ")
        return " ".join(text.split())

    def cue(self, pictured: bool) -> str:
        """The words between a question and its answer, as a text may repeat them: up to the first special token.

        What marks the turns of a conversation cannot stand within one.

        Args:
            pictured: Whether the question has a picture.
        """
        behind = templates.parse(self.template).cue(pictured)
        marks = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        return min((behind.partition(mark)[0] for mark in marks), key=len, default=behind)

    def check(self, query: Query) -> None:
        """Refuse a question that `encode` would refuse for its text; its picture is not read, nor an empty target.

        Raises:
            TooLong: As it says.
            UnikeError: It holds a placeholder, or is no Unicode.
        """
        check_unicode(query.prompt)
        target = query.target if (query.target or "").strip() else None
        ids, _ = self.tokenize(replace(query, target=target), "")
        self._check_length(len(ids))

    def _check_length(self, length: int) -> None:
        limit = getattr(self.text_config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise TooLong(f"a query takes {length} tokens, {self.source} reads at most {limit}")

    def extended(self, batch: Batch, tokens: Tensor) -> Batch:
        """The same batch with further tokens behind every row, as if they had been generated.

        Args:
            batch: From `encode`, padded on the left.
            tokens: ``[B, T]``.
        """
        pieces = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        inputs = batch.inputs | {key: torch.cat([batch.inputs[key], new], dim=1) for key, new in pieces.items()}
        inputs |= self._sequence_inputs(inputs["input_ids"], batch.prompt_last, "pixel_values" in inputs)
        labels = torch.cat([batch.labels, torch.full_like(tokens, IGNORE)], dim=1)
        return replace(batch, inputs=inputs, labels=labels)

    def _read_images(self, queries: Sequence[Query]) -> tuple[dict[str, Tensor], list[str]]:
        if not queries:
            return {}, []
        opened: dict[Path, Any] = {}
        for query in queries:
            if query.image is not None and query.image not in opened:
                opened[query.image] = load_image(query.image)
        try:
            return self.image_inputs([opened[query.image] for query in queries if query.image is not None])
        except REFUSALS:
            for path, image in opened.items():
                self._check_size(path, *image.size)
            raise  # each is read alone: something else is wrong

    def check_image(self, path: Path) -> None:
        """Refuse a picture that `encode` would refuse.

        Raises:
            UnikeError: It cannot be read, or the processor takes none of its size.
        """
        self._check_size(path, *load_image(path).size)

    def _check_size(self, path: Path, width: int, height: int) -> None:
        """Refuse a size that the processor does not take: of a picture in RGB it can dislike nothing else."""

        def check() -> None:
            self.image_processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")

        try:
            _SIZES.of(self).get((width, height), check)
        except REFUSALS as error:
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise UnikeError(
                f"image of a size that {self.source} cannot read: {path} has {width} x {height} pixels ({why[0]}); "
                "crop or scale it"
            ) from None

    def _fill(self, query: Query, image_text: str) -> str:
        """The template around each question of a conversation; ``image_text`` is empty where its image is left out."""
        template = templates.parse(self.template)
        text = f"{query.system.strip()}\n" if query.system.strip() else ""
        shown = None if query.image is None else image_text
        for turn in query.history:
            text += template.fill(turn.question.strip(), shown).rstrip(" ")
            text += ("" if text.endswith("\n") else " ") + f"{turn.answer.strip()}{self.turn_end}\n"
            shown = None if shown is None else ""
        return text + template.fill(query.prompt.strip(), shown)

    def tokenize(self, query: Query, image_text: str) -> tuple[list[int], int]:
        """Token ids of the whole row and how many of them are the prompt's."""
        self._check_placeholder(query)
        # A space before the target is the target's; a line break the template ends with stays with the prompt.
        prompt = self._fill(query, image_text).rstrip(" ")
        text = prompt
        if query.target is not None:
            if not query.target.strip():
                raise UnikeError(f"the target of {query.prompt!r} is empty")
            text = prompt + ("" if prompt.endswith("\n") else " ") + query.target.strip()
        encoded = self.tokenizer(
            text,
            add_special_tokens=self._adds_special_tokens(image_text),
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        eos = self.tokenizer.eos_token_id
        # Some tokenizers end every text with eos; a prompt must stay open, and a target gets its own below.
        while len(ids) > 1 and ids[-1] == eos and offsets[len(ids) - 1][0] == offsets[len(ids) - 1][1]:
            ids.pop()
        if query.target is None:
            return ids, len(ids)
        added = encoded["special_tokens_mask"]
        starts = (i for i in range(len(ids)) if offsets[i][0] >= len(prompt) and not added[i])
        prompt_length = next(starts, None)
        if prompt_length is None:
            raise UnikeError(f"the target {query.target!r} has no token of its own after the prompt {query.prompt!r}")
        if self.append_eos and eos is not None:
            ids.append(eos)
        return ids, prompt_length

    def _check_placeholder(self, query: Query) -> None:
        """Refuse a text that would stand for a picture.

        Raises:
            UnikeError: With the text, and what it is in the query.
        """
        said = [("the prompt", query.prompt), ("the target", query.target or ""), ("the system message", query.system)]
        for turn in query.history:
            said += [("an earlier question", turn.question), ("an earlier answer", turn.answer)]
        for what, text in said if self.config_has_image_token else ():
            if self.image_token in text:
                raise UnikeError(
                    f"{what} holds the image placeholder {self.image_token!r}, which stands for a picture: "
                    f"{text[:200]!r}; leave it out"
                )

    @property
    def config_has_image_token(self) -> bool:
        """Whether the config names a placeholder for images."""
        return getattr(self.config, "image_token_id", None) is not None
