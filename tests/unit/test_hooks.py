"""Hooks are always taken off, traces stop where they are told to, injections replace what they name."""

import pytest
import torch
from torch import Tensor, nn

from unike.backbones.forward.hooks import Hooks, StopForward, first_input, inject, replace_first_input, trace


class Attention(nn.Module):
    """Takes its input by keyword and returns a tuple, as attention in transformers does."""

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
        return hidden_states * scale, None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(3, 3), Attention(), nn.Linear(3, 3)
        self.reached_the_end = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.attention(hidden_states=x, scale=2.0)[0]
        x = self.last(x)
        self.reached_the_end = True
        return x


@pytest.fixture
def model() -> Model:
    return Model()


X = torch.arange(6.0).reshape(2, 3)


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_removed_on_leaving(model: Model) -> None:
    before = model(X)
    with Hooks() as hooks:
        hooks.add_pre(model.first, lambda module, args, kwargs: ((args[0] + 1,), kwargs))
        hooks.add(model.last, lambda module, args, kwargs, output: output * 0)
        assert len(hooks) == hooks_on(model) == 2
        assert model(X).abs().sum() == 0
    assert hooks_on(model) == 0
    assert torch.equal(model(X), before)


def test_hooks_are_removed_when_the_block_fails(model: Model) -> None:
    with pytest.raises(ZeroDivisionError), Hooks() as hooks:
        hooks.add_pre(model.first, lambda module, args, kwargs: None)
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), trace(model.first), inject(model.last, input=X):
        _ = 1 / 0
    assert hooks_on(model) == 0


def test_prepend_decides_who_sees_the_untouched_input(model: Model) -> None:
    with inject(model.first, input=X + 1), trace(model.first, prepend=True) as early, trace(model.first) as late:
        model(X)
    assert torch.equal(early.input, X)
    assert torch.equal(late.input, X + 1)


def test_trace_records_arguments_by_position_and_by_keyword(model: Model) -> None:
    with trace([model.first, model.attention]) as (first, attention):
        model(X)
    assert torch.equal(first.input, X)
    assert torch.equal(attention.input, first.output)
    assert (attention.args, attention.kwargs["scale"]) == ((), 2.0)
    assert torch.equal(attention.output[0], first.output * 2)
    assert model.reached_the_end


@pytest.mark.parametrize("stop", [True, "input"])
def test_trace_stops_early(model: Model, stop: bool | str) -> None:
    with trace(model.attention, stop=stop) as record:
        model(X)
    assert not model.reached_the_end
    assert (record.output is None) == (stop == "input")
    assert hooks_on(model) == 0


def test_nested_traces_stop_at_their_own_signal(model: Model) -> None:
    with trace(model.first, stop=True) as outer:
        with trace(model.last, stop=True) as inner:
            model(X)
        raise AssertionError("the outer trace ends the pass first")
    assert outer.count == 1
    assert inner.count == 0
    with pytest.raises(RuntimeError, match="never called"):
        _ = inner.output
    with pytest.raises(StopForward), trace(model.first):
        raise StopForward


def test_trace_keeps_the_latest_call_unless_told_otherwise(model: Model) -> None:
    with trace(model.first) as latest, trace(model.first, keep_all=True) as every:
        model(X)
        model(X + 1)
    assert (latest.count, len(latest.calls), len(every.calls)) == (2, 1, 2)
    assert torch.equal(latest.input, X + 1)
    assert torch.equal(every.calls[0].input, X)


def test_inject_replaces_input_and_output(model: Model) -> None:
    other = torch.ones(2, 3)
    with inject(model.attention, input=other), trace(model.last) as record:
        model(X)
    assert torch.equal(record.input, other * 2)
    with inject(model.attention, output=lambda old: old - old), trace(model.last) as record:
        model(X)
    assert record.input.abs().sum() == 0


def test_gradients_reach_an_injected_tensor(model: Model) -> None:
    other = torch.ones(2, 3, requires_grad=True)
    with inject(model.last, input=other):
        model(X).sum().backward()
    assert other.grad is not None


def test_first_input() -> None:
    assert first_input((1, 2), {}) == 1
    assert first_input((), {"hidden_states": 1}) == 1
    assert replace_first_input((1, 2), {"a": 3}, 9) == ((9, 2), {"a": 3})
    assert replace_first_input((), {"hidden_states": 1, "a": 3}, 9) == ((), {"hidden_states": 9, "a": 3})
