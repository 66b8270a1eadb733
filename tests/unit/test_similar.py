"""Which question of a benchmark is most like another."""

from dataclasses import replace
from pathlib import Path

from unike.data.queries import EditCase, Query
from unike.data.similar import with_near


def test_a_published_case_gets_the_most_similar_question_about_another_picture() -> None:
    def made(number: int, prompt: str, target: str, picture: str = "") -> EditCase:
        return EditCase(f"{number}", Query(prompt, Path(picture or f"{number}.jpg"), target), ())

    cases = [
        made(0, "What colour is the bus?", "red"),
        made(1, "What colour is the dog?", "brown"),
        made(2, "what colour is the bus", "Red."),  # the same words, but the same answer
        made(3, "The bus is what colour?", "blue"),
        made(4, "The bus is what colour?", "green", "0.jpg"),  # another answer, but the same picture
        made(5, "Why?", "thirst"),
    ]
    found = with_near(cases)
    near = [[probe.query for probe in case.probes if probe.kind == "near_locality"] for case in found]
    assert near == [[cases[n].edit] for n in (3, 2, 3, 4, 2)] + [[]]
    assert [replace(case, probes=()) for case in found] == cases
    assert with_near(found)[:5] == found[:5], "one that has such a question keeps it"
