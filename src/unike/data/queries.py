"""What an edit is about and what tests it: queries, probes and cases. Paths and strings, never pixels."""

from dataclasses import dataclass
from pathlib import Path

PROBE_KINDS = ("t_generality", "m_generality", "t_locality", "m_locality", "portability", "specificity")
"""What a probe of an edit can test."""


@dataclass(frozen=True)
class Query:
    """A question, perhaps about an image, perhaps with the answer it should get.

    Args:
        prompt: The question as the user writes it; the backbone adds its own template.
        image: Path of the image, or None for a question about text alone.
        target: The wanted answer, or None where there is none (locality probes, generation).
    """

    prompt: str
    image: Path | None = None
    target: str | None = None


@dataclass(frozen=True)
class Probe:
    """A query that tests one property of an edit.

    Args:
        kind: One of `PROBE_KINDS`.
        query: What to ask.
    """

    kind: str
    query: Query

    def __post_init__(self) -> None:
        """Refuse a kind that no metric would ever read."""
        if self.kind not in PROBE_KINDS:
            raise ValueError(f"unknown probe kind {self.kind!r} (known: {', '.join(PROBE_KINDS)})")


@dataclass(frozen=True)
class EditCase:
    """One fact to edit and the questions that test the edit.

    Args:
        case_id: Unique within its dataset; results are resumed by it.
        edit: The query whose target the model should give afterwards.
        probes: The tests, in no particular order.
        domain: A tag to group results by, or the empty string.
    """

    case_id: str
    edit: Query
    probes: tuple[Probe, ...]
    domain: str = ""
