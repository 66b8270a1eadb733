import pytest

from unike.metrics import exact_match, normalise


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
