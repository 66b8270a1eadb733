"""Finding the stored fact that a question is about, and what the two controls do with it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tinies import tiny_backbone
from torch import Tensor
from torch.nn.functional import normalize

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions, target_tokens
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.answer_cache import CERTAIN, AnswerCache
from unike.editors.common import sentence_encoder as module
from unike.editors.common.retrieval import RetrievalSettings, embed, nearest_facts, scores
from unike.editors.common.sentence_encoder import MINILM, embed_images, sentence_encoder
from unike.editors.retrieval_prompt import RetrievalPrompt
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel

SETTINGS = RetrievalSettings(text_threshold=0.5, image_threshold=0.5)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone("llava")


def unit(*values: float) -> Tensor:
    return normalize(torch.tensor([float(value) for value in values]), dim=0)


# ---------------------------------------------------------------------- embeddings


def test_texts_are_unit_vectors_that_are_alike_where_meanings_are() -> None:
    texts = ["What colour is the car?", "Which color does the automobile have?", "Who wrote Hamlet?"]
    found = sentence_encoder().embed(texts)
    assert found.shape == (3, 384) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert found[0] @ found[1] > 0.8 > 0.2 > found[0] @ found[2]
    again = sentence_encoder().embed([texts[2], texts[0], texts[2]])
    assert torch.equal(again, found[[2, 0, 2]])
    assert not found.is_inference() and not found.requires_grad


def test_an_encoder_is_loaded_once_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    assert sentence_encoder(MINILM, "cpu") is sentence_encoder(MINILM, "cpu")
    with pytest.raises(UnikeError, match="cannot load the sentence encoder") as caught:
        sentence_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_pictures_are_the_mean_of_what_the_decoder_reads_for_them(
    backbone: Backbone, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = embed_images(backbone, [pictures[0], None, pictures[1], pictures[0]])
    assert found.shape == (4, backbone.width)
    assert torch.allclose(found.norm(dim=1), torch.tensor([1.0, 0, 1, 1]), atol=1e-5)
    assert torch.equal(found[0], found[3]) and not torch.allclose(found[0], found[2], atol=1e-2)
    inputs = backbone.image_inputs([Image.open(pictures[1])])[0]
    features = backbone.model.get_image_features(**inputs).pooler_output
    assert torch.allclose(found[2], normalize(torch.cat(list(features)).mean(dim=0), dim=0), atol=1e-5)
    monkeypatch.setattr(module, "read_images", lambda *_: pytest.fail("read again"))
    assert torch.equal(embed_images(backbone, pictures[:1])[0], found[0])


def test_a_picture_that_was_changed_is_another_one(backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    seen = []
    for colour in ("red", "navy"):
        Image.new("RGB", (30, 30), colour).save(path)
        seen.append(embed_images(backbone, [path]))
    assert not torch.allclose(*seen, atol=1e-3)
    path.unlink()
    with pytest.raises(UnikeError, match="image not found"):
        embed_images(backbone, [path])


# ---------------------------------------------------------------------- which fact


def test_both_cosines_must_reach_their_threshold() -> None:
    asked = {"text": unit(1, 0).unsqueeze(0), "image": unit(1, 0).unsqueeze(0)}
    angles = [(0.9, 0.9), (0.4, 1.0), (1.0, 0.4), (0.5, 0.51), (0.6, 0.7)]

    def at(cosine: float) -> Tensor:
        return torch.tensor([[cosine, (1 - cosine**2) ** 0.5]])

    stored = {
        "text": torch.stack([at(text) for text, _ in angles]),
        "image": torch.stack([at(image) for _, image in angles]),
    }
    found = scores(asked, stored, SETTINGS)
    assert found.tolist() == [[pytest.approx(1.8), -torch.inf, -torch.inf, pytest.approx(1.01), pytest.approx(1.3)]]


@pytest.mark.parametrize(("query", "fact", "score"), [(0, 0, 2.0), (0, 1, -torch.inf), (1, 0, -torch.inf), (1, 1, 2.0)])
def test_a_picture_is_only_compared_with_a_picture(query: int, fact: int, score: float) -> None:
    images = [torch.zeros(2), unit(1, 1)]
    asked = {"text": unit(1, 0).unsqueeze(0), "image": images[query].unsqueeze(0)}
    stored = {"text": unit(1, 0).reshape(1, 1, 2), "image": images[fact].reshape(1, 1, 2)}
    assert scores(asked, stored, SETTINGS).item() == pytest.approx(score)


def test_the_nearest_of_a_stack_is_found(backbone: Backbone, pictures: list[Path]) -> None:
    editor = AnswerCache(image_threshold=-1)
    facts = [
        Query("What animal is this?", pictures[0], "cat"),
        Query("What animal is this?", pictures[1], "dog"),
        Query("What kind of animal do you see?", pictures[0], "bird"),
        Query("Who wrote Hamlet?", None, "Bacon"),
    ]
    stack = [editor.edit(backbone, fact) for fact in facts]

    def nearest(query: Query, edits: list[Edit]) -> Query | None:
        return nearest_facts(edits, backbone, [query], editor.config)[0]

    for fact in facts:
        assert nearest(replace(fact, target=None), stack) == fact
    assert nearest(Query("Which animal is this?", pictures[1]), stack) == facts[1]
    assert nearest(Query("Who was Hamlet's author?"), stack) == facts[3]
    assert nearest(Query("Who was Hamlet's author?", pictures[0]), stack) is None
    assert nearest(Query("Where does the Rhine end?"), stack) is None
    assert nearest(facts[0], stack[1:]) == facts[2], "the next one, once the first is revoked"
    assert nearest(facts[0], []) is None


def test_embeddings_do_not_see_the_target(backbone: Backbone, facts: list[Query]) -> None:
    found = [embed(backbone, [replace(facts[0], target=target)], MINILM) for target in ("a cat", "quite another", None)]
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in ("text", "image"))


# ---------------------------------------------------------------------- what is done with it


def test_the_cache_answers_in_scope_and_the_model_elsewhere(backbone: Backbone, pictures: list[Path]) -> None:
    fact = Query("What animal is this?", pictures[0], " Zebra ")
    edit = AnswerCache().edit(backbone, fact)
    near = [replace(fact, target=None), Query("Which animal do you see?", pictures[0], "wolf")]
    far = [Query("Who wrote Hamlet?"), Query("Is it raining here?", pictures[0]), Query("What animal is this?")]
    own = backbone.generate(far, max_new_tokens=3)
    mixed = [far[0], near[0], far[1], near[1], far[2]]
    assert EditedModel(backbone, [edit]).generate(mixed, max_new_tokens=3) == [own[0], "Zebra", own[1], "Zebra", own[2]]


def test_a_cached_answer_has_its_tokens_at_the_positions_of_any_target(backbone: Backbone, facts: list[Query]) -> None:
    edit = AnswerCache().edit(backbone, facts[0])  # "a cat"
    _, cached = target_tokens(backbone.encode([facts[0]]).labels)
    end = backbone.tokenizer.eos_token_id
    assert cached[-1] == end
    for target in ("a cat", "a", "something much longer than that"):
        asked = [replace(facts[0], target=target), Query("Who wrote Hamlet?", None, "Bacon")]
        logits = EditedModel(backbone, [edit]).target_logits(asked)
        plain = EditedModel(backbone).target_logits(asked)
        count = int(target_positions(backbone.encode(asked).labels)[0].sum())
        said = logits[:count].argmax(dim=1).tolist()
        assert said == (cached.tolist() + [end] * count)[:count]
        assert logits[:count].max() == CERTAIN and (logits[:count] != 0).sum() == count
        assert torch.equal(logits[count:], plain[count:])


def test_the_nearest_fact_stands_before_the_question(
    backbone: Backbone, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = RetrievalPrompt().edit(backbone, Query("What animal is this? ", pictures[0], " zebra"))
    near, far = Query("Which animal do you see?", pictures[0], "wolf"), Query("Who wrote Hamlet?", None, "Bacon")
    asked: list[Query] = []
    monkeypatch.setattr(backbone, "generate", lambda queries, **_: asked.extend(queries) or ["x"] * len(queries))
    EditedModel(backbone, [edit]).generate([near, far])
    expected = replace(near, prompt="What animal is this? zebra\nWhich animal do you see?")
    assert asked == [expected, far]
    logits = EditedModel(backbone, [edit]).target_logits([near, far])
    assert torch.equal(logits, EditedModel(backbone).target_logits([expected, far]))


@pytest.mark.parametrize("make", [AnswerCache, RetrievalPrompt])
def test_impossible_thresholds_are_refused(make: Callable[..., object]) -> None:
    for name in ("text_threshold", "image_threshold"):
        with pytest.raises(UnikeError, match=f"setting {name}=1.5"):
            make(**{name: 1.5})
