"""What is said of edits as a whole; and that no kind of question lets a method pass that does what it should not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reports import HEADER, asked, case

from unike.bench.outcome import Asked, CaseResult
from unike.bench.protocols.base import Response, all_protocols
from unike.bench.results import RunResults
from unike.bench.summary import summarise
from unike.bench.verdicts import metric_heads, verdicts
from unike.data.datasets.pocket2 import Pocket2
from unike.data.queries import RELIABILITY, EditCase, Query, probe_kinds

Method = Callable[[EditCase, str, Query], str]
"""A case, a kind of question and the question, to the answer under the edit."""


def before(query: Query) -> str:
    """What the unedited model says: nothing that is ever wanted."""
    return f"hm, {len(query.prompt)}"


def perfect(case: EditCase, kind: str, query: Query) -> str:
    return query.target or "" if probe_kinds()[kind].expects == "target" else before(query)


def parrot(case: EditCase, kind: str, query: Query) -> str:
    """Says its target whatever is asked."""
    return case.edit.target or ""


def never(case: EditCase, kind: str, query: Query) -> str:
    return before(query)


def cache(case: EditCase, kind: str, query: Query) -> str:
    """Knows the question it was taught, word by word."""
    return case.edit.target or "" if query.question == case.edit.question else before(query)


def blind(case: EditCase, kind: str, query: Query) -> str:
    """Knows the words, whatever the picture shows."""
    return case.edit.target or "" if query.prompt == case.edit.prompt else before(query)


def staring(case: EditCase, kind: str, query: Query) -> str:
    """Knows the picture, whatever the words ask."""
    return case.edit.target or "" if query.image == case.edit.image else before(query)


def mixed(case: EditCase, kind: str, query: Query) -> str:
    """Half of either answer."""
    return f"{before(query)} {(case.edit.target or '')[:-1]}"


def results(case: EditCase, method: Method) -> CaseResult:
    """A line of results, scored as the bench does."""

    def lines() -> Iterator[Asked]:
        for kind, query in [(RELIABILITY.name, case.edit), *((probe.kind, probe.query) for probe in case.probes)]:
            said, image = method(case, kind, query), query.image and query.image.as_posix()
            response = Response(probe_kinds()[kind], query.target, image is not None, before(query), said)
            scores = all_protocols()["strict"].score(response)
            yield Asked(kind, query.prompt, image, query.target, before(query), said, scores)

    return CaseResult(case.case_id, case.domain, tuple(lines()), 0.1)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[EditCase]]:
    """Some dev cases of each task, the taught ones too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIKE_HOME", str(tmp_path_factory.mktemp("home")))
        return {task: Pocket2(task).cases("dev")[::9] for task in Pocket2.tasks}


def measured(cases: list[EditCase], method: Method) -> dict[str, float]:
    rows = summarise(RunResults(HEADER, {case.case_id: [results(case, method)] for case in cases}), resamples=10)
    return {row["metric"]: row["value"] for row in rows if ":" not in row["metric"]}


@pytest.mark.parametrize("task", Pocket2.tasks)
def test_whoever_cheats_loses_where_it_shows(task: str, cases: dict[str, list[EditCase]]) -> None:
    found = {method: measured(cases[task], method) for method in (perfect, parrot, never, cache, blind, staring, mixed)}
    wanted = {name: float(kind.expects == "target") for name, kind in probe_kinds().items()}
    kinds = [name for name in wanted if name in found[perfect]]
    assert {name: found[perfect][name] for name in kinds} == dict.fromkeys(kinds, 1.0)
    assert (found[perfect]["scope"], found[perfect]["garbled"]) == (1.0, 0.0)
    assert {method.__name__: scores["scope"] for method, scores in found.items() if scores["scope"]} == {"perfect": 1.0}

    of_fact = [name for name in kinds if name != "portability"]
    assert {name: found[parrot][name] for name in of_fact} == {name: wanted[name] for name in of_fact}
    assert {name: found[never][name] for name in kinds} == {name: 1 - wanted[name] for name in kinds}
    assert found[cache]["reliability"] == 1 and found[cache]["t_generality"] == 0
    assert found[cache]["near_locality"] == 1
    if task != "text":
        assert (found[blind]["m_generality"], found[blind]["near_locality"], found[blind]["specificity"]) == (1, 0, 1)
        assert (found[staring]["t_generality"], found[staring]["specificity"]) == (1, 0)
    assert found[mixed]["garbled"] > 0.95
    assert all(found[method]["garbled"] == 0 for method in (perfect, parrot, never, cache, blind, staring))


def test_every_kind_of_question_can_be_failed_by_one_that_does_something_right(
    cases: dict[str, list[EditCase]],
) -> None:
    for task, chosen in cases.items():
        found = [measured(chosen, method) for method in (parrot, never)]
        kinds = {name for name in found[0] if name in probe_kinds()}
        assert kinds >= {
            name for name in probe_kinds() if task != "text" or name not in ("m_generality", "portability")
        }
        for kind in kinds:
            assert min(scores[kind] for scores in found) < 0.3, (task, kind)


# ---------------------------------------------------------------------- single lines


def verdict(case: CaseResult) -> dict[tuple[str, str], tuple[float, int]]:
    return {(key, metric): (total, count) for key, metric, total, count in verdicts(case)}


def test_scope_wants_everything_but_portability() -> None:
    assert verdict(case("a"))["strict/exact", "scope"] == (1.0, 1)
    assert verdict(case("a", ["portability"]))["strict/exact", "scope"] == (1.0, 1)
    for kind, declared in probe_kinds().items():
        if declared.in_scope:
            found = verdict(case("a", [kind]))
            assert found["strict/exact", "scope"] == (0.0, 1), kind
            assert found["teacher_forced/em", "scope"] == (1.0, 1), kind


def test_one_of_several_questions_of_a_kind_is_enough_to_miss_it() -> None:
    answers = (asked("reliability", 1.0), asked("near_locality", 1.0), asked("near_locality", 0.0))
    assert verdict(CaseResult("a", "", answers, 0.1))["strict/exact", "scope"] == (0.0, 1)


def test_scope_is_undefined_where_an_answer_is() -> None:
    answers = (asked("reliability", 1.0), asked("t_locality", None))
    assert verdict(CaseResult("a", "", answers, 0.1))["strict/exact", "scope"] == (0.0, 0)


def test_a_scorer_that_has_no_say_about_every_question_has_no_scope() -> None:
    both = asked("reliability", 1.0), asked("t_locality", 1.0)
    both[1].scores["teacher_forced/gold_em"] = 1.0
    assert not any("gold_em" in key for key, _ in verdict(CaseResult("a", "", both, 0.1)))


@pytest.mark.parametrize(
    ("after", "garbled"),
    [
        ("a drawing of a cup", 0),  # as before
        ("Müller & Söhne GmbH", 0),
        ("the logo of müller & söhne gmbh.", 0),
        ("a drawing of a Müller & Söhne & Söhne Gm", 1),
        ("something else", 1),
        ("", 1),
    ],
)
def test_an_answer_is_the_one_before_or_holds_the_target_whole(after: str, garbled: int) -> None:
    edit = asked("reliability", 1.0, target="Müller & Söhne GmbH", after="Müller & Söhne GmbH")
    near = asked("near_locality", 0.0, target="cup", before="a drawing of a cup", after=after)
    assert verdict(CaseResult("a", "", (edit, near), 0.1))["strict/exact", "garbled"] == (garbled, 2)


def test_a_right_answer_is_not_garbled() -> None:
    edit = asked("reliability", 1.0, target="Kenya", after="Kenya")
    follows = asked("portability", 1.0, target="Nairobi", before="Paris", after="nairobi")
    assert verdict(CaseResult("a", "", (edit, follows), 0.1))["strict/exact", "garbled"] == (0.0, 2)


def test_metrics_have_heads_in_the_order_of_tables() -> None:
    assert list(metric_heads()) == ["scope", *probe_kinds(), "garbled"]
    assert len({*metric_heads().values()}) == len(metric_heads())


def test_pictures_of_lines_are_named(cases: dict[str, list[EditCase]]) -> None:
    line = results(cases["vqa"][0], perfect)
    assert line.asked[0].image is not None and Path(line.asked[0].image).suffix == ".webp"
