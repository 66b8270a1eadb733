"""What the plugin of vLLM is told, what it refuses, and how it is put into vLLM: with stand-ins for its parts."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.edits.edit import Edit
from unike.serve.vllm_plugin import plugin, register
from unike.serve.vllm_plugin.plugin import check_engine, desk, let_act, place_of
from unike.store import Store


def config(**changed: Any) -> Any:
    """What vLLM calls its ``VllmConfig``, as the plugin wants it."""
    found = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=True, quantization=None),
        cache_config=SimpleNamespace(enable_prefix_caching=False),
        parallel_config=SimpleNamespace(world_size=1),
        speculative_config=None,
        additional_config={},
    )
    for path, value in changed.items():
        part, _, name = path.rpartition("__")
        setattr(getattr(found, part) if part else found, name, value)
    return found


@pytest.mark.parametrize(
    ("changed", "version", "is_v2", "says"),
    [
        ({}, "0.33.1", False, r"vLLM 0.33.1; install 0.32"),
        ({}, "0.320.0", False, r"vLLM 0.320.0; install 0.32"),
        ({}, "0.32.0+cpu", True, "the V2 runner; set VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"model_config__enforce_eager": False}, "0.32.0", False, "give --enforce-eager"),
        ({"cache_config__enable_prefix_caching": True}, "0.32.0", False, "give --no-enable-prefix-caching"),
        ({"parallel_config__world_size": 2}, "0.32.0", False, "leave tensor and pipeline parallelism at 1"),
        ({"speculative_config": object()}, "0.32.0", False, "leave --speculative-config out"),
        ({"model_config__quantization": "fp8"}, "0.32.0", False, "leave --quantization out"),
    ],
)
def test_what_was_not_tried_is_refused(changed: dict[str, Any], version: str, is_v2: bool, says: str) -> None:
    check_engine("0.32.0+cpu", config(), False)
    with pytest.raises(UnikeError, match=f"^edits are not supported with .*{says}") as error:
        check_engine(version, config(**changed), is_v2)
    assert "\n" not in str(error.value)


def test_a_place_is_a_model_and_a_store() -> None:
    assert place_of({}) is place_of(None) is place_of(object()) is place_of({"other": 1}) is None
    assert dict(place_of({"unike": {"model": "m", "store": "s"}}) or ()) == {"model": "m", "store": "s"}
    for given, says in (
        ({"model": "m"}, "lacks 'store'"),
        ({"model": "m", "store": "s", "stroe": "x"}, "has 'stroe', which is not known; it has model, store, blobs"),
        ({"model": "m", "store": 3}, "is an object of texts"),
        ("store", "is an object of texts"),
    ):
        with pytest.raises(UnikeError, match=says):
            place_of({"unike": given})


@pytest.fixture
def place(tiny_folder: Path, tmp_path: Path, edits: dict[str, Edit]) -> Iterator[dict[str, str]]:
    store = Store.open(tmp_path / "store")
    store.add(edits["a"], set="tenant", author="t")
    store.add(edits["b"], set="tenant", author="t")
    store.close()
    yield {"model": str(tiny_folder), "store": str(tmp_path / "store")}
    desk.cache_clear()


def test_what_a_request_names(place: dict[str, str]) -> None:
    found = desk(place_of({"unike": place}) or ())
    newest, first = found.named("tenant"), found.named("tenant:1")
    assert newest.label == "tenant:2" and len(newest.edits) == 2 and len(first.edits) == 1
    assert found.named(list(first.ids)).edits == first.edits
    assert found.stack(newest) is found.stack(found.named("tenant:2"))
    for given, says in (
        ("nobody", "there is no set 'nobody'"),
        ("tenant:9", "has the versions 0 to 2, and no 9"),
        ("tenant:x", "'x' is no version of the set 'tenant'"),
        (["zzzz"], "there is no edit that begins with 'zzzz'"),
        ("", "edits names a set"),
        ([], "edits names a set"),
        (7, "edits names a set"),
        (["a"] * 101, "101 edits are named"),
    ):
        with pytest.raises(UnikeError, match=says) as error:
            found.named(given)
        assert "\n" not in str(error.value)


def test_a_store_that_is_not_there_is_not_made(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnikeError, match="there is no store in"):
        desk((("model", str(tiny_folder)), ("store", str(tmp_path / "missing"))))
    assert not (tmp_path / "missing").exists()


# ---------------------------------------------------------------------- put into stand-ins


class Refused(Exception):
    """What vLLM's server answers 400 to."""

    def __init__(self, message: str, *, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class Params:
    """Of sampling."""

    def __init__(self, extra_args: Any) -> None:
        self.extra_args = extra_args

    def clone(self) -> "Params":
        return Params(self.extra_args)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand-ins for what the plugin asks of vLLM."""

    class InputProcessor:
        vllm_config = config()

        def process_inputs(self, request_id: str, prompt: Any, params: Any, tasks: Any) -> Any:
            return params.extra_args

    class Worker:
        vllm_config = config()
        use_v2_model_runner = False
        loaded = 0

        def load_model(self) -> None:
            self.loaded += 1

    context = SimpleNamespace(attn_metadata=object())
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": "0.32.0+cpu"},
        "vllm.exceptions": {"VLLMValidationError": Refused},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.input_processor": {"InputProcessor": InputProcessor},
        "vllm.v1.worker": {},
        "vllm.v1.worker.gpu_worker": {"Worker": Worker},
        "vllm.forward_context": {
            "get_forward_context": lambda: context,
            "is_forward_context_available": lambda: True,
        },
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    register()
    register()
    return SimpleNamespace(worker=Worker(), processor=InputProcessor(), context=context)


def test_a_request_is_refused_or_fixed_at_a_version_where_it_comes_in(
    vllm: SimpleNamespace, place: dict[str, str]
) -> None:
    def ask(extra: Any) -> Any:
        return vllm.processor.process_inputs("1", "?", Params(extra), ("generate",))

    assert ask(None) is None and ask({"other": 1}) == {"other": 1}
    with pytest.raises(Refused, match='edits are named, but additional_config has no "unike"'):
        ask({"edits": "tenant"})
    vllm.processor.vllm_config.additional_config = {"unike": place}
    given = {"edits": "tenant", "other": 1}
    assert ask(given) == {"edits": "tenant:2", "other": 1} and given["edits"] == "tenant"
    with pytest.raises(Refused, match="there is no set 'nobody'"):
        ask({"edits": "nobody"})


def test_a_worker_without_the_setting_is_left_alone_and_one_that_cannot_is_refused(
    vllm: SimpleNamespace, place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Any] = []
    monkeypatch.setattr(plugin, "let_act", lambda *given: put.append(given))
    vllm.worker.load_model()
    assert vllm.worker.loaded == 1 and not put
    vllm.worker.vllm_config.additional_config = {"unike": place}
    vllm.worker.use_v2_model_runner = True
    with pytest.raises(UnikeError, match="the V2 runner"):
        vllm.worker.load_model()
    assert vllm.worker.loaded == 1  # it is known before the model is loaded
    vllm.worker.use_v2_model_runner, vllm.worker.model_runner = False, "runner"
    vllm.worker.load_model()
    assert vllm.worker.loaded == 2 and put[0][0] == "runner"


class Layer(nn.Module):
    """Of a model that adds one to what it is given, in two steps of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Identity(), nn.Identity()


class Model(nn.Module):
    """Runs its layers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(count))

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> Any:
        for layer in self.layers:
            inputs_embeds = layer.mlp(layer.self_attn(inputs_embeds))
        return inputs_embeds


def runner_of(model: Backbone, layers: int, asked: dict[str, Any]) -> Any:
    """With one row of each request, all of a prompt of one token."""

    def state(edits: Any) -> Any:
        params = None if edits is None else SimpleNamespace(extra_args={"edits": edits})
        return SimpleNamespace(sampling_params=params, prompt_token_ids=[5])

    count = len(asked)
    return SimpleNamespace(
        model=Model(layers),
        device=torch.device("cpu"),
        requests={name: state(edits) for name, edits in asked.items()},
        query_start_loc=SimpleNamespace(np=list(range(count + 1)) + [count] * 3),
        input_batch=SimpleNamespace(
            req_ids=list(asked), num_computed_tokens_cpu=[0] * count, num_prompt_tokens=[1] * count
        ),
    )


def test_edits_act_on_the_rows_of_those_who_named_them(
    vllm: SimpleNamespace, place: dict[str, str], model: Backbone
) -> None:
    found = desk(place_of({"unike": place}) or ())
    runner = runner_of(model, model.n_layers, {"a": None, "b": "tenant:1", "c": "tenant:2"})
    let_act(runner, found)
    given = torch.ones(3, model.width)
    made = runner.model(inputs_embeds=given)
    assert torch.equal(made[0], given[0])
    assert not torch.equal(made[1], given[1]) and not torch.equal(made[1], made[2])
    vllm.context.attn_metadata = None  # a run to warm up, with rows of nobody
    assert torch.equal(runner.model(inputs_embeds=given), given)


def test_a_model_of_another_build_is_refused(vllm: SimpleNamespace, place: dict[str, str], model: Backbone) -> None:
    found = desk(place_of({"unike": place}) or ())
    with pytest.raises(UnikeError, match="give --model-impl transformers"):
        let_act(runner_of(model, model.n_layers + 1, {}), found)
