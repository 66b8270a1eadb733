"""Answers of one batch that are each written in a way of their own, and conversations of several turns."""

from dataclasses import replace
from pathlib import Path

import pytest
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.backbones.decoding import Decoding
from unike.core.errors import UnikeError
from unike.data.queries import Query, Turn
from unike.edits.edited import EditedModel

FAMILIES = ("llava", "blip2-opt", "qwen2_vl")


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(request.param)


def asked(pictures: list[Path]) -> list[Query]:
    image = pictures[0]
    return [Query("What is this?", image), Query("Whose flag is this, then?", image), Query("What colour?", image)]


def write(backbone: Backbone, queries: list[Query], *ways: Decoding) -> list[str]:
    return backbone.generate(queries, decoding=ways)


def test_greedy_rows_of_other_lengths_say_what_each_says_alone(backbone: Backbone, pictures: list[Path]) -> None:
    queries, ways = asked(pictures), [Decoding(3), Decoding(8), Decoding(5)]
    answers = write(backbone, queries, *ways)
    for query, way, answer in zip(queries, ways, answers, strict=True):
        (alone,) = write(backbone, [query], again := Decoding(way.max_new_tokens))
        assert alone == answer == way.text
        assert again.tokens == way.tokens and len(way.tokens) <= way.max_new_tokens
        assert way.reason == "length" if len(way.tokens) == way.max_new_tokens else "stop"
        assert way.prompt_tokens == len(backbone.encode([query]).labels[0])
        (usual,) = backbone.generate([query], max_new_tokens=way.max_new_tokens)
        assert answer.split("\n")[0].strip() == usual


def test_what_is_told_is_the_answer(backbone: Backbone, pictures: list[Path]) -> None:
    told: list[str] = []
    way = Decoding(12, tell=told.append)
    (answer,) = write(backbone, asked(pictures)[:1], way)
    assert "".join(told) == answer and (len(told) > 1 or len(answer) < 3)


def test_each_answer_says_when_it_is_over(backbone: Backbone, pictures: list[Path]) -> None:
    over: list[str] = []
    ways = [Decoding(n, ended=lambda n=n: over.append(f"{n} {ways[1].reason}")) for n in (2, 9)]
    write(backbone, asked(pictures)[:2], *ways)
    assert over == ["2 None", f"9 {ways[1].reason}"]


def test_a_stop_ends_an_answer_before_it(backbone: Backbone, pictures: list[Path]) -> None:
    (whole,) = write(backbone, asked(pictures)[:1], free := Decoding(12))
    stop = whole[len(whole) // 2 :][:3]
    told: list[str] = []
    (cut,) = write(backbone, asked(pictures)[:1], way := Decoding(12, stop=("never said", stop), tell=told.append))
    assert cut == whole[: whole.find(stop)].rstrip() == "".join(told)
    assert way.reason == "stop" and len(way.tokens) < len(free.tokens)


def test_drawing_is_repeatable_and_leaves_greedy_rows_alone(backbone: Backbone, pictures: list[Path]) -> None:
    query = asked(pictures)[0]
    ways = [Decoding(8), Decoding(8, temperature=5.0, seed=1), Decoding(8, temperature=5.0, seed=2)]
    answers = write(backbone, [query] * 3, *ways)
    assert answers[0] == write(backbone, [query], Decoding(8))[0]
    assert len(set(answers)) == 3
    assert answers[2] == write(backbone, [query], Decoding(8, temperature=5.0, seed=2))[0]
    assert answers[0] == write(backbone, [query], Decoding(8, temperature=5.0, top_p=1e-6))[0]
    unseeded = {write(backbone, [query], Decoding(8, temperature=5.0))[0] for _ in range(4)}
    assert len(unseeded) > 1


def test_what_nobody_wants_is_not_written(backbone: Backbone, pictures: list[Path]) -> None:
    left = [2]

    def gone() -> bool:
        left[0] -= 1
        return left[0] < 0

    query = asked(pictures)[0]
    answers = write(backbone, [query, query], way := Decoding(9, cancelled=gone), other := Decoding(9))
    assert way.reason == "cancelled" and len(way.tokens) == 3
    assert answers[1] == write(backbone, [query], Decoding(9))[0] and other.reason != "cancelled"


@pytest.mark.parametrize(
    "way", [{"temperature": 1e-320}, {"temperature": 2.0, "top_p": 1e-320}, {"temperature": 1e-38}]
)
def test_next_to_no_chance_is_none(backbone: Backbone, pictures: list[Path], way: dict[str, float]) -> None:
    query = asked(pictures)[0]
    cold, greedy = write(backbone, [query, query], Decoding(6, seed=0, **way), Decoding(6))
    assert cold == greedy


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it is a whole number from 1 on"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0; it is above 0, at most 1"),
        ({"stop": ("",)}, "an empty text ends no answer"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UnikeError, match=says):
        Decoding(**settings)


def test_one_way_for_each_question_and_no_other_settings() -> None:
    backbone = tiny_backbone("llava")
    with pytest.raises(UnikeError, match="1 answers are to be written, and 2 questions are asked"):
        backbone.generate([Query("a"), Query("b")], decoding=[Decoding()])
    with pytest.raises(UnikeError, match="leave top_k and num_beams out"):
        backbone.generate([Query("a")], decoding=[Decoding()], top_k=3, num_beams=2)


# ---------------------------------------------------------------------- conversations


def test_a_conversation_is_read_turn_by_turn(backbone: Backbone, pictures: list[Path]) -> None:
    before = (Turn("What is this?", "a flag"), Turn("Whose?", "of Kenya"))
    query = Query("And its capital?", pictures[0], history=before, system="Be brief.")
    text = backbone.tokenizer.decode(backbone.encode([query]).inputs["input_ids"][0])
    parts = ["Be brief.", "What is this?", "a flag", "Whose?", "of Kenya", "And its capital?"]
    places = [text.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)
    token = backbone.image_token
    assert places[0] < text.find(token) < text.rfind(token) < places[2]  # the picture is shown once, at first
    plain = backbone.encode([Query("And its capital?", pictures[0])])
    shown = backbone.encode([query])
    assert (shown.inputs["input_ids"] == backbone.image_token_id).sum() == (
        plain.inputs["input_ids"] == backbone.image_token_id
    ).sum()


def test_what_edits_go_by_is_the_last_question(backbone: Backbone, pictures: list[Path]) -> None:
    before = (Turn("What is this?", "a flag"),)
    query = Query("And its capital?", pictures[0], history=before, system="You are a clerk.")
    (tokens,) = backbone.encode([query]).tokens
    assert backbone.asked(tokens) == "And its capital?"


def test_what_was_said_before_is_no_answer_and_is_kept() -> None:
    query = Query("b", None, "c", ("d",), history=(Turn("a", "x"),), system="s")
    assert query.question == replace(query, target=None, also=())


def test_placeholders_and_half_characters_are_refused_in_turns() -> None:
    backbone = tiny_backbone("llava")
    with pytest.raises(UnikeError, match="holds the image placeholder"):
        backbone.encode([Query("a", history=(Turn("b", backbone.image_token),))])
    with pytest.raises(UnikeError, match="half a character"):
        EditedModel(backbone).generate([Query("a", history=(Turn("\ud83d", "b"),))])
