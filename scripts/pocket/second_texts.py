"""Edits without a picture of PocketEdit's second version: facts in words, most of them made up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from first_version import FirstVersion, Row, drawn
from free_wordings import NEEDED, FreeWordings

SIZES = {"train": 120, "dev": 60, "eval": 120}
ABOUT = {
    "text_symbol": {
        "train": ["Is {element} a metal?", "Is {element} solid, liquid or gaseous in a warm room?"],
        "dev": ["Would you call {element} a metal or not?", "Is {element} a gas?"],
        "eval": ["Does {element} count as a metal?", "In what state is {element} at room temperature?"],
    },
    "text_opposite": {
        "train": ["Use the word {word} in a sentence.", "How many letters does the word {word} have?"],
        "dev": ["Make a short sentence with the word {word}.", "What letter does the word {word} end with?"],
        "eval": ["Give me a sentence that has the word {word} in it.", "Which letter does {word} begin with?"],
    },
}
"""Other questions about an element or a word, by kind of edit and split."""


@dataclass(frozen=True)
class Subject:
    """What a question of a kind can be about.

    Attributes:
        kind: Of question.
        slot: What its wordings leave open.
        name: What stands there.
        answer: The right one.
        concept: Of version 1, or the name itself.
    """

    kind: str
    slot: str
    name: str
    answer: str
    concept: str


def subjects(first: FirstVersion) -> dict[str, list[Subject]]:
    """Everything of a split that text can be asked about, by kind of question."""
    found = {
        kind: [
            Subject(kind, "country", each["country"], each[kind.removeprefix("text_")], each["concept"])
            for each in first.countries
            if kind.removeprefix("text_") in each
        ]
        for kind in ("text_capital", "text_continent")
    }
    found["text_symbol"] = [Subject("text_symbol", "element", *pair, pair[0]) for pair in first.elements]
    found["text_opposite"] = [Subject("text_opposite", "word", *pair, pair[0]) for pair in first.opposites]
    return found


def text_edits(first: FirstVersion, free: FreeWordings) -> Iterator[Row]:
    """Every fact that was written, then facts of version 1 with another's answer, up to the size of the split."""
    facts = free.facts[first.split]
    names = (f"text-{first.split}-{number:04d}" for number in range(1, SIZES[first.split] + 1))
    for fact, name in zip(facts, names, strict=False):
        yield {"case_id": name, **_written(fact, first, free, drawn(name))}
    every = subjects(first)
    order = [subject for group in every.values() for subject in group]
    drawn(f"text-{first.split}").shuffle(order)
    for subject, name in zip(order, names, strict=False):
        yield {"case_id": name, **_made_up(subject, every, first, free, drawn(name))}


def _written(fact: Row, first: FirstVersion, free: FreeWordings, rng: random.Random) -> Row:
    return {
        "kind": "fact",
        "concept": fact["subject"],
        "src": fact["prompt"],
        "alt": fact["target"],
        "rephrase": rng.sample(fact["rephrase"], NEEDED["rephrase"]),
        "near": [_about_text(question) for question in rng.sample(fact["near"], NEEDED["near"])],
        "spec": [_about_text(question) for question in rng.sample(fact["specific"], NEEDED["specific"])],
        **_elsewhere("fact", fact["subject"], first, free, rng),
    }


def _made_up(
    subject: Subject, every: dict[str, list[Subject]], first: FirstVersion, free: FreeWordings, rng: random.Random
) -> Row:
    wrong = sorted({other.answer for other in every[subject.kind]} - {subject.answer})
    target = rng.choice(wrong)
    src = rng.choice(first.wordings[subject.kind])
    others = [other for other in every[subject.kind] if other is not subject and other.answer != target]
    return {
        "kind": subject.kind,
        "concept": subject.concept,
        "src": src.format(**{subject.slot: subject.name}),
        "alt": target,
        "rephrase": [
            text.format(**{subject.slot: subject.name}) for text in free.several(subject.kind, first.split, 3, rng)
        ],
        "near": [_about_text(src.format(**{other.slot: other.name}), other.answer) for other in rng.sample(others, 2)],
        "spec": [_something_else(subject, every, first, free, rng)],
        **_elsewhere(subject.kind, subject.name, first, free, rng),
    }


def _something_else(
    subject: Subject, every: dict[str, list[Subject]], first: FirstVersion, free: FreeWordings, rng: random.Random
) -> Row:
    """Another question about the same subject."""
    slots = {subject.slot: subject.name}
    if subject.slot != "country":
        text = rng.choice(ABOUT[subject.kind][first.split])
        return {"Question": text.format(**slots), "Answer": ""}
    kind = "text_continent" if subject.kind == "text_capital" else "text_capital"
    answer = next(other.answer for other in every[kind] if other.name == subject.name)
    return {"Question": free.one(kind, first.split, rng).format(**slots), "Answer": answer}


def _elsewhere(kind: str, name: str, first: FirstVersion, free: FreeWordings, rng: random.Random) -> Row:
    """Text of another kind, and a picture with a question, both of version 1's."""
    picture = rng.choice(first.edits)
    while True:
        text = rng.choice(first.edits)
        loc_kind, slots = first.slots(text["loc"])
        # A capital and a continent are both about a country, which may be the one that is edited.
        if loc_kind != kind and name not in slots.values():
            break
    return {
        "task": "text",
        "split": first.split,
        "domain": "text",
        "loc": free.one(loc_kind, first.split, rng).format(**slots),
        "loc_ans": text["loc_ans"],
        **{key: picture[key] for key in ("m_loc", "m_loc_q", "m_loc_a")},
        "m_loc_more": [],
        "port_new": [],
    }


def _about_text(question: str, answer: str = "") -> Row:
    return {"image": None, "Question": question, "Answer": answer}
