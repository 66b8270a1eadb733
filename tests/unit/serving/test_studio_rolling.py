"""Rolling back in the studio: a set is rolled back to what was shown, or not at all."""

import pytest
from conversing import Serve, Visit

from unike.edits.edit import Edit

pytest.importorskip("gradio")

from unike.serve.studio import shown
from unike.serve.studio.values import Change
from unike.store import Stored


def test_a_set_is_rolled_back_to_what_was_shown(serving: Serve, visit: Visit, edits: dict[str, Edit]) -> None:
    service = serving(studio=True)
    visitor, store = visit(service), service.store
    first, second = (store.add(edits[name], set="tenant-a", author="ann") for name in "ab")
    store.revoke(first.id, set="tenant-a", author="bob")
    _, sets, versions = visitor.said("on_choices", "tenant-a")
    assert [value for _, value in sets["choices"]] == ["default", "tenant-a"]
    assert [value for _, value in versions["choices"]] == ["2", "1", "0"]
    assert versions["choices"][1][0].startswith(f"1: add {first.id} by ann, ")
    nothing = visitor.said("on_roll_back", "tenant-a", None, "", "")
    assert "show first what would change" in nothing[0] and store.version("tenant-a") == 3
    said, table, confirm, _ = visitor.said("on_preview", "tenant-a", "1")
    assert said == "" and confirm["visible"] and "tenant-a, from version 3 back to 1: 0 edits stay" in table
    assert (
        table.index("comes into force") < table.index(first.id) < table.index("is taken off") < table.index(second.id)
    )
    done = visitor.said("on_roll_back", "tenant-a", None, "it was right", "joe")
    assert "Version 1 of tenant-a is in force again, as version 4." in done[0] and not done[4]["visible"]
    assert store.members("tenant-a") == [first] and [value for _, value in done[2]["choices"]] == ["3", "2", "1", "0"]
    assert [(line.author, line.reason) for line in store.log("tenant-a")][-1] == ("joe", "it was right")
    assert "show first what would change" in visitor.said("on_roll_back", "tenant-a", None, "", "")[0]
    said, table, confirm, _ = visitor.said("on_preview", "tenant-a", "4")
    assert "Version 4 of tenant-a is what is in force." in said and table == "" and not confirm["visible"]


def test_a_set_that_changes_meanwhile_is_not_rolled_back(serving: Serve, visit: Visit, edits: dict[str, Edit]) -> None:
    service = serving(studio=True)
    visitor, store = visit(service), service.store
    store.add(edits["a"], author="t")
    assert visitor.said("on_preview", "default", "0")[2]["visible"]
    store.add(edits["b"], author="t")
    said = visitor.said("on_roll_back", "default", None, "", "")
    assert "has changed since it was looked at" in said[0] and store.version() == 2 and not said[4]["visible"]
    for version, says in (
        ("", "no version is chosen"),
        ("9", "has the versions 0 to 2, and no 9"),
        ("x", "is no version of the set"),
        ("-1", "is no version of the set"),
    ):
        assert says in visitor.said("on_preview", "default", version)[0]
    for name in ("nobody", "a/b", "default:1"):
        assert "there is no set" in visitor.said("on_preview", name, "0")[0]
        assert "there is no set" in visitor.said("on_versions", name)[0]


def test_order_alone_is_a_change() -> None:
    one, two = (Stored(**dict.fromkeys(Stored.model_fields, "x") | {"id": name, "tags": ()}) for name in "ab")
    found = Change("s", 1, 3, [one, two], [two, one])
    assert not found.is_nothing and (found.back, found.gone) == ([], [])
    assert "2 edits stay, in another order" in shown.change(found)
    assert Change("s", 1, 3, [one], [one]).is_nothing
