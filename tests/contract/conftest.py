"""Fixtures of the contract tests: questions of three pictures, and both attention kernels."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.data.queries import Query


@pytest.fixture
def queries(pictures: list[Path]) -> list[Query]:
    return [
        Query("What is this?", pictures[0], "a cat"),
        Query("Which colour has the thing in the middle of it?", pictures[1], "bright red"),
        Query("Who?", pictures[2], "the baker, on a bench"),
    ]


@pytest.fixture(params=["sdpa", "eager"])
def attention_kernel(request: pytest.FixtureRequest, backbone: Backbone) -> Iterator[None]:
    usual = backbone.text_config._attn_implementation
    if request.param == "sdpa" and usual != "sdpa":
        pytest.skip("Gemma 2 caps attention scores, which sdpa cannot")
    backbone.text_stack.set_attn_implementation(request.param)
    with trace(backbone.attention(0).module) as record:
        backbone.forward(backbone.encode([Query("Who?")]))
    assert (record.output[1] is None) == (request.param == "sdpa"), "the other kernel is in use"
    yield
    backbone.text_stack.set_attn_implementation(usual)
