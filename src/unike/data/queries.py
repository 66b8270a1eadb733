"""What an edit is about and what tests it: queries, probes and cases. Paths and strings, never pixels."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from unike.core.errors import UnikeError
from unike.core.registry import added
from unike.data.matching import exact_match


@dataclass(frozen=True)
class ProbeKind:
    """A property of an edit that a question can test, declared once: here, or in a file of another distribution.

    Such a file holds a `ProbeKind` and is named under the entry-point group ``unike.data.queries``.

    Args:
        name: In data, results and tables for programs: ``"t_generality"``.
        short: Head of a table's column: ``"T-Gen."``.
        expects: The answer that is wanted under an edit: the query's ``"target"``, or the one before, ``"unchanged"``.
        modality: What differs from the edited question: its ``"text"``, or (also) its ``"image"``.
        says: What is asked, in a few words.
        of: The paper's property that it is a part of, ``"Gen."``; empty if it stands beside the paper's average.
        in_scope: Whether an edit must be right here for its scope to be right. What follows from a fact can only be
            asked where it is known; the unedited model is asked whether it is.
    """

    name: str
    short: str
    expects: Literal["target", "unchanged"]
    modality: Literal["text", "image"]
    says: str
    of: str = ""
    in_scope: bool = True


RELIABILITY = ProbeKind("reliability", "Rel.", "target", "text", "the edited question", "Rel.")
"""What the edited question itself tests; no probe is needed for it."""

PUBLISHED = (
    RELIABILITY,
    ProbeKind("t_generality", "T-Gen.", "target", "text", "other words", "Gen."),
    ProbeKind("m_generality", "M-Gen.", "target", "image", "another picture of it", "Gen."),
    ProbeKind("t_locality", "T-Loc.", "unchanged", "text", "no picture", "Loc."),
    ProbeKind("m_locality", "M-Loc.", "unchanged", "image", "unrelated picture", "Loc."),
    ProbeKind("near_locality", "N-Loc.", "unchanged", "image", "same question, another of its kind"),
    ProbeKind("specificity", "Spec.", "unchanged", "text", "something else, same picture"),
    ProbeKind("portability", "Port.", "target", "text", "what follows from it", in_scope=False),
)
"""Of the paper, of VLKEB and of PocketEdit, in the order of tables."""

GENERALITY, LOCALITY = (tuple(kind.name for kind in PUBLISHED if kind.of == of) for of in ("Gen.", "Loc."))
"""Names of the two kinds that are about the edited fact, and of the two that are about something else."""


@cache
def probe_kinds() -> dict[str, ProbeKind]:
    """Every kind of question by its name, `RELIABILITY` first, in the order of tables; what others add comes last."""
    return {kind.name: kind for kind in (*PUBLISHED, *added("unike.data.queries", ProbeKind))}


@dataclass(frozen=True)
class Turn:
    """What was said before in a conversation.

    Args:
        question: As the user wrote it.
        answer: What the model said.
    """

    question: str
    answer: str


@dataclass(frozen=True)
class Query:
    """A question, perhaps about an image, perhaps with the answer it should get.

    Args:
        prompt: The question as the user writes it; the backbone adds its own template.
        image: Path of the image, or None for a question about text alone.
        target: The wanted answer, or None where there is none (locality probes, generation). An edit makes the model
            say this one, and it is read along this one.
        also: Further answers that are as right.
        history: The turns of the conversation before; the image was shown with the first of them. What is asked, and
            what edits go by, is the prompt alone.
        system: What the model is told before anything is asked.
    """

    prompt: str
    image: Path | None = None
    target: str | None = None
    also: tuple[str, ...] = ()
    history: tuple[Turn, ...] = ()
    system: str = ""

    @property
    def question(self) -> "Query":
        """Without its answers, as a model is asked."""
        return replace(self, target=None, also=())

    def accepts(self, answer: str) -> bool:
        """Whether an answer is one of the right ones."""
        return exact_match(answer, self.target or "", *self.also)

    def __post_init__(self) -> None:
        """Refuse what is no text, and take a picture's path in either form.

        Raises:
            UnikeError: With what was given.
        """
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        if not isinstance(self.prompt, str):
            raise UnikeError(f"the prompt is {self.prompt!r}, which is not text")
        if self.target is not None and not isinstance(self.target, str):
            raise UnikeError(
                f"the target of {self.prompt!r} is {self.target!r}, which is not text; write {str(self.target)!r}"
            )
        if self.image is not None and not isinstance(self.image, Path):
            raise UnikeError(
                f"the image of {self.prompt!r} is a {type(self.image).__name__}, not a path; give unike.picture(image)"
            )


def telling(fact: Query, query: Query) -> Query:
    """A question with a fact in words before it, and without its picture."""
    said = f"{fact.prompt.strip()} {(fact.target or '').strip().removesuffix('.')}."
    return replace(query, prompt=f"{said} {query.prompt}", image=None)


@dataclass(frozen=True)
class Probe:
    """A query that tests one property of an edit.

    Args:
        kind: Name of one of `probe_kinds`, except `RELIABILITY`.
        query: What to ask.
        hop: How many steps of reasoning it is away from the edited fact, where that is known.
    """

    kind: str
    query: Query
    hop: int | None = None

    def __post_init__(self) -> None:
        """Refuse a kind that no metric would ever read."""
        known = [name for name in probe_kinds() if name != RELIABILITY.name]
        if self.kind not in known:
            raise ValueError(f"unknown probe kind {self.kind!r} (known: {', '.join(known)})")


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
