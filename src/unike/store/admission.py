"""How edits come into force: what they would contradict is named, what they would change is asked, then they are in.

For each fact, in this order:

1. The same fact, in force in the set, is one: nothing is done.
2. *Conflicts*: edits in force that the fact's question calls upon and that give another answer. They are named, and the
   fact is refused; or, if it is to replace them, they are revoked in the step that puts it in force.
3. *Check*: the fact's question, the same in other words, and the store's canaries are asked before and after. The edit
   has to take, and may change no more canaries than allowed. What was answered is kept in the log.

A set that another writer has changed meanwhile is looked at again.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.given import given_queries
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.data.matching import exact_match
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.rephrasings import rephrased
from unike.edits.conflicts import question_of
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.store.names import DEFAULT, check_fact, checked_set, checked_tags, checked_text, question_key
from unike.store.store import Moved, Store
from unike.store.values import Stored, Value

TRIES = 5
"""So often a set that changes meanwhile is looked at again."""

BATCH = 16
"""Questions that are asked, and edits that are made, in one pass."""


class Asked(Value):
    """A question that was asked before and after an edit.

    Attributes:
        kind: ``own``, ``rephrasing`` or ``canary``.
        prompt: The question.
        before: The answer under what was in force.
        after: The answer with the edit.
        right: Whether the answer after is as it should be: the target, or, for a canary, the answer before.
    """

    kind: str
    prompt: str
    before: str
    after: str
    right: bool


class Admission(Value):
    """What became of a fact.

    Attributes:
        prompt: Of the fact.
        target: The same.
        status: ``added``, ``there`` (it was in force already) or ``refused``.
        why: Why it was refused.
        stored: The edit in the store.
        conflicts: Edits that contradict it: in the way of a fact that was refused, revoked for one that was added.
        asked: What was asked before and after.
    """

    prompt: str
    target: str
    status: str
    why: str = ""
    stored: Stored | None = None
    conflicts: tuple[Stored, ...] = ()
    asked: tuple[Asked, ...] = ()

    @classmethod
    def of(cls, fact: Query, status: str, **more: Any) -> Self:
        """What became of a fact."""
        return cls(prompt=fact.prompt, target=fact.target or "", status=status, **more)

    @property
    def has_failed(self) -> bool:
        """Whether something went wrong before it could be decided upon."""
        return self.status == "refused" and not self.asked and not self.conflicts

    @property
    def drift(self) -> float:
        """The share of canaries whose answer changed, 0 if there are none."""
        canaries = [each for each in self.asked if each.kind == "canary"]
        return sum(not each.right for each in canaries) / len(canaries) if canaries else 0.0


@dataclass(frozen=True)
class Terms:
    """On what terms facts are let in.

    Args:
        set: Where they are to be in force.
        author: Who does it; None for the user of this process.
        reason: Why.
        tags: To find them by.
        replace: Revoke what they contradict.
        max_drift: The largest share of canaries that one may change; None for any.
        force: Let an edit in that does not take.
    """

    set: str = DEFAULT
    author: str | None = None
    reason: str = ""
    tags: tuple[str, ...] = ()
    replace: bool = False
    max_drift: float | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse what a store would refuse once the edit is made.

        Raises:
            UnikeError: A name or text cannot be kept.
        """
        checked_set(self.set)
        checked_text("reason", self.reason)
        checked_tags(self.tags)
        if self.author is not None:
            checked_text("author", self.author, empty=False)


def admit(
    store: Store,
    backbone: Backbone,
    editor: Editor[Any],
    fact: Query,
    *,
    progress: Progress = silent,
    **terms: Any,
) -> Admission:
    """Make an edit of a fact and put it in force, if nothing speaks against that.

    Args:
        store: Where.
        backbone: The model.
        editor: The method.
        fact: With a target.
        progress: Told what is being done.
        **terms: See `Terms`.

    Raises:
        UnikeError: It is refused; says why, with what it contradicts or changes.
    """
    (found,) = admit_all(store, backbone, editor, [fact], progress=progress, **terms)
    if found.status == "refused":
        raise UnikeError(found.why)
    return found


def admit_all(
    store: Store,
    backbone: Backbone,
    editor: Editor[Any],
    facts: Sequence[Query],
    *,
    progress: Progress = silent,
    **terms: Any,
) -> list[Admission]:
    """The same for many: edits are made in batches, each fact is let in or refused by itself.

    What is in force already is left as it is, so a run that was interrupted goes on where it stopped. Of several facts,
    one of which no edit can be made is refused, and the others have their turn; unless what went wrong is the same for
    all of a batch: then it is about no fact, and all that are left are refused for it.

    Returns:
        What became of each, in their order.

    Raises:
        UnikeError: Before the first edit is made: a fact cannot be edited at all, or not be kept. Of one fact alone,
            also whatever goes wrong with it.
    """
    agreed = Terms(**terms)
    facts = given_queries(facts, "fact")
    for fact in facts:
        check_fact(fact.prompt, fact.target or "")
        editor.check(backbone, fact)
    found: list[Admission] = []
    for start in range(0, len(facts), BATCH):
        progress("editing", start, len(facts))
        some = _admit_some(store, backbone, editor, facts[start : start + BATCH], agreed, alone=len(facts) == 1)
        found += some
        if len(some) > 1 and all(each.has_failed for each in some) and len({each.why for each in some}) == 1:
            found += [Admission.of(fact, "refused", why=some[0].why) for fact in facts[len(found) :]]
            break
    progress("editing", len(facts), len(facts))
    return found


def admit_made(store: Store, backbone: Backbone, edit: Edit, **terms: Any) -> Admission:
    """The same for an edit of one fact that was made before.

    Raises:
        UnikeError: It was made for another model.
    """
    edit.check_fits(backbone)
    return _decide(store, backbone, edit, Terms(**terms))


def _admit_some(
    store: Store, backbone: Backbone, editor: Editor[Any], facts: Sequence[Query], terms: Terms, *, alone: bool
) -> list[Admission]:
    """Of facts that nothing speaks against yet, the edits are made in one pass; then each is decided upon.

    Raises:
        UnikeError: Of a fact alone, what goes wrong with it.
    """
    try:
        view = View.of(store, backbone, terms.set)
        found = {row: view.already(fact, terms) for row, fact in enumerate(facts)}
        left = [row for row, admission in found.items() if admission is None]
        made = editor.edit(backbone, [facts[row] for row in left]) if left else None
    except UnikeError as error:
        if alone:
            raise
        if len(facts) == 1:
            return [Admission.of(facts[0], "refused", why=str(error))]
        each_alone = (_admit_some(store, backbone, editor, [fact], terms, alone=False) for fact in facts)
        return [admission for some in each_alone for admission in some]
    for number, row in enumerate(left):
        assert made is not None
        try:
            found[row] = _decide(store, backbone, made[number], terms)
        except UnikeError as error:
            if alone:
                raise
            found[row] = Admission.of(facts[row], "refused", why=str(error))
    return [admission for admission in found.values() if admission is not None]


def _decide(store: Store, backbone: Backbone, edit: Edit, terms: Terms) -> Admission:
    """Let an edit in, or say why not; again if the set has changed meanwhile."""
    (fact,) = edit.facts
    for _ in range(TRIES):
        view = View.of(store, backbone, terms.set)
        already = view.already(fact, terms)
        if already is not None:
            return already
        conflicts = view.conflicts(fact)
        asked = check(store, view, edit, {stored.id for stored in conflicts})
        found = Admission.of(fact, status="refused", conflicts=conflicts, asked=asked)
        if why := _objection(found, terms):
            return found.model_copy(update={"why": why})
        try:
            stored = store.add(
                edit,
                set=terms.set,
                author=terms.author,
                reason=terms.reason,
                tags=terms.tags,
                replaces=[each.id for each in conflicts],
                detail={"asked": [each.model_dump() for each in asked]},
                seen=view.version,
            )
            return found.model_copy(update={"status": "added", "stored": stored})
        except Moved:
            continue
    raise UnikeError(f"the set {terms.set!r} kept changing while {fact.prompt!r} was checked; try again")


@dataclass(frozen=True)
class View:
    """What is in force in a set for a model, as it was looked at.

    Args:
        version: Of the set.
        members: Those edits that are of this model.
        model: The model under them.
    """

    version: int
    members: list[Stored]
    model: EditedModel

    @classmethod
    def of(cls, store: Store, backbone: Backbone, set: str) -> "View":
        """Look at a set."""
        version = store.version(set)
        members = [each for each in store.members(set, version) if backbone.is_known_as(each.fingerprint)]
        return cls(version, members, EditedModel(backbone, [store.edit(each) for each in members]))

    def already(self, fact: Query, terms: Terms) -> Admission | None:
        """What became of a fact for which no edit has to be made: it is there, or contradicts what is."""
        about = question_of(fact)
        for each in self.members:
            if question_key(each.prompt, each.picture) == about and each.target == fact.target:
                return Admission.of(fact, status="there", stored=each)
        conflicts = [] if terms.replace else self.conflicts(fact)
        if not conflicts:
            return None
        first = conflicts[0]
        of = "" if first.picture is None else f" about {first.picture_name or first.picture[:16]}"
        more = f" and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
        mine = "" if fact.image is None else f" about {fact.image.name}"
        why = (
            f"{fact.prompt!r}{mine} is {fact.target!r}, which contradicts {first.id} ({first.prompt!r}{of} is "
            f"{first.target!r}){more}; replace it, or leave it as it is"
        )
        return Admission.of(fact, status="refused", why=why, conflicts=conflicts)

    def conflicts(self, fact: Query) -> list[Stored]:
        """The edits in force that a fact's question calls upon, and that answer it in another way."""
        called = {edit.questions[0]: edit for edit in self.model.called_by(fact.question)}
        found = []
        for each in self.members:
            edit = called.get(question_key(each.prompt, each.picture))
            if edit is not None and not exact_match(each.target, fact.target or ""):
                found.append(each)
        return found


def check(store: Store, view: View, edit: Edit, replaced: Collection[str] = ()) -> list[Asked]:
    """Ask an edit's question, the same in other words, and the canaries, before and after.

    Args:
        store: With the canaries.
        view: What is in force.
        edit: Of one fact.
        replaced: Ids of edits that are no longer in force after.
    """
    (fact,), backbone = edit.facts, view.model.backbone

    def check_canary(query: Query) -> None:
        backbone.check(query)
        if query.image is not None:
            backbone.check_image(query.image)

    others = [Query(prompt, fact.image, fact.target, fact.also) for prompt in rephrased(fact.prompt)]
    canaries = store.canary_queries(check_canary)
    queries = [fact, *others, *canaries]
    kinds = ["own", *("rephrasing" for _ in others), *("canary" for _ in canaries)]
    kept = [store.edit(each) for each in view.members if each.id not in replaced]
    before, after = (answers(model, queries, fact) for model in (view.model, EditedModel(backbone, [*kept, edit])))
    return [
        Asked(
            kind=kind,
            prompt=query.prompt,
            before=old,
            after=new,
            right=new == old if kind == "canary" else fact.accepts(new),
        )
        for kind, query, old, new in zip(kinds, queries, before, after, strict=True)
    ]


def answers(model: EditedModel, queries: Sequence[Query], fact: Query) -> list[str]:
    """What a model says, with room for the fact's answer."""
    room = model.backbone.room([fact.target or ""])
    found: list[str] = []
    for start in range(0, len(queries), BATCH):
        found += model.generate([query.question for query in queries[start : start + BATCH]], max_new_tokens=room)
    return found


def _objection(found: Admission, terms: Terms) -> str:
    """Why an edit is not let in; nothing if it is."""
    own = found.asked[0]
    if not own.right and not terms.force:
        return f"the edit does not take: {own.prompt!r} is {own.after!r}, not {found.target!r}; try other settings"
    if terms.max_drift is not None and found.drift > terms.max_drift:
        moved = next(each for each in found.asked if each.kind == "canary" and not each.right)
        share, most = (f"{100 * value:.3g} %" for value in (found.drift, terms.max_drift))
        return (
            f"the edit changes {share} of the canaries, allowed are {most}: {moved.prompt!r} would be {moved.after!r}"
        )
    return ""
