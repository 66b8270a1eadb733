"""Reading models from folders and the hub: where they go, what they are kept in, and one line when it fails."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unike.core.errors import UnikeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SPLIT = "split"
"""The device of a model that is spread over all there are."""

QUANTIZED = ("8bit", "4bit")


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

    with reading(source):
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

    with reading(source):
        return AutoTokenizer.from_pretrained(source, **kwargs)


def read_image_processor(source: str) -> Any:
    """The image processor of a saved or published model.

    Always PIL: the torchvision processors resize differently, and results would depend on what is installed.

    Raises:
        UnikeError: It cannot be read.
    """
    from transformers import AutoImageProcessor

    with reading(source):
        return AutoImageProcessor.from_pretrained(source, backend="pil")


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn the many ways in which reading a model fails into one line for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside transformers are not the user's to mend
            yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        kind = "folder" if Path(source).is_dir() else "hub model (or missing folder)"
        raise UnikeError(f"cannot load the {kind} {source!r}: {reason}") from error
