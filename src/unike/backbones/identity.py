"""What tells a model from others: everything that can change an answer, in a few bytes.

Weights are compared rounded to bfloat16, so that one checkpoint has one fingerprint on every device and in fp32 and
bf16. Every weight takes part, if only in a sum; quantised, a model is another one.
"""

import hashlib
import json
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from unike.core.memo import MemoOf

if TYPE_CHECKING:
    from unike.backbones.adapter import Backbone

SAMPLE = 4096
"""Of each tensor so many values are read one by one, and all of them in a sum."""

BOOKKEEPING = frozenset(
    {
        "transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache", "architectures", "auto_map",
        "_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "image_processor_type",
        "feature_extractor_type", "processor_class", "_processor_class", "return_tensors", "device", "disable_grouping",
        "input_data_format", "data_format",
    }
)  # fmt: skip
"""Keys of configs that change no answer, or say where and with what a model is run."""

_FINGERPRINTS: MemoOf[str, str] = MemoOf()


def fingerprint(backbone: "Backbone") -> str:
    """A hash of the model's weights, settings, template and image processing; attached edits do not change it.

    It is worked out once, and again when a weight was changed in place.
    """
    return _FINGERPRINTS.of(backbone).get("2", lambda: _worked_out(backbone), stamp=_stamp(backbone))


def fingerprint_0_1(backbone: "Backbone") -> str:
    """What version 0.1 knew a model by: the decoder's dimensions and samples of a few of its weights.

    Edits, knowledge and networks of that version still name it.
    """
    return _FINGERPRINTS.of(backbone).get("1", lambda: _of_0_1(backbone), stamp=_stamp(backbone))


def _stamp(backbone: "Backbone") -> Hashable:
    """Another value when a weight was written to, or something else that counts is another."""
    versions = tuple(weight._version for weight in backbone.model.parameters())
    return versions, backbone.template, id(backbone.image_processor)


def _worked_out(backbone: "Backbone") -> str:
    digest = hashlib.sha256(json.dumps(_setup(backbone), sort_keys=True, default=str).encode())
    for name, tensor in _tensors(backbone.model):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(_content(tensor))
    return f"2-{digest.hexdigest()[:30]}"


def _setup(backbone: "Backbone") -> dict[str, Any]:
    """What counts beside the weights, as JSON has it."""
    processing = backbone.image_processor.to_dict() if hasattr(backbone.image_processor, "to_dict") else {}
    return {
        "class": [type(backbone.model).__name__, type(backbone.text_stack).__name__],
        "config": _plain(backbone.config.to_diff_dict()),
        "images": _plain(processing),
        "template": backbone.template,
        "tokens": [len(backbone.tokenizer), backbone.append_eos, backbone.stop_ids],
    }


def _plain(value: Any) -> Any:
    """A config without bookkeeping, and without what is not set."""
    if isinstance(value, dict):
        kept = {str(key): _plain(each) for key, each in value.items() if key not in BOOKKEEPING and each is not None}
        return {key: each for key, each in kept.items() if each != {}}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight and every saved buffer."""
    for path, module in model.named_modules():
        saved = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
        with align_module_device(module):  # brings back weights that are kept elsewhere between passes
            for name in [*module._parameters, *saved]:
                if (tensor := getattr(module, name)) is not None:
                    yield f"{path}.{name}", tensor.detach()


def _content(tensor: Tensor) -> bytes:
    """A sum of all values and some of them, exact on every device."""
    flat = tensor.flatten()
    if flat.is_floating_point():
        flat = flat.to(torch.bfloat16).view(torch.int16)
    sample = flat[:: max(1, flat.numel() // SAMPLE)].to("cpu", torch.int64)
    return flat.sum(dtype=torch.int64).cpu().numpy().tobytes() + sample.numpy().tobytes()


def _of_0_1(backbone: "Backbone") -> str:
    digest = hashlib.sha256()
    shape = (backbone.n_layers, backbone.width, backbone.vocab_size)
    digest.update(f"{type(backbone.model).__name__} {type(backbone.text_stack).__name__} {shape}".encode())
    modules = [backbone.head, backbone.model.get_input_embeddings()]
    for i in sorted({0, backbone.n_layers // 2, backbone.n_layers - 1}):
        modules += [backbone.attention(i).q_proj, *backbone.ffn(i).matrices.values()]
    for module in modules:
        with align_module_device(module):
            flat = module.weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 1024)].to("cpu", torch.bfloat16)
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
