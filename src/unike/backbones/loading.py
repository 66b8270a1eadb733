"""Reading models from folders and the hub: where they go, what they are kept in, and one line when it fails."""

import importlib.util
import json
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
    except (RuntimeError, TypeError) as error:
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
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnikeError(f"unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}")
    if dtype == "bfloat16" and device.type == "cpu" and not has_bfloat16():
        logging.getLogger("unike").warning(
            "this processor has no instructions for bfloat16, which makes it many times slower than float32"
        )
    return DTYPES[dtype]


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16 by itself, as far as Linux tells of an x86; elsewhere, supposed."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    return "flags" not in flags or "avx512_bf16" in flags or "amx_bf16" in flags


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


def read_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """The config of a saved or published model.

    Args:
        source: A folder or a hub id.
        trust_remote_code: As in `load_backbone`.

    Raises:
        UnikeError: It cannot be read.
    """
    from transformers import AutoConfig

    refuse_adapter(source)
    with reading(source):
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)


def refuse_adapter(source: str) -> None:
    """Refuse a folder that holds a PEFT adapter without its model.

    Raises:
        UnikeError: With how to load it.
    """
    folder = Path(source)
    described = folder / "adapter_config.json"
    if not described.is_file() or (folder / "config.json").is_file():
        return
    try:
        base = json.loads(described.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        base = "its model"
    raise UnikeError(
        f"{source} is a PEFT adapter of {base!r}, not a model; load both with peft and give them to unike.wrap, or "
        "save the merged model (merge_and_unload) and give that folder"
    )


def read_model(source: str, config: Any, placement: dict[str, Any], *, trust_remote_code: bool = False) -> Any:
    """The model of a folder or the hub, all its weights from there.

    Args:
        source: A folder or a hub id.
        config: From `read_config`.
        placement: From `resolve_placement`.
        trust_remote_code: As in `load_backbone`.

    Raises:
        UnikeError: It cannot be read, or lacks weights: they would be drawn at random.
    """
    import transformers

    auto: Any = transformers  # its classes are only partly typed
    with reading(source):
        model, found = auto.AutoModelForImageTextToText.from_pretrained(
            source,
            config=config,
            output_loading_info=True,
            use_safetensors=True,  # never a pickle
            trust_remote_code=trust_remote_code,
            **placement,
        )
    check_complete(source, found)
    return model


def check_complete(source: str, found: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights; say in one line if it has more than the model knows.

    Args:
        source: What was read.
        found: What ``from_pretrained`` says about it: keys that are missing, of another shape, or not known.

    Raises:
        UnikeError: Names the first of what is missing.
    """
    missing, surplus = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    mismatched = sorted(str(each[0]) for each in found["mismatched_keys"])
    if missing or mismatched:
        lacks = f"lacks {len(missing)} of the model's weights ({_some(missing)})" if missing else ""
        wrong = f"has {len(mismatched)} weights of another shape ({_some(mismatched)})" if mismatched else ""
        theirs = f"; it has {len(surplus)} others ({_some(surplus)})" if surplus else ""
        merge = any("base_layer" in key or key.startswith("base_model.") for key in surplus)
        remedy = "it was saved with its PEFT adapter: merge that and save again" if merge else "get it anew"
        raise UnikeError(f"{source} is incomplete: it {' and '.join(filter(None, (lacks, wrong)))}{theirs}; {remedy}")
    if surplus:
        logging.getLogger("unike").warning(
            "%s has %d weights that the model has no use for (%s)", source, len(surplus), _some(surplus)
        )


def _some(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")


def read_tokenizer(source: str, *, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """The tokenizer of a saved or published model.

    Args:
        source: A folder or a hub id.
        trust_remote_code: As in `load_backbone`.
        **kwargs: Where in it, as ``AutoTokenizer`` calls it.

    Raises:
        UnikeError: It cannot be read.
    """
    from transformers import AutoTokenizer

    with reading(source):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **kwargs)


def read_image_processor(source: str, *, trust_remote_code: bool = False) -> Any:
    """The image processor of a saved or published model.

    Always PIL: the torchvision processors resize differently, and results would depend on what is installed.

    Raises:
        UnikeError: It cannot be read.
    """
    from transformers import AutoImageProcessor

    with reading(source):
        return AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=trust_remote_code)


CUSTOM_CODE = ("trust_remote_code", "custom code")


def why(error: Exception) -> str:
    """The first line of an error, or what it means where its own words mislead."""
    text = str(error)
    if any(words in text for words in CUSTOM_CODE):
        return "it brings code of its own, which is not run; if you trust it, say so: --trust-remote-code"
    if text.startswith("Error while deserializing header") or "SafetensorError" in type(error).__name__:
        return (
            f"its weights are damaged, or a Git LFS pointer stands in their place ({text.splitlines()[0]}); get it anew"
        )
    if "weights_only" in text or "pickle" in text.lower():
        return "its weights are pickled, which is not read; convert them to safetensors"
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn the many ways in which reading a model fails into one line for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside transformers are not the user's to mend
            yield
    except Exception as error:  # transformers, tokenizers and safetensors each raise errors of their own
        if isinstance(error, UnikeError):
            raise
        reason = why(error)
        kind = "folder" if Path(source).is_dir() else "hub model (or missing folder)"
        raise UnikeError(f"cannot load the {kind} {source!r}: {reason}") from error
