import pytest

from unike.bench.protocols.base import Prediction, Response, agreement, all_protocols, the_protocol, views
from unike.core.errors import UnikeError
from unike.data.queries import RELIABILITY, Probe, ProbeKind, Query, probe_kinds

KINDS = list(probe_kinds().values())


def test_a_probe_is_of_a_kind_that_is_declared():
    assert KINDS[0] == RELIABILITY
    for kind in KINDS[1:]:
        assert Probe(kind.name, Query("?")).kind == kind.name
    for name in ("reliability", "generality"):
        with pytest.raises(ValueError, match=rf"unknown probe kind '{name}' \(known: t_generality, m_generality,"):
            Probe(name, Query("?"))


def response(kind: ProbeKind, before: str, after: str, target: str | None, **more: Prediction | None) -> Response:
    return Response(kind, target, False, before, after, **more)


EDITED = next(kind for kind in KINDS if kind.expects == "target")
LEFT = next(kind for kind in KINDS if kind.expects == "unchanged")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("before", "after", "target", "as_edited", "as_before"),
    [
        ("chad", "The Kenya.", "kenya", 1.0, 0.0),
        ("chad", "chad", "kenya", 0.0, 1.0),
        ("Kenya", "kenya", "kenya", 1.0, 0.0),  # locality compares what is said, to the letter
        ("", "", "kenya", 0.0, 1.0),
        ("chad", "kenya or so", "kenya", 0.0, 0.0),
        ("chad", "mali", None, 0.0, 0.0),
    ],
)
def test_strict(kind, before, after, target, as_edited, as_before):
    wanted = as_before if kind.expects == "unchanged" else as_edited
    assert all_protocols()["strict"].score(response(kind, before, after, target)) == {"strict/exact": wanted}


@pytest.mark.parametrize(("after", "right"), [("Kenya", 1.0), ("the republic of Kenya", 1.0), ("Chad", 0.0), ("", 0.0)])
def test_any_of_several_right_answers_is_right(after, right):
    asked = Response(EDITED, "kenya", False, "chad", after, also=("Republic of Kenya", ""))
    assert all_protocols()["strict"].score(asked) == {"strict/exact": right}


@pytest.mark.parametrize(
    ("guesses", "wanted", "every", "share"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0, 1.0),
        ([1, 9, 3], [1, 2, 3], 0.0, 2 / 3),
        ([9], [1], 0.0, 0.0),
        ([2, 1], [1, 2], 0.0, 0.0),
    ],
)
def test_agreement_is_position_by_position(guesses, wanted, every, share):
    assert agreement(guesses, wanted) == (every, share)
    gold = Prediction(wanted, wanted, guesses)
    edited = response(EDITED, "no", "yes", "yes", at_gold=gold)
    forced, mmedit = all_protocols()["teacher_forced"], all_protocols()["mmedit"]
    assert forced.score(edited) == {"teacher_forced/em": every, "teacher_forced/token": share}
    assert mmedit.score(edited) == {"mmedit/token": share}
    left = forced.score(response(LEFT, "no", "no", "yes", at_gold=gold, at_own=Prediction([7], [5], [5])))
    assert left == {
        "teacher_forced/em": 1.0,
        "teacher_forced/token": 1.0,
        "teacher_forced/gold_em": every,
        "teacher_forced/gold_token": share,
    }


@pytest.mark.parametrize(("after", "still"), [("", 1.0), ("something", 0.0)])
def test_an_empty_answer_has_no_positions_and_is_still_scored(after, still):
    found = all_protocols()["teacher_forced"].score(response(LEFT, "", after, None))
    assert found == {
        "teacher_forced/em": still,
        "teacher_forced/token": still,
        "teacher_forced/gold_em": None,
        "teacher_forced/gold_token": None,
    }


@pytest.mark.parametrize(("guesses", "wanted"), [([], []), ([1], [1, 2]), ([1, 2], [1])])
def test_positions_that_do_not_line_up_are_refused(guesses, wanted):
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(guesses, wanted)


def test_mmedit_locality_compares_rank_by_rank():
    def locality(before, after, *, has_image):
        gold = Prediction([1], [1], [1], before, after)
        return all_protocols()["mmedit"].score(Response(LEFT, "x", has_image, "no", "no", at_gold=gold))

    assert locality([[1], [2], [3], [4]], [[1], [9], [3], [4]], has_image=False) == {"mmedit/top1": 0.75}
    ids = list(range(10))
    swapped = [1, 0, *ids[2:]]  # the same ids in another order are not the same
    assert locality([ids, ids], [ids, swapped], has_image=True) == {"mmedit/top10": 0.9}
    assert locality(None, None, has_image=True) == {"mmedit/top10": None}


def test_protocols_stand_in_their_order_and_what_tables_show_is_theirs():
    assert list(all_protocols()) == ["strict", "teacher_forced", "mmedit"]
    assert list(views()) == ["strict/exact", "teacher_forced/em", "teacher_forced/token", "mmedit"]


def test_a_table_has_one_protocol():
    assert the_protocol(["strict", "strict"]) == "strict"
    for mixed in (["strict", "teacher_forced"], []):
        with pytest.raises(UnikeError, match="cannot mix protocols"):
            the_protocol(mixed)
