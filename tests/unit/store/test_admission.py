"""What is asked before an edit comes into force, and what keeps it out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tinies import tiny_backbone

from unike import make_editor
from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.common.rephrasings import rephrased
from unike.edits.edited import EditedModel
from unike.store import Store, upkeep
from unike.store import admission as door
from unike.store.admission import Admission, admit, admit_all, admit_made

ASKED = Query("Who wrote Hamlet?", None, "Marlowe")
OTHERWISE = Query("By whom was Hamlet written?", None, "Bacon")
FT: dict[str, Any] = {"lr": 5e-2, "steps": 20}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def let_in(store: Store, backbone: Backbone, fact: Query, editor: str = "answer_cache", **terms: Any) -> Admission:
    settings = FT if editor == "ft" else {}
    return admit(store, backbone, make_editor(editor, **settings), fact, **terms)


def test_a_fact_that_is_let_in_is_in_force_with_what_was_asked(store: Store, backbone: Backbone) -> None:
    store.add_canary(Query("Is water wet?"))
    found = let_in(store, backbone, ASKED, author="ann", reason="wrong", tags=("plays",), set="tenant-a")
    assert found.status == "added" and found.stored == store.members("tenant-a")[0]
    assert (found.stored.author, found.stored.reason, found.stored.tags) == ("ann", "wrong", ("plays",))
    own, *others, canary = found.asked
    assert (own.kind, own.prompt, own.after, own.right) == ("own", ASKED.prompt, "Marlowe", True)
    assert own.before != "Marlowe" and own.before == backbone.generate([ASKED])[0]
    assert len(others) == 4 and {each.kind for each in others} == {"rephrasing"}
    assert (canary.kind, canary.before, canary.right) == ("canary", canary.after, True) and found.drift == 0
    (kept,) = (entry.detail["asked"] for entry in store.log("tenant-a"))
    assert kept == [each.model_dump() for each in found.asked]
    assert EditedModel(backbone, store.edits("tenant-a")).ask(None, ASKED.prompt) == "Marlowe"


def test_the_same_fact_twice_is_one(store: Store, backbone: Backbone) -> None:
    first = let_in(store, backbone, ASKED)
    again = let_in(store, backbone, Query("who wrote  hamlet?", None, "Marlowe"))
    assert again.status == "there" and again.stored == first.stored and store.version() == 1


def test_a_contradiction_is_named_or_revoked(store: Store, backbone: Backbone) -> None:
    first = let_in(store, backbone, ASKED)
    assert first.stored is not None
    with pytest.raises(UnikeError) as refused:
        let_in(store, backbone, OTHERWISE)
    for part in (OTHERWISE.prompt, "Bacon", first.stored.id, ASKED.prompt, "Marlowe", "contradicts"):
        assert part in str(refused.value)
    assert store.version() == 1
    second = let_in(store, backbone, OTHERWISE, replace=True)
    assert second.conflicts == (first.stored,) and store.members() == [second.stored]
    assert store.log()[-1].detail["replaced"] == [first.stored.id]


def test_what_is_about_something_else_contradicts_nothing(store: Store, backbone: Backbone) -> None:
    let_in(store, backbone, ASKED)
    let_in(store, backbone, Query("What is the capital of Peru?", None, "Cusco"))
    agrees = let_in(store, backbone, Query("By whom was Hamlet written?", None, "Marlowe"))
    assert agrees.status == "added" and len(store.members()) == 3


def test_pictures_of_a_contradiction_are_named(store: Store, backbone: Backbone, pictures: list[Path]) -> None:
    let_in(store, backbone, Query("What is this?", pictures[0], "cat"), "ft")
    with pytest.raises(UnikeError, match=r"about 0\.png is 'dog', which contradicts .* about 0\.png is 'cat'"):
        let_in(store, backbone, Query("what is this?", pictures[0], "dog"), "ft")


def test_an_edit_that_does_not_take_is_kept_out(store: Store, backbone: Backbone) -> None:
    idle = make_editor("ft", lr=1e-9, steps=1)
    with pytest.raises(UnikeError, match=r"the edit does not take: 'Who wrote Hamlet\?' is .*, not 'Marlowe'"):
        admit(store, backbone, idle, ASKED)
    assert store.version() == 0 and store.all() == []
    assert admit(store, backbone, idle, ASKED, force=True).status == "added"


def test_an_edit_that_moves_canaries_is_kept_out(store: Store, backbone: Backbone, pictures: list[Path]) -> None:
    for prompt in ("Is water wet?", "What is two and two?", "Where is Lima?"):
        store.add_canary(Query(prompt))
    with pytest.raises(UnikeError, match=r"changes \d+ % of the canaries, allowed are 0 %: '.*' would be '.*'"):
        let_in(store, backbone, ASKED, "ft", max_drift=0.0)
    assert store.version() == 0
    found = let_in(store, backbone, ASKED, "ft", max_drift=1.0)
    moved = [each for each in found.asked if each.kind == "canary" and not each.right]
    assert moved and found.drift == len(moved) / 3 and all(each.before != each.after for each in moved)
    assert let_in(store, backbone, OTHERWISE, max_drift=0.0, replace=True).status == "added"


@pytest.mark.parametrize("harm", ["gone", "changed", "placeholder"])
def test_a_canary_that_cannot_be_asked_is_named_with_the_way_out(
    store: Store, backbone: Backbone, pictures: list[Path], harm: str
) -> None:
    canary = store.add_canary(Query("Is it <image>?" if harm == "placeholder" else "What is this?", pictures[0]))
    file = store.picture(str(canary.picture))
    if harm == "changed":
        file.write_bytes(b"no picture")
    elif harm == "gone":
        file.unlink()
    why = {"gone": "is missing", "changed": "was changed", "placeholder": "holds the image placeholder"}[harm]
    with pytest.raises(UnikeError) as refused:
        let_in(store, backbone, ASKED)
    for part in (canary.id, canary.prompt, why, f"; or have it asked no more: unike store canary drop {canary.id}"):
        assert part in str(refused.value)
    assert upkeep.damage(store) == ([] if harm == "placeholder" else [str(refused.value)])
    store.drop_canary(canary.id)
    assert let_in(store, backbone, ASKED).status == "added" and upkeep.damage(store) == []


def test_a_set_that_changes_meanwhile_is_looked_at_again(
    store: Store, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, check = [], door.check

    def interrupted(*args: Any) -> Any:
        looked.append(store.version())
        if len(looked) < 3:
            store.add(make_editor("answer_cache").edit(backbone, Query(f"Who is {len(looked)}?", None, "x")))
        return check(*args)

    monkeypatch.setattr(door, "check", interrupted)
    assert let_in(store, backbone, ASKED).status == "added"
    assert looked == [0, 1, 2] and store.version() == 3

    def never(*args: Any) -> Any:
        store.add(make_editor("answer_cache").edit(backbone, Query(f"Who was {store.version()}?", None, "x")))
        return check(*args)

    monkeypatch.setattr(door, "check", never)
    with pytest.raises(UnikeError, match="kept changing while"):
        let_in(store, backbone, Query("Where is Lima?", None, "Chile"))


def test_many_are_let_in_or_refused_one_by_one_and_a_second_run_changes_nothing(
    store: Store, backbone: Backbone
) -> None:
    facts = [ASKED, Query("Where is Lima?", None, "Chile"), OTHERWISE, ASKED]
    told: list[tuple[int, int]] = []
    method = make_editor("answer_cache")
    found = admit_all(store, backbone, method, facts, progress=lambda what, done, all: told.append((done, all)))
    assert [each.status for each in found] == ["added", "added", "refused", "there"]
    assert "contradicts" in found[2].why and told[-1] == (4, 4) and store.version() == 2
    again = admit_all(store, backbone, method, facts)
    assert [each.status for each in again] == ["there", "there", "refused", "there"] and store.version() == 2


@pytest.fixture
def in_threes(monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """Facts that have nothing to do with each other, which are taken three at a time; nothing is asked about them."""
    monkeypatch.setattr(door, "BATCH", 3)
    monkeypatch.setattr(door, "check", lambda *_: [door.Asked(kind="own", prompt="", before="", after="", right=True)])
    asked = ("Who wrote Hamlet?", "Where is Lima?", "What is two and two?", "Is water wet?", "When was the war?")
    return [Query(prompt, None, "x") for prompt in asked]


def test_a_fact_that_fails_is_refused_and_the_others_have_their_turn(
    store: Store, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, in_threes: list[Query]
) -> None:
    method, calls = make_editor("answer_cache"), []
    edit, add = method.edit, store.add

    def made(model: Backbone, facts: Any) -> Any:
        calls.append(len(facts))
        if in_threes[1] in facts:
            raise UnikeError("no edit can be made")
        return edit(model, facts)

    def added(edit: Any, **terms: Any) -> Any:
        if edit.facts[0] == in_threes[4]:
            raise UnikeError("it cannot be kept")
        return add(edit, **terms)

    monkeypatch.setattr(method, "edit", made)
    monkeypatch.setattr(store, "add", added)
    found = admit_all(store, backbone, method, in_threes)
    assert [each.why for each in found] == ["", "no edit can be made", "", "", "it cannot be kept"]
    assert [each.status for each in found] == ["added", "refused", "added", "added", "refused"]
    assert len(store.members()) == 3 and calls == [3, 1, 1, 1, 2]
    with pytest.raises(UnikeError, match="no edit can be made"):
        admit_all(store, backbone, method, in_threes[1:2])


def test_what_goes_wrong_with_all_is_not_tried_to_the_end(
    store: Store, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, in_threes: list[Query]
) -> None:
    tried: list[Any] = []

    def full(edit: Any, **terms: Any) -> Any:
        tried.append(edit)
        raise UnikeError("the disk is full")

    monkeypatch.setattr(store, "add", full)
    found = admit_all(store, backbone, make_editor("answer_cache"), in_threes)
    assert [each.why for each in found] == ["the disk is full"] * 5 and len(tried) == 3


@pytest.mark.parametrize("fact", [Query("a\0", None, "b"), Query("a", None, "b\0")])
def test_a_fact_that_no_store_keeps_is_known_before_an_edit_is_made(
    store: Store, backbone: Backbone, fact: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make_editor("answer_cache")
    monkeypatch.setattr(method, "edit", lambda *_: pytest.fail("an edit was made"))
    with pytest.raises(UnikeError, match="holds a null, which no database keeps"):
        admit_all(store, backbone, method, [ASKED, fact])
    assert store.all() == []


def test_edits_of_other_models_are_nobodys_business(store: Store, backbone: Backbone) -> None:
    other = tiny_backbone("llava", seed=1)
    let_in(store, other, ASKED)
    mine = let_in(store, backbone, Query(ASKED.prompt, None, "Kyd"))
    assert mine.status == "added" and len(store.members()) == 2
    (theirs,) = [edit for edit in store.edits() if edit.fingerprint == other.fingerprint()]
    with pytest.raises(UnikeError, match="was made for"):
        admit_made(store, backbone, theirs)


def test_an_edit_that_was_made_before(store: Store, backbone: Backbone) -> None:
    edit = make_editor("answer_cache").edit(backbone, ASKED)
    assert admit_made(store, backbone, edit, reason="made by hand").status == "added"
    assert admit_made(store, backbone, edit).status == "there"


@pytest.mark.parametrize(
    ("prompt", "like"), [("What is this?", lambda text: "?" in text or "." in text), ("Xyzzy plugh?", bool)]
)
def test_rephrasings_are_other_texts(prompt: str, like: Callable[[str], bool]) -> None:
    found = rephrased(prompt)
    assert len(found) == len(set(found)) == 4 and prompt not in found and all(map(like, found))
    assert rephrased(prompt) == found and rephrased(prompt, 2) == found[:2]
    words = [text for text in rephrased("What is this?") if "What is this?" not in text]
    assert len(words) == 2
