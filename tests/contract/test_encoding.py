"""How every backbone reads a question and says an answer, on a tiny random model of every family that is found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoding import greedy_without_cache
from patches import Patch, generation_configs
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import Hooks
from unike.backbones.template import PRESETS
from unike.core.errors import UnikeError
from unike.data.queries import Query

# ---------------------------------------------------------------------- encoding


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("append_eos", [True, False])
def test_labels_are_exactly_the_target(
    backbone: Backbone, queries: list[Query], padding_side: str, append_eos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "append_eos", append_eos)
    batch = backbone.encode(queries, padding_side=padding_side)
    prompts = backbone.encode([Query(q.prompt, q.image) for q in queries], padding_side=padding_side)
    assert (prompts.labels == -100).all()
    for row, query in enumerate(queries):
        ids, labels, p = batch.inputs["input_ids"][row], batch.labels[row], int(batch.prompt_last[row])
        labelled = labels != -100
        assert torch.equal(labels[labelled], ids[labelled])
        text = backbone.tokenizer.decode(labels[labelled])
        assert text.strip() == query.target + (backbone.tokenizer.eos_token if append_eos else "")
        assert not labelled[: p + 1].any()
        assert labelled[p + 1]
        # Teacher forcing and generation read the same prompt.
        real = batch.inputs["attention_mask"][row].bool() & (torch.arange(len(ids)) <= p)
        alone = prompts.inputs["input_ids"][row][prompts.inputs["attention_mask"][row].bool()]
        assert torch.equal(ids[real], alone)
        assert prompts.inputs["input_ids"][row, prompts.prompt_last[row]] == ids[p]


def test_a_target_is_tokenised_with_its_prompt(backbone: Backbone) -> None:
    batch = backbone.encode([Query("What is it?", target="a thin cat")])
    alone = backbone.tokenizer("a thin cat", add_special_tokens=False)["input_ids"]
    labelled = batch.labels[batch.labels != -100].tolist()
    if not backbone.template.endswith("\n"):
        assert labelled[: len(alone)] != alone


WORDINGS = (
    "What is this?",
    "Which colour has the thing, and who  painted it?",
    "a photo of",
    "Is 1 < 2 {x} || or not?",
    "Wer schrieb „Faust“ \U0001f98a?",
    "北京是什么？",
    "What does the word Answer stand for?",
)


@pytest.mark.parametrize("template", [None, *PRESETS, "{image}\n{prompt}\nAnswer: || Say: {prompt}"])
def test_a_question_comes_back_word_for_word(backbone: Backbone, pictures: list[Path], template: str | None) -> None:
    """From its tokens, with a picture and without, whatever the target, alone or in a padded batch."""
    model = type(backbone)(backbone.model, **backbone.processors, source="tiny", template=template)
    for image in (None, pictures[1]):
        queries = [Query(text, image, target) for text, target in zip(WORDINGS, "abcdefg", strict=True)]
        for padding_side in ("left", "right"):
            batch = model.encode(queries, padding_side=padding_side)
            assert [model.asked(tokens) for tokens in batch.tokens] == [" ".join(q.prompt.split()) for q in queries]
            assert not any(model.image_token_id in tokens for tokens in batch.tokens)
            assert (batch.shown is None) is (image is None)
            if batch.shown is not None:
                assert batch.shown.any(dim=1).all() and not batch.shown[batch.labels != -100].any()
                assert torch.equal(batch.shown, batch.inputs["input_ids"] == model.image_token_id)
        for query in queries[:2]:
            assert model.encode([query]).tokens == model.encode([replace(query, target=None)]).tokens


def test_rows_of_a_mixed_batch_equal_single_rows(backbone: Backbone, queries: list[Query]) -> None:
    text = [Query("Who wrote the long book about it?", target="a poet"), Query("When?", target="1805")]
    mixed = [queries[0], text[0], queries[1], text[1], queries[2]]
    if not backbone.mixes_images:
        with pytest.raises(UnikeError, match="cannot mix"):
            backbone.encode(mixed)
    for group in [mixed] if backbone.mixes_images else [queries, text]:
        for padding_side in ("right", "left"):
            together = backbone.encode(group, padding_side=padding_side)
            logits = backbone.forward(together)
            for row, query in enumerate(group):
                single = backbone.encode([query])
                real = together.inputs["attention_mask"][row].bool()
                assert torch.equal(together.inputs["input_ids"][row][real], single.inputs["input_ids"][0])
                assert torch.allclose(logits[row][real], backbone.forward(single)[0], atol=1e-4)


def test_images_and_prompts_count(backbone: Backbone, pictures: list[Path]) -> None:
    batch = backbone.encode([Query("What is this?", pictures[0]), Query("What is this?", pictures[2])])
    rows = [backbone.forward(backbone.encode([Query("What is this?", picture)]))[0, -1] for picture in pictures[::2]]
    assert len(batch) == 2
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)


def test_what_cannot_be_encoded_is_refused(backbone: Backbone, pictures: list[Path]) -> None:
    for wrong, message in [
        ([], "no query"),
        ([Query("a", target="  ")], "target of 'a' is empty"),
        ([Query(f"a {backbone.image_token} b")], "holds the image placeholder"),
    ]:
        with pytest.raises(UnikeError, match=message):
            backbone.encode(wrong)
    with pytest.raises(UnikeError):
        backbone.encode([Query("a", pictures[0].with_name("missing.png"))])
    with pytest.raises(ValueError, match="padding_side"):
        backbone.encode([Query("a")], padding_side="middle")


@pytest.mark.parametrize("template", ["{image}{question}", "{image} only", "{prompt} only", "{image}{prompt}{", "{}"])
def test_a_wrong_template_is_refused(template: str) -> None:
    tiny = tiny_backbone("llava")
    with pytest.raises(UnikeError, match="template"):
        type(tiny)(tiny.model, tiny.tokenizer, tiny.image_processor, source="x", template=template)


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with pytest.raises(UnikeError, match="at most 512"):
        tiny_backbone("llava").encode([Query("word " * 600)])


# ---------------------------------------------------------------------- generation


@pytest.mark.usefixtures("attention_kernel")
def test_generate_under_hooks_equals_decoding_without_a_cache(backbone: Backbone, queries: list[Query]) -> None:
    asked = [*queries[:2], Query("Who wrote it?")]
    plain = backbone.generate(asked, max_new_tokens=6)
    with Hooks() as hooks:
        Patch(backbone, (-2, -1)).on(hooks)
        hooked = backbone.generate(asked, max_new_tokens=6)
        assert hooked == [greedy_without_cache(backbone, query, 6) for query in asked]
        assert len(backbone.generate(asked, max_new_tokens=3, num_beams=2)) == 3
    assert hooked != plain
    assert backbone.generate(asked, max_new_tokens=6) == plain


def test_generate_ignores_targets_and_a_checkpoints_own_settings(backbone: Backbone, queries: list[Query]) -> None:
    bare = [Query(q.prompt, q.image) for q in queries]
    expected = backbone.generate(bare, max_new_tokens=6)
    assert backbone.generate(queries, max_new_tokens=6) == expected
    with pytest.MonkeyPatch.context() as patch:
        for config in generation_configs(backbone):
            patch.setattr(config, "repetition_penalty", 50.0)
            patch.setattr(config, "do_sample", True)
        assert backbone.generate(queries, max_new_tokens=6) == expected
    assert backbone.generate([]) == []
    assert backbone.ask(queries[0].image, queries[0].prompt, max_new_tokens=6) == expected[0]
    assert backbone.ask(str(queries[0].image), queries[0].prompt, max_new_tokens=6) == expected[0]
