"""How MiniGPT-4 is asked: a BLIP-2 whose config brings a conversation as its template."""

import re

import pytest
from tinies import tiny_backbone

from unike.backbones.convert.minigpt4 import TEMPLATE
from unike.backbones.families.blip2 import Blip2
from unike.core.errors import UnikeError
from unike.data.queries import Query


@pytest.fixture(scope="module")
def conversing() -> Blip2:
    """A tiny model whose config brings the template."""
    tiny = tiny_backbone("blip2-llama")
    tiny.config.prompt_template = TEMPLATE
    return Blip2(tiny.model, tiny.tokenizer, tiny.image_processor, source="tiny")


def test_without_an_image_there_are_no_tags_for_one(conversing: Blip2) -> None:
    ids = conversing.encode([Query("Who?", None, "bob")]).inputs["input_ids"][0]
    assert conversing.tokenizer.decode(ids) == "<s>###Human: Who? ###Assistant: bob</s>"


@pytest.mark.parametrize(
    ("said", "answer"),
    [(" a cat###Human: and", "a cat"), (" a cat ### Assistant", "a cat"), (" a cat\n###", "a cat"), ("###", "")],
)
def test_an_answer_ends_where_the_next_turn_begins(conversing: Blip2, said: str, answer: str) -> None:
    ids = conversing.tokenizer(said, add_special_tokens=False)["input_ids"]
    assert conversing.answer_text(ids) == answer


def test_other_blip2_may_say_what_they_like() -> None:
    tiny = tiny_backbone("blip2-opt")
    assert tiny.answer_text(tiny.tokenizer("the key ###", add_special_tokens=False)["input_ids"]) == "the key ###"


def test_a_bad_template_in_a_config_is_refused() -> None:
    tiny = tiny_backbone("blip2-opt")
    tiny.config.prompt_template = "{prompt}"
    with pytest.raises(UnikeError, match=re.escape("must hold {image} and {prompt} once each")):
        Blip2(tiny.model, tiny.tokenizer, tiny.image_processor, source="tiny")
