"""The adapter every family shares: encoding, the split forward, generation, and where a model keeps its parts.

Most vision-language models in ``transformers`` are a vision tower whose features replace the embeddings of
placeholder tokens, followed by an ordinary decoder. `Backbone` finds the decoder by its shape, not by its name, so a
new family usually has to say only how an image turns into tensors and placeholder tokens (`Backbone.image_inputs`).

The split forward is what makes editing fast: everything below the lowest edited layer is frozen, so it is computed
once for each input (`Backbone.run_to_split`) and the rest is replayed as often as an edit needs
(`Backbone.run_from_split`).
"""

import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from typing_extensions import Self

from unike.backbones.forward.context import Prefill
from unike.backbones.forward.functional import distinct
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, first_input, inject, text_input, trace
from unike.backbones.forward.split import IGNORE, Batch, SplitState
from unike.core.errors import UnikeError
from unike.data.queries import Query

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SPLIT = "split"
"""The device of a model that is spread over all there are."""

QUANTIZED = ("8bit", "4bit")

TWO_WAY = ("deepseek_ocr2", "diffusion_gemma", "gemma4", "gemma4_unified", "git", "molmo2", "pi0", "step3p7")
"""Model types whose masks depend on more inputs than the generic adapter gives; they would run, and answer wrongly."""


@dataclass(frozen=True)
class FFNSite:
    """Where a layer's feed-forward network can be read and changed.

    Args:
        inputs: The module whose first input is the network's input ``q``: ``[B, S, D]``, in OPT flattened to ``[B *
            S, D]``.
        outputs: The module whose output is the network's output, in the same shape; an edit adds to it.
        matrices: The linear maps by their own names: ``fc1, fc2`` or ``gate_proj, up_proj, down_proj``.
        gated: Whether the network is gated (three matrices).
    """

    inputs: nn.Module
    outputs: nn.Module
    matrices: dict[str, nn.Linear]
    gated: bool


@dataclass(frozen=True)
class AttentionSite:
    """The parts of a layer's self-attention.

    Args:
        module: The attention; it is given ``hidden_states`` by keyword and returns ``(output, weights)``.
        q_proj: ``D -> n_heads * head_dim``.
        k_proj: ``D -> n_kv_heads * head_dim``.
        v_proj: ``D -> n_kv_heads * head_dim``.
        o_proj: ``n_heads * head_dim -> D``.
        q_norm: Norm of each query head, or None.
        k_norm: Norm of each key head, or None.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        head_dim: Width of a head.
        scale: What query-key products are multiplied with.
    """

    module: nn.Module
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float


class Backbone:
    """A vision-language model that can be edited.

    The model is frozen and in eval mode from here on; edits are hooks beside it and never change a weight.

    Args:
        model: A ``transformers`` model for image-text-to-text.
        tokenizer: Its fast tokenizer.
        image_processor: Its image processor.
        source: ``"mini"``, a hub id or a folder: where the model came from.
        template: Text around a question, with ``{prompt}`` and, where the image goes, ``{image}``; None for the
            family's own.

    Raises:
        UnikeError: The model has no decoder of a known shape, the tokenizer is slow, or the template is not usable.
    """

    name: ClassVar[str] = "base"
    model_types: ClassVar[tuple[str, ...]] = ()
    mixes_images: ClassVar[bool] = True
    """Whether one batch may hold queries with and without an image."""
    reads_prompts_both_ways: ClassVar[bool] = False
    """Whether a prompt's tokens see those after them, so that nothing of a prompt is settled before its end."""

    append_eos: bool = True
    """Whether a target ends with the tokenizer's end-of-sequence token, so that an edit also learns to stop."""

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, *, source: str, template: str | None = None
    ) -> None:
        """Freeze the model and make sure that it is one that can be edited."""
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.source = source
        if not tokenizer.is_fast:
            raise UnikeError(f"{source}: a fast tokenizer is needed, to tell a target's tokens from the prompt's")
        self.template = self.default_template() if template is None else template
        _check_template(self.template)
        self.text_stack = _find_text_stack(model, source)
        self.edits: list[Sized] = []  # what is attached at present, oldest first; kept by `Edit.attached`
        self.prefill: Prefill | None = None  # where the prompts end that are being read or continued; None at rest
        self.notes: dict[str, list[Tensor]] = {}  # of the latest pass, see `Prefill.note`
        self._tokens_per_image: dict[tuple[int, ...], int] = {}
        for find in (self.ffn, self.attention, self.input_norm):
            find(0)  # an unknown layer is refused here, not in the middle of an edit

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        template: str | None = None,
    ) -> Self:
        """Load a model with this adapter; `unike.backbones.load_backbone` also chooses the adapter.

        Args:
            source: A folder or a hub id.
            device: As in `load_backbone`.
            dtype: As in `load_backbone`.
            quantize: As in `load_backbone`.
            template: As in `Backbone`.

        Raises:
            UnikeError: The source cannot be read or the model cannot be edited.
        """
        import transformers

        auto: Any = transformers  # its classes are only partly typed

        source = str(source)
        placement = resolve_placement(device, dtype, quantize)
        config = read_config(source)
        cls.check_config(config, source)
        processors = cls.read_processors(source)
        with _reading(source):
            model = auto.AutoModelForImageTextToText.from_pretrained(source, config=config, **placement)
        return cls(model, **processors, source=source, template=template)

    @classmethod
    def read_processors(cls, source: str) -> dict[str, Any]:
        """What turns text and images into tensors, by the names of the constructor's arguments."""
        return {"tokenizer": read_tokenizer(source), "image_processor": read_image_processor(source)}

    @property
    def processors(self) -> dict[str, Any]:
        """What `read_processors` has read."""
        return {"tokenizer": self.tokenizer, "image_processor": self.image_processor}

    def around(self, model: Any) -> Self:
        """This adapter around another model of the family."""
        return type(self)(model, **self.processors, source=self.source, template=self.template)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and image processor, so that `load_backbone` reads them back."""
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(folder)

    @classmethod
    def check_config(cls, config: Any, source: str) -> None:
        """Refuse a model this family cannot handle before its weights are read.

        Raises:
            UnikeError: What is wrong with it.
        """
        if config.model_type in TWO_WAY:
            raise UnikeError(
                f"{source}: {config.model_type} reads images with two-way attention; it has no adapter yet"
            )

    # ------------------------------------------------------------------ the model's parts

    @property
    def config(self) -> Any:
        """The whole model's config."""
        return self.model.config

    @property
    def text_config(self) -> Any:
        """The decoder's config."""
        return self.config.get_text_config(decoder=True)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, lowest first."""
        layers: nn.ModuleList = self.text_stack.layers
        return layers

    @property
    def head(self) -> nn.Linear:
        """The map from the final hidden state to logits."""
        head: nn.Linear = self.model.get_output_embeddings()
        return head

    @property
    def n_layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """D."""
        return self.head.weight.shape[1]

    @property
    def vocab_size(self) -> int:
        """V, the number of logits (it may exceed the tokenizer's vocabulary)."""
        return self.head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the head computes; of a model on several devices, where queries are put and patches are made."""
        offloaded_to = getattr(getattr(self.head, "_hf_hook", None), "execution_device", None)
        return self.head.weight.device if offloaded_to is None else torch.device(offloaded_to)

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return self.head.weight.dtype

    @property
    def quantize(self) -> str | None:
        """One of `QUANTIZED`, if matrices are kept in so many bits."""
        config = getattr(self.config, "quantization_config", None)
        return next((bits for bits in QUANTIZED if getattr(config, f"load_in_{bits}", False)), None)

    def layer_index(self, i: int) -> int:
        """A layer counted from 0; negative numbers count from the top, -1 being the last.

        Raises:
            UnikeError: There is no such layer.
        """
        if not -self.n_layers <= i < self.n_layers:
            raise UnikeError(f"layer {i} is out of range: {self.source} has {self.n_layers} layers")
        return i % self.n_layers

    def ffn(self, i: int) -> FFNSite:
        """The feed-forward network of layer ``i``."""
        layer: Any = self.layers[self.layer_index(i)]
        if hasattr(layer, "fc1") and hasattr(layer, "fc2"):
            return FFNSite(layer.fc1, layer.fc2, {"fc1": layer.fc1, "fc2": layer.fc2}, gated=False)
        mlp = getattr(layer, "mlp", None)
        names = ("gate_proj", "up_proj", "down_proj")
        if mlp is None or not all(hasattr(mlp, name) for name in names):
            raise UnikeError(f"{self.source}: feed-forward of {type(layer).__name__} is neither fc1/fc2 nor gated")
        return FFNSite(mlp, mlp, {name: getattr(mlp, name) for name in names}, gated=True)

    def attention(self, i: int) -> AttentionSite:
        """The self-attention of layer ``i``."""
        layer: Any = self.layers[self.layer_index(i)]
        module: Any = getattr(layer, "self_attn", None)
        o_proj = getattr(module, "o_proj", None) or getattr(module, "out_proj", None)
        if o_proj is None or not all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "head_dim")):
            raise UnikeError(f"{self.source}: attention of {type(layer).__name__} has no separate q, k, v and o maps")
        head_dim = int(module.head_dim)
        return AttentionSite(
            module,
            module.q_proj,
            module.k_proj,
            module.v_proj,
            o_proj,
            getattr(module, "q_norm", None),
            getattr(module, "k_norm", None),
            n_heads=module.q_proj.out_features // head_dim,
            n_kv_heads=module.k_proj.out_features // head_dim,
            head_dim=head_dim,
            scale=float(getattr(module, "scaling", head_dim**-0.5)),
        )

    def input_norm(self, i: int) -> nn.Module:
        """The norm in front of layer ``i``'s attention."""
        layer: Any = self.layers[self.layer_index(i)]
        norm = getattr(layer, "input_layernorm", None) or getattr(layer, "self_attn_layer_norm", None)
        if norm is None or not getattr(layer, "do_layer_norm_before", True):
            raise UnikeError(f"{self.source}: {type(layer).__name__} has no norm in front of its attention")
        found: nn.Module = norm
        return found

    def fingerprint(self) -> str:
        """A short hash that tells this model from others, whatever it is called and wherever it lies.

        It covers the model class, the decoder's dimensions and samples of a few weights rounded to bfloat16, so that
        one checkpoint has one fingerprint on every device and in fp32 and bf16; quantised, it has another. Attached
        edits do not change it.
        """
        digest = hashlib.sha256()
        shape = (self.n_layers, self.width, self.vocab_size)
        digest.update(f"{type(self.model).__name__} {type(self.text_stack).__name__} {shape}".encode())
        modules = [self.head, self.model.get_input_embeddings()]
        for i in sorted({0, self.n_layers // 2, self.n_layers - 1}):
            modules += [self.attention(i).q_proj, *self.ffn(i).matrices.values()]
        for module in modules:
            with align_module_device(module):  # brings back weights that are kept elsewhere between passes
                flat = module.weight.detach().flatten()
                sample = flat[:: max(1, flat.numel() // 1024)].to("cpu", torch.bfloat16)
            digest.update(sample.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    # ------------------------------------------------------------------ encoding

    def default_template(self) -> str:
        """The family's template."""
        return "{image}Question: {prompt} Short answer:"

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
            UnikeError: No query, an unreadable image, an empty target, a prompt that is too long or holds a
                placeholder of its own, or queries with and without an image where the family cannot mix them.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is 'left' or 'right', not {padding_side!r}")
        if not queries:
            raise UnikeError("there is nothing to encode: no query was given")
        with_image = [query for query in queries if query.image is not None]
        if with_image and len(with_image) < len(queries) and not self.mixes_images:
            raise UnikeError(
                f"{self.name} cannot mix queries with and without an image in one batch; encode them apart"
            )
        image_inputs, image_texts = self._read_images(with_image)
        texts = iter(image_texts)
        rows = [self._tokenize(query, next(texts) if query.image is not None else "") for query in queries]

        length = max(len(ids) for ids, _ in rows)
        self._check_length(length)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.full((len(rows), length), self.tokenizer.eos_token_id or 0 if pad is None else pad)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORE)
        prompt_length = torch.tensor([of_prompt for _, of_prompt in rows])
        prompt_last = prompt_length - 1
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
        return Batch(inputs, labels, prompt_last, prompt_length).to(self.device)

    def check(self, query: Query) -> None:
        """Refuse a question that `encode` would refuse for its text; its picture is not read, nor an empty target.

        Raises:
            UnikeError: It is too long, or holds a placeholder.
        """
        target = query.target if (query.target or "").strip() else None
        ids, _ = self._tokenize(replace(query, target=target), "")
        self._check_length(len(ids))

    def _check_length(self, length: int) -> None:
        limit = getattr(self.text_config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise UnikeError(f"a query takes {length} tokens, {self.source} reads at most {limit}")

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
        from unike.core.images import load_image

        opened: dict[Path, Any] = {}
        for query in queries:
            if query.image is not None and query.image not in opened:
                opened[query.image] = load_image(query.image)
        return self.image_inputs([opened[query.image] for query in queries if query.image is not None])

    def _fill(self, prompt: str, image_text: str) -> str:
        """The template around a question; ``image_text`` is empty if it has no image."""
        return self.template.format(image=image_text, prompt=prompt)

    def _tokenize(self, query: Query, image_text: str) -> tuple[list[int], int]:
        """Token ids of the whole row and how many of them are the prompt's."""
        if self.config_has_image_token and self.image_token in f"{query.prompt} {query.target or ''}":
            raise UnikeError(f"a prompt or target holds the image placeholder {self.image_token!r}: {query.prompt!r}")
        # A space before the target is the target's; a line break the template ends with stays with the prompt.
        prompt = self._fill(query.prompt.strip(), image_text).rstrip(" ")
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

    @property
    def config_has_image_token(self) -> bool:
        """Whether the config names a placeholder for images."""
        return getattr(self.config, "image_token_id", None) is not None

    # ------------------------------------------------------------------ forward

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        """The ordinary forward pass, without a cache: ``[B, S, V]``."""
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    @contextmanager
    def _prefilling(self, prefill: Prefill) -> Iterator[Prefill]:
        """Tell hooks, through `prefill`, where the prompts of the pass within the block end."""
        outer = self.prefill

        def count(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            rows, length = text_input(args, kwargs).shape[:2]
            prefill.passes.append((rows, length))

        self.prefill = prefill
        try:
            with Hooks() as hooks:
                hooks.add_pre(self.text_stack, count)
                yield prefill
        finally:
            self.prefill, self.notes = outer, prefill.notes

    def forward(self, batch: Batch) -> Tensor:
        """The ordinary forward pass.

        Returns:
            Logits ``[B, S, V]``.
        """
        with self._prefilling(batch.prefill()):
            return self._call(batch.inputs)

    @torch.no_grad()
    def run_to_split(self, batch: Batch, layer: int) -> SplitState:
        """Run the model up to, and without, a decoder layer.

        Hooks below ``layer`` take part; those on it and above do not run.

        Args:
            batch: From `encode`.
            layer: The first layer to leave out, counted as in `layer_index`.
        """
        index = self.layer_index(layer)
        with (
            self._prefilling(batch.prefill()) as prefill,
            trace(self.layers[index], stop="input", prepend=True) as at_layer,
            trace(self.text_stack, prepend=True) as at_stack,
        ):
            self._call(batch.inputs)
        return SplitState(
            index,
            at_layer.input,
            at_stack.args,
            at_stack.kwargs,
            batch.labels,
            batch.prompt_last,
            batch.prompt_length,
            prefill.kept,
        ).detach()

    @torch.no_grad()
    def advance(self, state: SplitState, layer: int) -> SplitState:
        """Run a stopped pass on, up to and without a higher decoder layer; hooks between the two take part.

        Args:
            state: From `run_to_split`.
            layer: The first layer to leave out; if it is not above the state's, the state is returned.
        """
        index = self.layer_index(layer)
        if index <= state.layer:
            return state
        with (
            self._resumed(state) as prefill,
            trace(self.layers[index], stop="input", prepend=True) as at_layer,
        ):
            self.text_stack(*state.args, **self._arguments(state))
        return replace(state, layer=index, hidden=at_layer.input, kept=prefill.kept).detach()

    @torch.no_grad()
    def shorten(self, state: SplitState, start: int | None = None) -> SplitState:
        """Finish everything before a position, once; what is left to run begins there.

        For whatever acts from the prompts' ends on only: pictures and most of a question are then out of the way.
        Rows that begin alike share their beginning, too. Logits are those of the whole state at the positions that are
        left, up to rounding.

        Args:
            state: From `run_to_split` or `advance`.
            start: The position, where rows have a long beginning in common; the first row's ``p`` by default, and no
                later.

        Returns:
            The state as it is, if it has been shortened before or if the family reads prompts both ways.
        """
        from transformers import DynamicCache

        end = int(state.prompt_last.min())
        start = end if start is None else min(start, end)
        if not start or state.start or self.reads_prompts_both_ways:
            return state
        firsts, row_of = distinct(state.hidden[:, :start])
        read = state if len(firsts) == len(state) else state.expand(firsts)
        cache: Any = DynamicCache()
        sums: dict[int, Tensor] = {}

        def add_up(layer: int, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            sums[layer] = read.prefill().summed(first_input(args, kwargs)[:, :start])[row_of]

        with self._resumed(read), Hooks() as hooks:
            for layer in range(state.layer, self.n_layers):
                hooks.add_pre(self.attention(layer).module, partial(add_up, layer))
            self.text_stack(*read.args, **read.kwargs | {"past_key_values": cache, "use_cache": True})
        past = {
            state.layer + above: (layer.keys[row_of, :, :start], layer.values[row_of, :, :start])
            for above, layer in enumerate(cache.layers[state.layer : self.n_layers])
        }
        return state.since(start, past, sums).detach()

    @contextmanager
    def _resumed(self, state: SplitState) -> Iterator[Prefill]:
        """Within the block the decoder, given the state's `_arguments`, goes on where the state stopped."""
        with (
            self._prefilling(state.prefill()) as prefill,
            _passing_through(self.text_stack, state.layer),
            inject(self.layers[state.layer], input=state.hidden),
        ):
            yield prefill

    def _arguments(self, state: SplitState) -> dict[str, Any]:
        """The text stack's keyword arguments, with a cache of its own for each pass: passes write into it."""
        from transformers import DynamicCache

        if not state.past:
            return state.kwargs
        cache = DynamicCache()
        for layer in range(self.n_layers):  # those below the split do not run, but the first one tells the length
            cache.update(*state.past[max(layer, state.layer)], layer)
        return state.kwargs | {"past_key_values": cache, "use_cache": True}

    def run_from_split(self, state: SplitState, positions: Tensor | None = None) -> Tensor:
        """Finish a forward pass from where `run_to_split` stopped; equal to `forward`, bit for bit in fp32.

        The decoder's own forward is called with the layers below the split passed through, because what happens
        between layers (Qwen3-VL adds visual features there) and after the last one is the family's business.
        Gradients reach everything that hooks on the layers from the split upwards bring in.

        Args:
            state: May be used any number of times.
            positions: ``[B, S]`` bool, where logits are needed; the head is the largest matrix of many models.

        Returns:
            Logits ``[B, S, V]``, or ``[positions.sum(), V]`` row by row.
        """
        with self._resumed(state):
            hidden: Tensor = self.text_stack(*state.args, **self._arguments(state))[0]
        return self.read_out(hidden if positions is None else hidden[positions])

    def read_out(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of final hidden states ``[..., D]``."""
        logits: Tensor = self.head(hidden)
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    # ------------------------------------------------------------------ generation

    @property
    def _generator(self) -> Any:
        """The module whose ``generation_config`` counts."""
        return self.model

    def _generate(self, inputs: dict[str, Tensor], config: Any) -> Tensor:
        """Token ids of prompt and continuation, ``[B, S + new]``."""
        ids: Tensor = self.model.generate(**inputs, generation_config=config)
        return ids

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer."""
        stops = {self.tokenizer.eos_token_id}
        own = self._generator.generation_config.eos_token_id
        stops |= set(own) if isinstance(own, list) else {own}
        return sorted(stop for stop in stops if stop is not None)

    def answer_text(self, ids: Sequence[int]) -> str:
        """What an answer's tokens say: their first line."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip().split("\n", 1)[0].strip()

    @torch.no_grad()
    def generate(self, queries: Sequence[Query], *, max_new_tokens: int = 16, num_beams: int = 1) -> list[str]:
        """Answer queries by greedy or beam search; their targets are not looked at.

        Args:
            queries: Any mix.
            max_new_tokens: At most so many tokens.
            num_beams: 1 for greedy decoding.

        Returns:
            For each query the first line of the answer.
        """
        import transformers

        eos = self.stop_ids
        pad = self.tokenizer.pad_token_id
        make_config: Any = transformers.GenerationConfig
        config = make_config(
            do_sample=False,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos or None,
            pad_token_id=pad if pad is not None else (eos or [0])[0],
        )
        answers = [""] * len(queries)
        groups = self.groups(queries)
        if len(groups) > 1 and any(len(edit) > 1 for edit in self.edits):
            raise UnikeError(
                f"{self.name} answers questions with and without an image apart, which would mix up the rows of a "
                "batch of edits; ask them in two calls, or attach one edit: edit[i]"
            )
        for rows in groups:
            batch = self.encode([replace(queries[row], target=None) for row in rows], padding_side="left")
            with self._prefilling(batch.prefill()), _only_config(self._generator, config):
                ids = self._generate(batch.inputs, config)[:, batch.labels.shape[1] :]
            for row, new in zip(rows, ids.tolist(), strict=True):
                answers[row] = self.answer_text(new)
        return answers

    def groups(self, queries: Sequence[Query]) -> list[list[int]]:
        """Indices of the queries that may share a batch."""
        if self.mixes_images:
            groups = [list(range(len(queries)))]
        else:
            groups = [[i for i, q in enumerate(queries) if (q.image is None) is without] for without in (False, True)]
        return [group for group in groups if group]

    def room(self, targets: Sequence[str]) -> int:
        """How many tokens an answer may have: the power of two, 16 or more, that holds every target and its end.

        One number for all of them: the length of a target must not tell when its answer is over.
        """
        ids = self.tokenizer([" " + target for target in targets], add_special_tokens=False)["input_ids"]
        return max(16, 1 << max(map(len, ids), default=0).bit_length())

    def ask(self, image: str | Path | None, prompt: str, **kwargs: Any) -> str:
        """Answer one question.

        Args:
            image: Path of the image, or None.
            prompt: The question.
            **kwargs: As in `generate`.
        """
        return self.generate([Query(prompt, None if image is None else Path(image))], **kwargs)[0]

    def __repr__(self) -> str:
        """Family, source and size."""
        return f"{type(self).__name__}({self.source!r}, layers={self.n_layers}, width={self.width}, {self.dtype})"


# ---------------------------------------------------------------------- helpers


def resolve_device(device: str) -> torch.device:
    """The device a name stands for; ``"auto"`` is cuda, else mps, else cpu.

    Raises:
        UnikeError: Torch does not know the name or has no such device.
    """
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UnikeError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:1, mps or split") from error
    if (found.type == "cuda" and not torch.cuda.is_available()) or (
        found.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise UnikeError(f"device {device!r} is not available on this machine; use cpu or auto")
    return found


def resolve_dtype(dtype: str, device: torch.device) -> "torch.dtype | str":
    """The dtype a name stands for; ``"auto"`` is float32 on the cpu and the checkpoint's own elsewhere.

    Raises:
        UnikeError: No such dtype.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise UnikeError(f"unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def resolve_placement(device: str, dtype: str, quantize: str | None) -> dict[str, Any]:
    """What ``from_pretrained`` in transformers is told about where a model goes and what it is kept in.

    Args:
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.
        quantize: As in `load_backbone`.

    Raises:
        UnikeError: There is no such thing, or bitsandbytes is missing.
    """
    if quantize is not None and quantize not in QUANTIZED:
        raise UnikeError(f"unknown quantization {quantize!r}; use {' or '.join(QUANTIZED)}")
    if quantize is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise UnikeError("to quantize a model, bitsandbytes is needed; run: pip install bitsandbytes")
    where = resolve_device("auto" if device == SPLIT else device)
    kind = resolve_dtype(dtype, where)
    placement: dict[str, Any] = {"dtype": kind, "device_map": "auto" if device == SPLIT else {"": where}}
    if quantize is not None:
        from transformers import BitsAndBytesConfig

        # For each matrix of each pass it says that LLM.int8 computes in float16.
        logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
        compute = {"bnb_4bit_compute_dtype": torch.bfloat16 if kind == "auto" else kind, "bnb_4bit_quant_type": "nf4"}
        placement["quantization_config"] = BitsAndBytesConfig(**{f"load_in_{quantize}": True}, **compute)
    return placement


def read_config(source: str) -> Any:
    """The config of a saved or published model.

    Raises:
        UnikeError: It cannot be read.
    """
    from transformers import AutoConfig

    with _reading(source):
        return AutoConfig.from_pretrained(source)


def read_tokenizer(source: str, **kwargs: Any) -> Any:
    """The tokenizer of a saved or published model.

    Args:
        source: A folder or a hub id.
        **kwargs: Where in it, as ``AutoTokenizer`` calls it.

    Raises:
        UnikeError: It cannot be read.
    """
    from transformers import AutoTokenizer

    with _reading(source):
        return AutoTokenizer.from_pretrained(source, **kwargs)


def read_image_processor(source: str) -> Any:
    """The image processor of a saved or published model.

    Always PIL: the torchvision processors resize differently, and results would depend on what is installed.

    Raises:
        UnikeError: It cannot be read.
    """
    from transformers import AutoImageProcessor

    with _reading(source):
        return AutoImageProcessor.from_pretrained(source, backend="pil")


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn the many ways in which reading a model fails into one line for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside transformers are not the user's to mend
            yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        kind = "folder" if Path(source).is_dir() else "hub model (or missing folder)"
        raise UnikeError(f"cannot load the {kind} {source!r}: {reason}") from error


def _check_template(template: str) -> None:
    try:
        filled = template.format(image="\0", prompt="\1")
    except (KeyError, IndexError, ValueError) as error:
        raise UnikeError(f"template {template!r} may hold only {{image}} and {{prompt}} in braces") from error
    if filled.count("\0") != 1 or filled.count("\1") != 1:
        raise UnikeError(f"template {template!r} must hold {{image}} and {{prompt}} once each")


def _find_text_stack(model: Any, source: str) -> Any:
    """Unwrap a model until something has a list of layers; ``get_decoder`` is not consistent between families."""
    node = model
    while node is not None:
        if isinstance(getattr(node, "layers", None), nn.ModuleList):
            return node
        children = (getattr(node, name, None) for name in ("language_model", "text_model", "model", "decoder"))
        node = next((child for child in children if isinstance(child, nn.Module)), None)
    raise UnikeError(f"{source}: {type(model).__name__} has no decoder with a list of layers and cannot be edited")


class _PassThrough(nn.Module):
    """Stands in for a layer below the split: hands its input on, and answers for the layer's attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not as a submodule: hooks and parameters stay where they are

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


@contextmanager
def _passing_through(text_stack: Any, split: int) -> Iterator[None]:
    """Let the layers below ``split`` do nothing. Not thread-safe: the stack's list of layers is swapped."""
    layers = text_stack.layers
    try:
        text_stack.layers = nn.ModuleList([*(_PassThrough(layer) for layer in layers[:split]), *layers[split:]])
        yield
    finally:
        text_stack.layers = layers


@contextmanager
def _only_config(module: Any, config: Any) -> Iterator[None]:
    """Let a generation config stand alone: ``generate`` fills its gaps from the checkpoint's own."""
    saved = module.generation_config
    try:
        module.generation_config = config
        yield
    finally:
        module.generation_config = saved
