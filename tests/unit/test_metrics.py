import pytest

from unike.bench.metrics import (
    METRICS,
    UNCHANGED,
    agreement,
    mmedit_edit,
    mmedit_locality,
    strict,
    teacher_forced,
    the_protocol,
)
from unike.core.errors import UnikeError
from unike.data.matching import exact_match, normalise
from unike.data.queries import PROBE_KINDS


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("Kenya", "kenya", True),
        (" The grand-piano. ", "grand piano", True),
        ("an apple", "apple", True),
        ("São Tomé", "são tomé", True),
        ("St. George's", "St George s", True),
        ("Kenya, in Africa", "Kenya", False),
        ("Keny", "Kenya", False),
        ("theatre", "atre", False),
        ("", "", False),
        ("the", "a", False),
        ("12", "1 2", False),
    ],
)
def test_exact_match(answer, target, right):
    assert exact_match(answer, target) is right
    assert exact_match(target, answer) is right


def test_normalise_is_idempotent():
    for text in ("The Cat's a_b-c!", "  ", "Ünïcode — dash"):
        assert normalise(normalise(text)) == normalise(text)


def test_every_kind_of_probe_is_a_metric():
    assert set(METRICS) == {"reliability", *PROBE_KINDS}
    assert set(METRICS) >= UNCHANGED


@pytest.mark.parametrize("kind", METRICS)
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
    wanted = as_before if kind in UNCHANGED else as_edited
    assert strict(kind, before=before, after=after, target=target) == {"strict/exact": wanted}


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
    assert teacher_forced(guesses, wanted) == {"teacher_forced/em": every, "teacher_forced/token": share}
    assert teacher_forced(guesses, wanted, at="gold_") == {
        "teacher_forced/gold_em": every,
        "teacher_forced/gold_token": share,
    }
    assert mmedit_edit(guesses, wanted) == {"mmedit/token": share}


@pytest.mark.parametrize(("guesses", "wanted"), [([], []), ([1], [1, 2]), ([1, 2], [1])])
def test_positions_that_do_not_line_up_are_refused(guesses, wanted):
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(guesses, wanted)


def test_mmedit_locality_compares_rank_by_rank():
    assert mmedit_locality([[1], [2], [3], [4]], [[1], [9], [3], [4]]) == {"mmedit/top1": 0.75}
    ids = list(range(10))
    swapped = [1, 0, *ids[2:]]  # the same ids in another order are not the same
    assert mmedit_locality([ids, ids], [ids, swapped]) == {"mmedit/top10": 0.9}


def test_a_table_has_one_protocol():
    assert the_protocol(["strict", "strict"]) == "strict"
    for mixed in (["strict", "teacher_forced"], []):
        with pytest.raises(UnikeError, match="cannot mix protocols"):
            the_protocol(mixed)
