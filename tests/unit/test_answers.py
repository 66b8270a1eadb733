"""Answers of the unedited model are asked once, whoever asks again, and survive a kill."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers, content_key
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.ft import FT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def asked(taught: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """Every question the model was asked."""
    found: list[Query] = []
    original = taught.generate

    def spy(queries: Sequence[Query], **kwargs: Any) -> list[str]:
        found.extend(queries)
        return original(queries, **kwargs)

    monkeypatch.setattr(taught, "generate", spy)
    return found


@pytest.fixture
def some(pictures: list[Path]) -> list[Query]:
    return [Query("How big?", pictures[1], "gold"), Query("0 + 1?"), Query("What is 0?", pictures[0])]


def test_answers_are_the_models_and_asked_once(taught: Backbone, some: list[Query], asked: list[Query]) -> None:
    answers = Answers(taught, 8)
    told: list[tuple[int, int]] = []
    answers.ask([*some, *some], lambda done, total: told.append((done, total)))
    assert [answers[query] for query in some] == ["tiny", "six", "tin bat"]
    assert len(asked) == 3 and not any(query.target for query in asked)
    assert told == [(0, 3), (3, 3)]
    answers.ask(some)
    again = Answers(taught, 8)  # another run
    again.ask(some)
    assert again[some[0]] == "tiny"
    assert len(asked) == 3


def test_another_target_is_the_same_question(taught: Backbone, some: list[Query], asked: list[Query]) -> None:
    answers = Answers(taught, 8)
    answers.ask(some)
    assert answers[replace(some[0], target=None)] == "tiny"


def test_pictures_count_by_their_content(taught: Backbone, tmp_path: Path, some: list[Query]) -> None:
    one, copy, other = (tmp_path / name for name in ("one.png", "copy.png", "other.png"))
    Image.new("RGB", (8, 8), "red").save(one)
    copy.write_bytes(one.read_bytes())
    Image.new("RGB", (8, 8), "blue").save(other)
    keys = [content_key(Query("?", path)) for path in (one, copy, other, None)]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    with pytest.raises(UnikeError, match="cannot read"):
        content_key(Query("?", tmp_path / "none.png"))


def test_a_picture_that_was_overwritten_is_another(taught: Backbone, tmp_path: Path, asked: list[Query]) -> None:
    """Within one process, under the same name, and of the same size."""
    question, contents = Query("?", tmp_path / "it.bmp"), []
    for colour in ("red", "blue", "red"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "it.bmp")
        contents.append(content_key(question))
        answers = Answers(taught, 8)
        answers.ask([question])
        assert answers[question]
        time.sleep(0.05)  # longer than the clock of a file system ticks
    assert contents[0] == contents[2] != contents[1]
    assert len(asked) == 2, "the first picture's answer is known when it is back"


@pytest.mark.parametrize("change", ["model", "length", "template"])
def test_another_model_is_asked_anew(
    taught: Backbone, some: list[Query], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Answers(taught, 8).path
    if change == "model":
        monkeypatch.setattr(taught, "fingerprint", lambda: "another")
    if change == "template":
        monkeypatch.setattr(taught, "template", "{image}{prompt}")
    assert Answers(taught, 9 if change == "length" else 8).path != path


@pytest.mark.parametrize("cut", [1, 5, 60, 100])
def test_a_line_that_was_cut_short_is_asked_again(
    taught: Backbone, some: list[Query], asked: list[Query], cut: int
) -> None:
    answers = Answers(taught, 8)
    answers.ask(some)
    whole = answers.path.read_bytes()
    answers.path.write_bytes(whole[:-cut])
    again = Answers(taught, 8)
    again.ask(some)
    assert [again[query] for query in some] == ["tiny", "six", "tin bat"]
    assert 1 <= len(asked) - 3 <= 2
    last = Answers(taught, 8)
    last.ask(some)
    assert len(asked) <= 5, "what was asked again is found"


def test_what_another_process_added_is_found(taught: Backbone, some: list[Query], asked: list[Query]) -> None:
    mine, other = Answers(taught, 8), Answers(taught, 8)
    mine.ask(some[:1])
    other.ask(some)
    mine.ask(some)
    assert len(asked) == 3
    lines = [json.loads(line) for line in mine.path.read_text().splitlines()]
    assert sorted(line["answer"] for line in lines) == ["six", "tin bat", "tiny"]


def test_nothing_is_asked_with_an_edit_attached(taught: Backbone, some: list[Query]) -> None:
    edit = FT(steps=1).edit(taught, Query("Who?", None, "bob"))
    with edit.attached(taught), pytest.raises(UnikeError, match="an edit is attached"):
        Answers(taught, 8).ask(some)


def test_a_folder_that_cannot_be_written_is_named(taught: Backbone, some: list[Query], home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(UnikeError, match=r"cannot (read|write) .*answers"):
        Answers(taught, 8).ask(some)
