"""Edits put into vLLM 0.32, V1 runner, eager mode: what it is asked for, what it is refused, and where it is hooked.

In the process that takes requests, what a request names is looked up in the store, and its set is fixed at the version
that it is at. In the process that runs the model, edits act on the rows of each request (`acting`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache, wraps
from typing import Any

import torch

from unike.backbones.adapter import Backbone
from unike.backbones.sites import find_text_stack
from unike.core.errors import UnikeError
from unike.edits.stack import Stack
from unike.serve.chat import MOST_IDS
from unike.serve.errors import ApiError
from unike.serve.sets import EditSet, Sets
from unike.serve.vllm_plugin.acting import Acting, check_supported
from unike.serve.vllm_plugin.rows import rows_of
from unike.store.names import set_and_version

LOG = logging.getLogger("unike.serve")

VERSION = "0.32"
"""Of vLLM; the plugin reads what is no public part of it."""

KEY = "unike"
"""Of ``additional_config``, with `Place` in it."""

FIELD = "edits"
"""Of ``vllm_xargs``."""

KEEP = 64
"""So many stacks are kept."""

Place = tuple[tuple[str, str], ...]
"""Model, store, blobs and template, by name."""

KNOWN = {"model": True, "store": True, "blobs": False, "template": False}
"""What ``additional_config["unike"]`` may say, and whether it must."""


# ---------------------------------------------------------------------- what edits are meant


class Desk:
    """The edits of a store, on a skeleton of the model.

    Args:
        backbone: The skeleton, see `skeleton`.
        sets: Of the store.
    """

    def __init__(self, backbone: Backbone, sets: Sets) -> None:
        self.backbone, self.sets = backbone, sets
        self._stacks: OrderedDict[Any, Stack] = OrderedDict()

    def named(self, given: Any) -> EditSet:
        """The edits that a request names: ``"tenant-a"``, ``"tenant-a:7"``, or ids.

        Raises:
            UnikeError: There are none like that, or they cannot act here.
        """
        try:
            found = self._named(given)
        except ApiError as error:
            raise UnikeError(error.message) from None
        check_supported(self.backbone, found.edits)
        self.stack(found)
        return found

    def _named(self, given: Any) -> EditSet:
        if isinstance(given, str) and given:
            return self.sets.named(*set_and_version(given))
        if isinstance(given, list) and given and all(isinstance(each, str) for each in given):
            if len(given) > MOST_IDS:
                raise UnikeError(f"{len(given)} edits are named; make a set of more than {MOST_IDS}")
            return self.sets.chosen(given)
        raise UnikeError(f"{FIELD} names a set, 'tenant-a' or 'tenant-a:7', or is a list of ids of edits")

    def stack(self, found: EditSet) -> Stack:
        """The edits, ready to act."""
        if found.key not in self._stacks:
            self._stacks[found.key] = Stack(self.backbone, found.edits)
        self._stacks.move_to_end(found.key)
        while len(self._stacks) > KEEP:
            self._stacks.popitem(last=False)
        return self._stacks[found.key]


def place_of(additional: Any) -> Place | None:
    """What ``additional_config`` says of edits; None if it says nothing.

    Raises:
        UnikeError: It lacks something, or says what is not known.
    """
    given = (additional or {}).get(KEY) if isinstance(additional, dict) else None
    if given is None:
        return None
    if not isinstance(given, dict) or not all(isinstance(each, str) for each in given.values()):
        raise UnikeError(f'additional_config["{KEY}"] is an object of texts: {", ".join(KNOWN)}')
    for name in given:
        if name not in KNOWN:
            raise UnikeError(f'additional_config["{KEY}"] has {name!r}, which is not known; it has {", ".join(KNOWN)}')
    for name, is_needed in KNOWN.items():
        if is_needed and name not in given:
            raise UnikeError(f'additional_config["{KEY}"] lacks {name!r}')
    return tuple(sorted(given.items()))


@cache
def desk(place: Place) -> Desk:
    """The one of a place, in this process.

    Raises:
        UnikeError: The model cannot be loaded or edited here, or the store cannot be opened.
    """
    from unike.backbones import load_backbone
    from unike.store import Store

    given = dict(place)
    store = Store.open(given["store"], given.get("blobs"), make=False)
    backbone = load_backbone(given["model"], device="cpu", dtype="float32", template=given.get("template"))
    check_supported(backbone, ())
    return Desk(backbone, Sets(store, backbone))


# ---------------------------------------------------------------------- what is refused


def check_engine(version: str, config: Any, is_v2: bool) -> None:
    """Refuse what was not tried.

    Args:
        version: Of vLLM.
        config: Its ``VllmConfig``.
        is_v2: Whether the second runner runs the model.

    Raises:
        UnikeError: With what to do.
    """
    refused = {
        f"vLLM {version}; install {VERSION}": not version.startswith(f"{VERSION}."),
        "the V2 runner; set VLLM_USE_V2_MODEL_RUNNER=0": is_v2,
        "compiled models and CUDA graphs; give --enforce-eager": not config.model_config.enforce_eager,
        "prefix caching, which would mix edited and unedited states; give --no-enable-prefix-caching": bool(
            config.cache_config.enable_prefix_caching
        ),
        "several devices; leave tensor and pipeline parallelism at 1": config.parallel_config.world_size > 1,
        "speculative decoding; leave --speculative-config out": config.speculative_config is not None,
        "quantised models; leave --quantization out": config.model_config.quantization is not None,
    }
    for what, is_so in refused.items():
        if is_so:
            raise UnikeError(f"edits are not supported with {what}")


# ---------------------------------------------------------------------- where it is hooked


def put_in() -> None:
    """Let vLLM's requests name edits, and its workers let them act; twice is once."""
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_worker import Worker

    from unike.backbones.families import mini  # noqa: F401  # transformers learns of its vision tower

    if hasattr(Worker, "edits_act"):
        return
    Worker.edits_act = True
    _let_requests_name_edits(InputProcessor)
    load = Worker.load_model

    @wraps(load)
    def load_model(worker: Any, *args: Any, **kwargs: Any) -> Any:
        place = place_of(worker.vllm_config.additional_config)
        if place is None:
            return load(worker, *args, **kwargs)
        import vllm

        check_engine(vllm.__version__, worker.vllm_config, worker.use_v2_model_runner)
        found = desk(place)
        loaded = load(worker, *args, **kwargs)
        let_act(worker.model_runner, found)
        return loaded

    Worker.load_model = load_model


def _let_requests_name_edits(processor: Any) -> None:
    """Look up what each request names, where it can still be refused, and fix the version of its set."""
    from vllm.exceptions import VLLMValidationError  # what the server answers 400 to

    process = processor.process_inputs

    @wraps(process)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        given = (getattr(params, "extra_args", None) or {}).get(FIELD)
        if given is not None:
            place = place_of(self.vllm_config.additional_config)
            if place is None:
                raise VLLMValidationError(f'edits are named, but additional_config has no "{KEY}"', parameter=FIELD)
            try:
                found = desk(place).named(given)
            except UnikeError as error:
                raise VLLMValidationError(" ".join(str(error).split()), parameter=FIELD) from None
            fixed = found.label if isinstance(given, str) else list(found.ids)
            params = params.clone()
            params.extra_args = {**params.extra_args, FIELD: fixed}
        return process(self, request_id, prompt, params, *args, **kwargs)

    processor.process_inputs = process_inputs


def let_act(runner: Any, found: Desk) -> None:
    """Put the hooks on a runner's model.

    Args:
        runner: vLLM's V1 runner, its model loaded.
        found: Where edits are looked up.

    Raises:
        UnikeError: The model's layers are not where they are expected.
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    layers = find_text_stack(runner.model, "the model in vLLM").layers
    if len(layers) != found.backbone.n_layers or not all(hasattr(each, "mlp") for each in layers):
        raise UnikeError("edits are not supported for this model in vLLM; give --model-impl transformers")
    if runner.device.type != "cpu":
        LOG.warning("edits in vLLM were compared with transformers on CPUs alone, and not on %s", runner.device.type)
    move(found.backbone, runner.device)

    def asked(request: str) -> tuple[Sequence[int], Stack] | None:
        state = runner.requests[request]
        given = ((state.sampling_params and state.sampling_params.extra_args) or {}).get(FIELD)
        if given is None:
            return None
        if state.prompt_token_ids is None:
            raise UnikeError("edits are told apart by the words of a prompt: give text or tokens, not embeddings")
        return state.prompt_token_ids, found.stack(found.named(given))

    acting = Acting(found.backbone, asked, range(len(layers)))

    def begin(module: Any, args: Any, kwargs: Any) -> None:
        is_dummy = not is_forward_context_available() or get_forward_context().attn_metadata is None
        batch = runner.input_batch
        rows = (
            rows_of(batch.req_ids, runner.query_start_loc.np, batch.num_computed_tokens_cpu, batch.num_prompt_tokens)
            if not is_dummy
            else ()
        )
        acting.begin(list(rows), runner.requests.keys(), kwargs.get("inputs_embeds"))

    runner.model.register_forward_pre_hook(begin, with_kwargs=True)
    acting.put_on(layers)


def move(backbone: Backbone, device: torch.device) -> None:
    """Put what hooks compute with where the engine computes: the maps of attention and networks, and nothing else."""
    if device.type == "cpu":
        return
    backbone.fingerprint()
    for layer in backbone.layers:
        layer.to(device)
    backbone.head.to(device)
