"""What a question asks and of whom, read from its words: examples, margins, and whatever may be in a text."""

import json
from pathlib import Path

import pytest
import torch

from unike.editors.unike.asked import ASKED_WIDTH
from unike.editors.unike.gate import ASKED, ASKED_OF_NAMED, NAMED
from unike.editors.unike.likeness import Reading, named_alike
from unike.editors.unike.words import (
    NAMED_WIDTH,
    Wording,
    bare_question,
    learned,
    rarities,
    read_words,
    spread,
    trigrams_of,
    without_names,
)

REPOSITORY = Path(__file__).parents[3]

# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "shown", "names"),
    [
        ("What is the capital of Kenya?", "What is the capital of it?", "Kenya"),
        ("At what time does the Corvane Library open?", "At what time does the it open?", "Corvane Library"),
        ("What is Kenya's capital?", "What is it's capital?", "Kenya's"),
        ("Who is Ann, and where is Bo?", "Who is it, and where is it?", "Ann, Bo"),
        ("Can I see what I'm holding?", "Can I see what I'm holding?", ""),
        ("It is red. What is it?", "It is red. What is it?", ""),
        ("What happened in 1969?", "What happened in it?", "1969"),
        ("Is this a B52 or a boat?", "Is this a it or a boat?", "B52"),
        ("what is this?", "what is this?", ""),
        ("who's the CEO of Brannock?", "who's the CEO of it?", "Brannock"),
        ("What's Brannock, the CEO's firm?", "What's it, the CEO's firm?", "Brannock"),
        ("WHO RUNS BRANNOCK?", "who runs it?", "BRANNOCK"),
        ("WHO WON THE BRANNOCK CUP IN 2024?", "who won the it cup in it?", "BRANNOCK, 2024"),
        ("What do CEOs say of TV’s end?", "What do CEOs say of TV’s end?", ""),
        ("Who sells OS 9?", "Who sells it?", "OS 9"),
        ("这是 IBM 吗", "这是 it 吗", "IBM"),
        ("", "", ""),
    ],
)
def test_names_are_put_out_of_sight(text: str, shown: str, names: str) -> None:
    assert without_names(text) == (shown, names)


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("My aunt sent me this from Kenya. What is it?", "What is it?"),
        ("What's this? Tell me.", "What's this?"),
        ("Is it red? Or blue? I wonder.", "Is it red? Or blue?"),
        ("a photo of", "a photo of"),
        ("Tell me what this is.", "Tell me what this is."),
        ("Is it worth 3.5 million?", "Is it worth it million?"),
        ("", ""),
    ],
)
def test_a_question_is_found_among_other_sentences(text: str, asks: str) -> None:
    assert bare_question(text) == asks


@pytest.mark.parametrize(
    ("text", "asks", "names"),
    [
        ("How high is Mt. Everest?", "How high is it?", "Mt Everest"),
        ("What is the capital of St. Lucia?", "What is the capital of it?", "St Lucia"),
        ("Who runs the U.S. Mint today?", "Who runs the it today?", "U.S Mint"),
    ],
)
def test_a_short_form_does_not_end_a_question(text: str, asks: str, names: str) -> None:
    """It belongs to the name behind it."""
    assert bare_question(text) == asks
    assert without_names(text)[1] == names


# ---------------------------------------------------------------------- what is asked

ABOUT_PICTURES = {
    "What animal is this?": ("Which animal do you see here?", "Can you tell me what animal that is?"),
    "Who painted this picture?": ("Who is the painter of this?", "By whom was this painted?"),
    "In which year was it built?": ("When was this built?", "What year was this built in?"),
}
"""Questions, and others in other words."""


def asked_alike(one: str, other: str) -> float:
    first, second = read_words([one, other]).asked
    return float(first @ second)


def test_rewordings_ask_the_same_and_other_questions_do_not() -> None:
    """Told apart by a margin, on both sides of where the gate begins to open."""
    for question, same in ABOUT_PICTURES.items():
        others = [other for other in ABOUT_PICTURES if other != question]
        nearest = max(asked_alike(question, other) for other in others)
        for rewording in same:
            assert asked_alike(question, rewording) > nearest + 0.2, rewording
            assert ASKED(torch.tensor(asked_alike(question, rewording))) == 1
        assert ASKED(torch.tensor(nearest)) == 0


def test_who_is_asked_about_does_not_change_what_is_asked() -> None:
    kenya, uganda = read_words(["What is the capital of Kenya?", "What is the capital of Uganda?"])[0]
    assert torch.allclose(kenya, uganda)


# ---------------------------------------------------------------------- of whom


def pair(edit: str, text: str) -> tuple[float, float]:
    """How alike what they ask is, and whom they name, as the gate of an edit without a picture has it."""
    own, read = read_words([edit]), read_words([text])
    nothing = torch.zeros(1, 1)
    key = Reading(nothing, nothing, own.asked, own.said, own.rare)
    named = named_alike(key, Reading(*(x[0] for x in (nothing, nothing, read.asked, read.said, read.names))))
    return float(own.asked[0] @ read.asked[0]), named.item()


def test_an_edit_without_a_picture_is_told_by_its_names() -> None:
    edit = "What is the capital of Kenya?"
    for rewording in ("Which city is the capital of Kenya?", "Kenya's capital?", "Tell me the capital of Kenya."):
        asked, named = pair(edit, rewording)
        assert ASKED_OF_NAMED(torch.tensor(asked)) == 1 and NAMED(torch.tensor(named)) == 1, rewording
    for other in ("What is the capital of Uganda?", "Which city is the capital of Peru?"):
        asked, named = pair(edit, other)
        assert ASKED_OF_NAMED(torch.tensor(asked)) == 1 and NAMED(torch.tensor(named)) == 0, other
    asked, named = pair(edit, "What currency does Kenya use?")
    assert ASKED_OF_NAMED(torch.tensor(asked)) == 0 and NAMED(torch.tensor(named)) == 1
    assert pair(edit, "What is the capital of Kenya, and what of Uganda?")[1] < pair(edit, edit)[1] - 0.2


def test_a_misspelt_name_is_nearer_than_another_one() -> None:
    edit = "What is the capital of Kenya?"
    right, wrong, other = (pair(edit, edit.replace("Kenya", name))[1] for name in ("Kenya", "Kenia", "Uganda"))
    assert right == pytest.approx(1, abs=1e-5)
    assert other + 0.25 < wrong < right - 0.1


def test_rare_words_weigh_more_and_all_add_up_to_1() -> None:
    read = read_words(["What is the capital of Kenya?", "Is Kenya near Uganda?", "What is this?"])
    assert torch.allclose(read.rare.sum(dim=1), torch.ones(3), atol=1e-5)
    assert read.names.sum(dim=1).tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    assert (read.rare >= 0).all() and ((read.said == 0) | (read.said == 1)).all()
    assert not read.rare[read.said == 0].any(), "only what is said is rare"
    of_kenya = trigrams_of([["kenya"]])[0]
    assert read.rare[0] @ of_kenya > 0.8, "the name weighs most"
    assert torch.allclose(spread([rarities(["kenya"])])[0], of_kenya / of_kenya.sum(), atol=1e-6)
    assert not spread([{}]).any() and not trigrams_of([[]]).any()


def test_capitals_count_for_names_alone() -> None:
    small, large = read_words(["what is the capital of kenya?", "What is the capital of Kenya?"]).said
    assert torch.equal(small, large)


@pytest.mark.parametrize(
    ("edited", "asked", "is_of_whom"),
    [
        ("who won the brannock cup in 2024?", "who won the carvane cup in 2024?", False),
        ("WHO WON THE BRANNOCK CUP IN 2024?", "WHO WON THE CARVANE CUP IN 2024?", False),
        ("WHO WON THE BRANNOCK CUP IN 2024?", "Who won the Brannock Cup in 2024?", True),
        ("Who runs Brannock Ltd?", "who runs brannock", True),
        ("Who runs Brannock Ltd?", "Who runs Brannock today?", True),
        ("Who runs Brannock Ltd?", "Who runs Brannock Dairy?", False),
        ("Who runs Brannock Dairy?", "Who runs the dairy in Brannock?", True),
        ("Who runs Brannock Ltd?", "WHO RUNS CARVANE LTD?", False),
        ("What is the price of OS 9?", "What is the price of USB 9?", False),
    ],
)
def test_whom_an_edit_is_about(edited: str, asked: str, is_of_whom: bool) -> None:
    """Numbers alone name nobody; a legal form may be left out, a common word beside a rare one not be put in."""
    assert NAMED(torch.tensor(pair(edited, asked)[1])).item() == is_of_whom


# ---------------------------------------------------------------------- learned from, and measured by


def test_hardly_a_wording_that_is_learned_from_is_measured_by() -> None:
    """Those that were written for learning; the data set has some short ones of its own that strangers use, too."""
    written = json.loads((REPOSITORY / "scripts" / "gate" / "kinds.json").read_text(encoding="utf-8"))
    exams = json.loads((REPOSITORY / "benchmarks" / "wordings.json").read_text(encoding="utf-8"))
    learned_from = {text for sort in ("pictured", "bare", "more") for some in written[sort].values() for text in some}
    learned_from |= {text for group in written["twisted"] for text in (group["base"], *group["same"], *group["near"])}
    learned_from |= set(written["single"])
    measured_by = {text for exam in exams for text in (exam["edited"], *exam["same"], *exam["other"])}
    assert len(learned_from) > 10_000 and len(measured_by) > 1_500
    assert {bare(text) for text in learned_from} & {bare(text) for text in measured_by} == {
        "who is this person",
        "what colour is this",
        "what breed is this dog",
        "what is the capital of the country with this flag",
    }


def bare(text: str) -> str:
    return text.casefold().strip(" ?.!:")


# ---------------------------------------------------------------------- any text


ODD = (
    "",
    " ",
    "?",
    "😀 🦊",
    "北京是什么？",
    "1234 5678",
    "a" * 3000,
    "\n\t",
    "É",
    "x\u0301",
    "\u200b",
    "I",
    "İ ﬁ",
    "__",
)


def test_any_text_can_be_read() -> None:
    read = read_words(ODD)
    assert [part.shape for part in read] == [(len(ODD), width) for width in (ASKED_WIDTH, *[NAMED_WIDTH] * 3)]
    for part in read:
        assert part.isfinite().all() and part.device.type == "cpu" and not part.requires_grad
    assert torch.allclose(read.asked.norm(dim=1), torch.ones(len(ODD)), atol=1e-4)
    for sums in (read.rare.sum(dim=1), read.names.sum(dim=1)):
        assert all(total == pytest.approx(round(total), abs=1e-4) and total < 1.1 for total in sums.tolist())


def test_a_text_alone_is_read_as_beside_others() -> None:
    texts = ["What is this?", "Where does the Corvane Library stand, and who built it in 1910?", "😀"]
    together = read_words(texts)
    for row, text in enumerate(texts):
        for one, all_ in zip(read_words([text]), together, strict=True):
            assert torch.allclose(one[0], all_[row], atol=1e-5)


def test_no_text_is_read_as_no_rows() -> None:
    assert isinstance(read_words(["x"]), Wording)
    with torch.no_grad():
        assert [len(part) for part in (trigrams_of([]), spread([]))] == [0, 0]


def test_reading_for_the_first_time_draws_nothing_from_anybodys_numbers() -> None:
    before = torch.get_rng_state()
    learned.cache_clear()
    read_words(["A question that nothing has asked before, has it?"])
    assert torch.equal(torch.get_rng_state(), before)
