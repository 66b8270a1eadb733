"""MiniGPT-4 (arXiv 2304.10592), put together from its published parts as a folder that `load_backbone` reads.

MiniGPT-4 trains nothing but the linear map between two models that others published (section 3), and only that map is
in its checkpoint. It is BLIP-2 with another language model, so the parts make a `Blip2ForConditionalGeneration`. Their
tensors are copied bit for bit, under these names:

| part | in the part | in the folder |
|---|---|---|
| Vicuna-7B, LLaMA's format | ``model.*``, ``lm_head.*`` | ``language_model.*`` |
| BLIP-2: EVA ViT-g, Q-Former, queries | ``vision_model.*``, ``qformer.*``, ``query_tokens`` | the same |
| BLIP-2: its own language model and projection | ``language_model.*``, ``language_projection.*`` | left out |
| MiniGPT-4's checkpoint, under ``model`` | ``llama_proj.*`` | ``language_projection.*`` |

Tensors are read and written one shard at a time, so no more than `SHARD_BYTES` are held in memory.

Note:
    Vicuna has no placeholder for images. ``<image>`` becomes one more token, whose rows of the embeddings and of the
    head are the mean of the others: its logit is then the mean logit, so it is never the answer. A prompt is tokenised
    as one text here; MiniGPT-4's code does what is before and after the picture apart, so that its ``</Img>`` begins
    with a space.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from unike.backbones.loading import read_config, read_image_processor, read_tokenizer
from unike.core.errors import UnikeError
from unike.core.folders import check_folder, new_folder
from unike.core.permissions import as_new_files
from unike.core.progress import Progress, silent
from unike.core.version import __version__

RECORD = "minigpt4.json"
"""Says what a folder was made from, and that it was made here and may be replaced."""

TEMPLATE = "###Human: <Img>{image}</Img> {prompt} ###Assistant:"
"""The conversation that MiniGPT-4 was tuned on in its second stage (section 3.3)."""

IMAGE_TOKEN = "<image>"

SHARD_BYTES = 2_000_000_000

VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""The tensors with a row for each token."""

DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Older LLaMA checkpoints hold these constants; they follow from the config."""

REPLACED = re.compile(r"language_(model|projection)\..*")
"""Of BLIP-2, what MiniGPT-4 has its own for."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of weights as they are published, by safetensors' names."""

PLAIN = "only float32, float16 and bfloat16 can be converted, not quantised weights"

PROJECTION = "llama_proj."
"""What MiniGPT-4 calls the map."""

SURPLUS = "has no place in MiniGPT-4; is it a checkpoint of something else?"

XXL_WIDTH = 4096
"""Of FlanT5-XXL; FlanT5-XL has 2048."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        read: Reads it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def with_rows(self, rows: int) -> "Stored":
        """The tensor with rows added to ``[V, D]``, each the mean of those there are."""

        def read() -> Tensor:
            tensor = self.read()
            mean = tensor.float().mean(dim=0).to(tensor.dtype)
            return torch.cat([tensor, mean.expand(rows - len(tensor), -1)])

        return self if rows == self.shape[0] else replace(self, shape=(rows, *self.shape[1:]), read=read)


@dataclass(frozen=True)
class Converted:
    """What `convert_minigpt4` has written.

    Args:
        folder: Where.
        tensors: How many there are.
        size: Their bytes.
        shards: The files they are in.
        notes: What the user should know about the parts.
    """

    folder: Path
    tensors: int
    size: int
    shards: int
    notes: tuple[str, ...]


def convert_minigpt4(
    llm: Path,
    blip2: Path,
    projection: Path,
    out: Path,
    *,
    progress: Progress = silent,
) -> Converted:
    """Write a folder with MiniGPT-4, its prompt template included.

    Args:
        llm: Folder of Vicuna in LLaMA's format, deltas applied.
        blip2: Folder of BLIP-2. MiniGPT-4 was trained on the Q-Former of ``Salesforce/blip2-flan-t5-xxl``; the
            Q-Formers of other BLIP-2 fit by their shapes, but the projection was not made for them.
        projection: MiniGPT-4's checkpoint (``.pth``), read without running anything in it.
        out: Written as a whole or not at all; replaced if it was made here.
        progress: Called with ``("copying tensors", done, total)``.

    Raises:
        UnikeError: A part is missing, unreadable or something else; a tensor is missing, left over or of another shape
            than the configs say, the message names it; or the folder cannot be written.
    """
    check_folder(out, known_by=RECORD)
    parts = Parts(llm, blip2, projection)
    llm_config = _read_config(llm, "llama", "--llm is a folder with Vicuna in LLaMA's format")
    blip2_config = _read_config(blip2, "blip-2", "--blip2 is a folder with BLIP-2")
    stored = parts.read()
    parts.check(stored, _shapes(_join(blip2_config, llm_config)))

    tokenizer = _read_tokenizer(llm)
    tokenizer.add_tokens(IMAGE_TOKEN, special_tokens=True)
    rows = max(llm_config.vocab_size, len(tokenizer))
    stored |= {name: stored[name].with_rows(rows) for name in VOCABULARY}
    config = _join(
        blip2_config,
        llm_config,
        dtype=stored[VOCABULARY[0]].dtype,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        prompt_template=TEMPLATE,
        architectures=["Blip2ForConditionalGeneration"],
    )
    config.text_config.vocab_size = rows
    processor = _processor(read_image_processor(str(blip2)), tokenizer, config.num_query_tokens)
    with new_folder(out, known_by=RECORD) as new:
        shards, size = _write_tensors(stored, new, progress)
        config.save_pretrained(new)
        processor.save_pretrained(new)
        as_new_files(new)
        (new / RECORD).write_text(json.dumps(parts.record(), indent=2) + "\n", encoding="utf-8")
    return Converted(out, len(stored), size, shards, _notes(blip2, blip2_config))


# ---------------------------------------------------------------------- the parts


@dataclass(frozen=True)
class Parts:
    """Where MiniGPT-4's parts are; arguments as in `convert_minigpt4`."""

    llm: Path
    blip2: Path
    projection: Path

    def read(self) -> dict[str, Stored]:
        """Every tensor by its name in the folder to be.

        Raises:
            UnikeError: As `convert_minigpt4`.
        """
        found = {f"language_model.{name}": tensor for name, tensor in _open_folder(self.llm, DERIVED).items()}
        found |= _open_folder(self.blip2, REPLACED)
        projection = _open_projection(self.projection).items()
        return found | {f"language_projection.{name}": tensor for name, tensor in projection}

    def check(self, stored: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]]) -> None:
        """Account for every tensor.

        Args:
            stored: From `read`.
            expected: Name in the folder to be, to shape.

        Raises:
            UnikeError: One is missing, left over or of another shape.
        """
        missing = [name for name in expected if name not in stored]
        surplus = [name for name in stored if name not in expected]
        misshapen = [name for name, shape in expected.items() if name in stored and stored[name].shape != shape]
        if missing:
            raise UnikeError(f"{self._named(missing)} is missing; is the checkpoint complete?")
        if surplus:
            raise UnikeError(f"{self._named(surplus)} {SURPLUS}")
        if misshapen:
            found, needed = list(stored[misshapen[0]].shape), list(expected[misshapen[0]])
            raise UnikeError(
                f"{self._named(misshapen)} has the shape {found}, but by the configs of --llm and --blip2 it should be "
                f"{needed}; do the parts belong together?"
            )

    def _named(self, names: Sequence[str]) -> str:
        """The first of some tensors by its part and its name there, and how many more there are."""
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        if names[0].startswith("language_model."):
            return f"{self.llm}: {names[0].removeprefix('language_model.')}{others}"
        if names[0].startswith("language_projection."):
            return f"{self.projection}: {PROJECTION}{names[0].removeprefix('language_projection.')}{others}"
        return f"{self.blip2}: {names[0]}{others}"

    def record(self) -> dict[str, Any]:
        """What a folder remembers of its parts."""
        names = {"llm": self.llm.resolve().name, "blip2": self.blip2.resolve().name}
        digest = hashlib.sha256(self.projection.read_bytes()).hexdigest()
        return {"format": 1, "unike": __version__, **names, "projection_sha256": digest}


def _read_config(folder: Path, model_type: str, expected: str) -> Any:
    if not folder.is_dir():
        raise UnikeError(f"no folder {folder}; {expected}")
    config = read_config(str(folder))
    if config.model_type != model_type:
        raise UnikeError(f"{folder} holds a model of type {config.model_type!r}; {expected}")
    return config


def _read_tokenizer(llm: Path) -> Any:
    original, readable = llm / "tokenizer.model", is_sentencepiece_available() and is_protobuf_available()
    if original.is_file() and not (llm / "tokenizer.json").is_file() and not readable:
        raise UnikeError(f"to read {original}, install two more packages: pip install sentencepiece protobuf")
    return read_tokenizer(str(llm))


def _join(blip2_config: Any, llm_config: Any, **fields: Any) -> Any:
    """BLIP-2's config with another language model's."""
    from transformers import Blip2Config

    own = {"dtype", "architectures", "transformers_version", "_name_or_path"}  # of the part, not of its place in here
    vision, qformer, text = (
        {key: value for key, value in config.to_dict().items() if key not in own}
        for config in (blip2_config.vision_config, blip2_config.qformer_config, llm_config)
    )
    return Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=blip2_config.num_query_tokens,
        **fields,
    )


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model that a config describes; nothing is allocated."""
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _processor(image_processor: Any, tokenizer: Any, num_query_tokens: int) -> Any:
    """What ``AutoProcessor`` reads; our own adapter needs only its two halves."""
    from transformers import Blip2Processor

    return Blip2Processor(image_processor, tokenizer, num_query_tokens=num_query_tokens)


def _notes(blip2: Path, config: Any) -> tuple[str, ...]:
    text = config.text_config
    if (text.model_type, getattr(text, "d_model", None)) == ("t5", XXL_WIDTH):
        return ()
    return (
        f"MiniGPT-4's projection was trained on the Q-Former of Salesforce/blip2-flan-t5-xxl, which {blip2} is not: "
        "expect poor answers",
    )


# ---------------------------------------------------------------------- files


def _open_folder(folder: Path, left_out: re.Pattern[str]) -> dict[str, Stored]:
    """The tensors of a saved model by name, but for those whose name is ``left_out``."""
    found: dict[str, Stored] = {}
    for path in _weight_files(folder, left_out):
        if not path.is_file():
            raise UnikeError(f"{path} is missing, though the index of {folder} names it; is the download complete?")
        found |= _open_safetensors(path) if path.suffix == ".safetensors" else _stored(path, _load_pickle(path))
    return {name: tensor for name, tensor in found.items() if not left_out.fullmatch(name)}


def _weight_files(folder: Path, left_out: re.Pattern[str]) -> list[Path]:
    """The files that hold what is wanted; shards with nothing but what is left out need not be there."""
    for single in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        index = folder / f"{single}.index.json"
        if index.is_file():
            try:
                places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
                return sorted({folder / file for name, file in places if not left_out.fullmatch(name)})
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise UnikeError(f"cannot read {index}: {error!r}") from None
        if (folder / single).is_file():
            return [folder / single]
    raise UnikeError(f"no weights in {folder}: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}, whole or in shards")


def _open_safetensors(path: Path) -> dict[str, Stored]:
    try:
        file: Any = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError) as error:
        raise UnikeError(f"cannot read {path}: {error}") from None
    for name, part in slices.items():
        if part.get_dtype() not in DTYPES:
            raise UnikeError(f"{path}: {name} is stored as {part.get_dtype()}; {PLAIN}")
    return {
        name: Stored(tuple(part.get_shape()), DTYPES[part.get_dtype()], partial(file.get_tensor, name))
        for name, part in slices.items()
    }


def _open_projection(path: Path) -> dict[str, Stored]:
    """``weight`` and ``bias`` of what MiniGPT-4 trained; the state of its optimiser beside it is of no use."""
    if not path.is_file():
        raise UnikeError(f"no file {path}; --projection is the checkpoint that MiniGPT-4 publishes (.pth)")
    checkpoint = _load_pickle(path)
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise UnikeError(f"{path} holds no 'model'; --projection is the checkpoint that MiniGPT-4 publishes (.pth)")
    tensors = _stored(path, checkpoint["model"])
    surplus = next((name for name in tensors if not name.startswith(PROJECTION)), None)
    if surplus is not None:
        raise UnikeError(f"{path}: {surplus} {SURPLUS}")
    return {name.removeprefix(PROJECTION): tensor for name, tensor in tensors.items()}


def _load_pickle(path: Path) -> Any:
    """A file of `torch.save`; nothing in it is run, and tensors stay on disk until they are used."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged pickle can raise anything, and torch's advice is to run what is in it
        raise UnikeError(
            f"cannot read {path}: it is damaged, older than torch 1.6, or holds more than tensors"
        ) from None


def _stored(path: Path, tensors: Any) -> dict[str, Stored]:
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UnikeError(f"{path} is not a checkpoint: it should hold tensors by name")
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise UnikeError(f"{path}: {name} is stored as {tensor.dtype}; {PLAIN}")
    return {
        name: Stored(tuple(tensor.shape), tensor.dtype, partial(tensor.clone, memory_format=torch.contiguous_format))
        for name, tensor in tensors.items()
    }


def _write_tensors(stored: Mapping[str, Stored], folder: Path, progress: Progress) -> tuple[int, int]:
    """Copy tensors into shards, one at a time; returns how many shards and bytes there are."""
    plan = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in stored.items()}
    split = split_torch_state_dict_into_shards(plan, max_shard_size=SHARD_BYTES)
    size, free = int(split.metadata["total_size"]), shutil.disk_usage(folder).free
    if free < size:
        needed = f"{size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise UnikeError(f"no disk space: {needed}; free some or choose another --out")
    done = 0
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            tensors[name] = stored[name].read()
            progress("copying tensors", done := done + 1, len(stored))
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:  # what a disk that fills up raises
            raise UnikeError(f"cannot write {file}: {error}; nothing was changed") from None
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return len(split.filename_to_tensors), size
