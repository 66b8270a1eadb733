"""Edits come and go while a server runs: each request sees those in force, and never another request's."""

import itertools
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conversing import MODEL, Serve, Service, data_url, told, user, wait_for

from unike.backbones.adapter import Backbone
from unike.core.errors import Unavailable
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.serve.errors import UNAVAILABLE, ApiError
from unike.serve.sets import Sets
from unike.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    kept = Store.open(tmp_path / "store")
    yield kept
    kept.close()


def test_an_edit_is_live_in_the_next_request_and_gone_when_revoked(
    serving: Serve, store: Store, model: Backbone, edits: dict[str, Edit], pictures: list[Path]
) -> None:
    service = serving(store=store)
    query = Query("What is this?", pictures[0])

    def expected(*names: str) -> str:
        return EditedModel(model, [edits[name] for name in names]).generate([query])[0]

    def said() -> str:
        return service.say(query.prompt, f"{MODEL}@default", image=pictures[0])

    assert said() == expected()
    first = store.add(edits["a"], author="t")
    assert said() == expected("a") != expected()
    store.add(edits["b"], author="t")
    assert said() == expected("a", "b") != expected("a")
    store.revoke(first.id, author="t")
    assert said() == expected("b")
    store.roll_back("default", 2, author="t")
    assert said() == expected("a", "b")
    assert service.say(query.prompt, image=pictures[0]) == expected()


def test_another_server_on_the_same_store_sees_it_too(
    serving: Serve, store: Store, edits: dict[str, Edit], tmp_path: Path
) -> None:
    other_store = Store.open(tmp_path / "store")
    one, other = serving(store=store), serving(store=other_store)
    before = other.say("Who?", f"{MODEL}@default")
    added = one.store.add(edits["a"], author="t")
    assert one.say("Who?", f"{MODEL}@default") == other.say("Who?", f"{MODEL}@default") != before
    response = one.http.delete(f"/edits/{added.id}")
    assert response.json() == {"object": "edit.revoked", "id": added.id, "set": "default", "version": 2}
    assert other.say("Who?", f"{MODEL}@default") == before
    other_store.close()


def test_requests_with_other_edits_share_a_batch_and_nothing_else(
    serving: Serve, store: Store, model: Backbone, edits: dict[str, Edit], pictures: list[Path]
) -> None:
    """The same prompts and pictures, again and again, under every set at once."""
    service = serving(store=store, engine={"gather": 0.05})
    rows: list[tuple[int, int]] = []
    usual = service.engine.on_batch
    service.engine.on_batch = lambda *batch: (rows.append(batch[:2]), usual(*batch))[1]
    for name in "abc":
        store.add(edits[name], set=name, author="t")
    store.add(edits["a"], set="two", author="t")
    store.add(edits["c"], set="two", author="t")
    sets: dict[str, list[str]] = {"": [], "@a": ["a"], "@b": ["b"], "@c": ["c"], "@two": ["a", "c"]}
    queries = [Query("What is this?", pictures[0]), Query("What is this?", pictures[1]), Query("What is this?")]
    expected = {
        (name, query): EditedModel(model, [edits[each] for each in names]).generate([query])[0]
        for (name, names), query in itertools.product(sets.items(), queries)
    }
    assert len(set(expected.values())) > 8
    asked = list(expected) * 4
    with ThreadPoolExecutor(10) as pool:
        said = list(pool.map(lambda each: service.say(each[1].prompt, MODEL + each[0], image=each[1].image), asked))
    assert said == [expected[each] for each in asked]
    assert max(row for row, _ in rows) > 1 and max(sets for _, sets in rows) > 1


def test_edits_by_their_ids(
    serving: Serve, store: Store, model: Backbone, edits: dict[str, Edit], pictures: list[Path]
) -> None:
    service = serving(store=store)
    a, b = (store.add(edits[name], set=name, author="t").id for name in "ab")
    expected = EditedModel(model, [edits["b"], edits["a"]]).ask(pictures[0], "What is this?")
    assert service.say("What is this?", image=pictures[0], extra_body={"edits": [b, a[:8]]}) == expected
    store.revoke(a, set="a", author="t")
    assert f"the edit {a} is revoked in every set; restore it first" in told(service.post(edits=[a]), 404)
    assert service.post(edits=[b]).status_code == 200


def test_edits_of_other_models_are_left_out(store: Store, model: Backbone, edits: dict[str, Edit]) -> None:
    edit = edits["a"]
    other = type(edit)(edit.config, edit.tensors, edit.facts, fingerprint="2-other", source="other")
    store.add(edit, author="t")
    kept = store.add(other, author="t")
    sets = Sets(store, model)
    assert sets.named("default").ids == (store.members()[0].id,) and len(store.members()) == 2
    with pytest.raises(ApiError, match="was made for 'other', another model than this one"):
        sets.chosen([kept.id])


def test_a_set_is_read_once_and_its_edits_are_shared(
    store: Store, model: Backbone, edits: dict[str, Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    usual = store.edit
    monkeypatch.setattr(store, "edit", lambda stored: (read.append(stored.id), usual(stored))[1])
    sets = Sets(store, model, limit=2)
    store.add(edits["a"], author="t")
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: sets.named("default"), range(8))
    assert all(each is first for each in others) and len(read) == 1
    store.add(edits["b"], author="t")
    second = sets.named("default")
    assert len(read) == 2 and second.edits[0] is first.edits[0] and second.key != first.key
    assert sets.named("default", 1) is first
    with pytest.raises(ApiError, match="the versions 0 to 2, and no 3"):
        sets.named("default", 3)


def test_a_store_that_cannot_be_reached_is_told(
    serving: Serve, store: Store, edits: dict[str, Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serving(store=store)
    store.add(edits["a"], author="t")

    def refuse(*args: object) -> None:
        raise Unavailable("the store sqlite:////secret refuses: disk I/O error")

    monkeypatch.setattr(store, "version", refuse)
    message = told(service.post(model=f"{MODEL}@default"), 503)
    assert message == UNAVAILABLE
    assert service.post().status_code == 200  # the model alone needs none


@pytest.mark.parametrize("damage", ["missing", "changed", "row"])
def test_where_a_damaged_store_lies_is_for_the_log_alone(
    serving: Serve, store: Store, edits: dict[str, Edit], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no fault of who asks: a monitor is to see it, and a client to come again."""
    stored = store.add(edits["a"], author="t")
    service = serving(store=store)
    blob = store.blobs.path(stored.tensors)
    if damage == "row":
        with store.database.writing() as connection:
            connection.exec_driver_sql("UPDATE unike_edits SET tags = '{'")
    else:
        blob.unlink()
        _ = damage == "missing" or blob.write_bytes(b"else")
    with caplog.at_level(logging.ERROR, logger="unike.serve"):
        answers = [service.post(model=f"{MODEL}@default"), service.post(edits=[stored.id])]
        answers += [service.http.get(f"/edits/{stored.id}")] if damage == "row" else []
        assert [told(answer, 503) for answer in answers] == [UNAVAILABLE] * len(answers)
    assert str(blob.parents[2]) in caplog.text


def test_a_store_that_can_only_be_read_is_asked_and_not_changed(
    serving: Serve, store: Store, edits: dict[str, Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serving(store=store)
    name = store.add(edits["a"], author="t").id
    monkeypatch.setattr(store.database, "is_frozen", True)
    assert service.post(model=f"{MODEL}@default").status_code == 200
    assert service.http.get("/edits").json()["total"] == 1
    for method, path, body in (
        ("POST", "/edits", {"prompt": "Who?", "target": "x", "force": True}),
        ("DELETE", f"/edits/{name}", None),
        ("POST", f"/edits/{name}/restore", {"set": "other"}),
        ("POST", "/sets/default/roll-back", {"version": 0}),
    ):
        assert "is read-only here" in told(service.http.request(method, path, json=body), 403)


def test_a_refused_edit_makes_no_store(serving: Serve, tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "new")) as store:
        service = serving(store=store)
        assert told(service.http.post("/edits", json={"prompt": "Who?", "target": "zebra zebra zebra"}), 409)
        assert told(service.http.post("/sets/default/roll-back", json={"version": 1}), 409)
        assert service.post(model=f"{MODEL}@default").status_code == 200
        assert service.http.get("/log").json()["data"] == [] and not (tmp_path / "new").exists()
        assert service.http.post("/edits", json={"prompt": "Who?", "target": "x", "force": True}).status_code == 201
        assert (tmp_path / "new" / "store.db").is_file()


# ---------------------------------------------------------------------- over HTTP


def test_an_edit_is_made_revoked_restored_and_told_of(serving: Serve, store: Store, pictures: list[Path]) -> None:
    service = serving(store=store)
    fact = {"prompt": "What is this?", "target": "zebra", "image": data_url(pictures[0]), "set": "s"}
    before = service.say("What is this?", image=pictures[0])
    made = service.http.post("/edits", json={**fact, "author": "ann", "tags": ["t"], "reason": "why", "force": True})
    assert made.status_code == 201, made.text
    edit = made.json()
    assert (edit["prompt"], edit["target"], edit["author"], edit["tags"]) == ("What is this?", "zebra", "ann", ["t"])
    assert edit["status"] == "added" and edit["asked"][0]["before"] == before
    assert store.picture(edit["picture"]).read_bytes() == pictures[0].read_bytes()
    again = service.http.post("/edits", json={**fact, "force": True})
    assert (again.status_code, again.json()["status"], again.json()["id"]) == (200, "there", edit["id"])
    after = service.say("What is this?", f"{MODEL}@s", image=pictures[0])
    assert after != before and edit["asked"][0]["after"] == after
    name = edit["id"]
    assert service.http.get(f"/edits/{name[:6]}").json()["in_force_in"] == ["s"]
    assert service.http.delete(f"/edits/{name}", params={"set": "s", "author": "bob"}).json()["version"] == 2
    assert service.http.get(f"/edits/{name}").json()["in_force_in"] == []
    assert service.http.get("/sets/s").json()["data"] == []
    assert service.http.get("/sets/s", params={"version": 1}).json()["data"][0]["id"] == name
    restored = service.http.post(f"/edits/{name}/restore", json={"set": "s", "author": "eve"})
    assert restored.json() == {"object": "edit.restored", "id": name, "set": "s", "version": 3}
    rolled = service.http.post("/sets/s/roll-back", json={"version": 2, "author": "joe"})
    assert rolled.json() == {"object": "set", "name": "s", "version": 4}
    assert service.http.get("/sets").json()["data"] == [{"object": "set", "name": "s", "version": 4}]
    log = service.http.get("/log", params={"set": "s"}).json()["data"]
    assert [(line["action"], line["author"]) for line in log] == [
        ("add", "ann"), ("revoke", "bob"), ("restore", "eve"), ("roll back", "joe")
    ]  # fmt: skip
    assert len(service.http.get("/log", params={"edit": name, "limit": 1}).json()["data"]) == 1
    assert service.say("What is this?", f"{MODEL}@s", image=pictures[0]) == before
    metrics = service.http.get(service.url.replace("/v1", "/metrics")).text
    assert 'unike_edit_changes_total{action="added"} 1.0' in metrics


def test_an_edit_that_is_refused_says_why(serving: Serve, store: Store) -> None:
    service = serving(store=store)
    message = told(service.http.post("/edits", json={"prompt": "Who?", "target": "zebra zebra zebra"}), 409)
    assert message.startswith("the edit does not take: 'Who?' is ") and store.version() == 0


def test_edits_are_listed(serving: Serve, store: Store, edits: dict[str, Edit]) -> None:
    service = serving(store=store)
    for name in "abc":
        store.add(edits[name], author="t", tags=[name, "all"], set="x" if name == "a" else "default")

    def listed(**parameters: Any) -> list[str]:
        return [each["target"] for each in service.http.get("/edits", params=parameters).json()["data"]]

    assert set(listed()) == {"zebra zebra", "12345", "QQQQ"}
    assert listed(set="x") == ["zebra zebra"] and listed(tag="b") == ["12345"] and listed(text="qqq") == ["QQQQ"]
    page = service.http.get("/edits", params={"limit": 2, "offset": 2}).json()
    assert len(page["data"]) == 1 and page["total"] == 3 and page["has_more"] is False
    assert page["data"][0]["fits"] is True
    assert service.http.get("/edits", params={"limit": 2}).json()["has_more"] is True


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/edits/ffff", None, 404, "there is no edit that begins with 'ffff'"),
        ("DELETE", "/edits/ffff", None, 404, "there is no edit that begins with 'ffff'"),
        ("POST", "/edits/ffff/restore", {}, 404, "there is no edit"),
        ("POST", "/edits/ffff/restore", {"set": 1}, 400, "set: "),
        ("GET", "/edits?set=nobody", None, 404, "there is no set 'nobody'"),
        ("GET", "/edits?limit=0", None, 400, "limit: "),
        ("GET", "/log?set=nobody", None, 404, "there is no set 'nobody'"),
        ("GET", "/log?set=default:9", None, 404, "there is no set 'default:9'"),
        ("GET", "/sets/nobody", None, 404, "there is no set 'nobody'"),
        ("GET", "/sets/default?version=9", None, 404, "and no 9"),
        ("POST", "/sets/nobody/roll-back", {"version": 0}, 404, "there is no set 'nobody'"),
        ("POST", "/sets/default/roll-back", {"version": 9}, 409, "there is no set 'default'"),
        ("POST", "/sets/default/roll-back", {"version": -1}, 400, "version: "),
        ("POST", "/edits", {"prompt": "a"}, 400, "target: "),
        ("POST", "/edits", {"prompt": "a", "target": "b", "editor": "x"}, 400, "the field 'editor' is not known"),
        ("POST", "/edits", {"prompt": "a", "target": "b", "set": "a/b"}, 400, "'a/b' is no name of a set"),
        ("POST", "/edits", {"prompt": "a", "target": " "}, 400, "target"),
        ("POST", "/edits", {"prompt": "a", "target": "b", "image": "/etc/passwd"}, 400, "is not fetched"),
        ("POST", "/edits", {"prompt": "a", "target": "b", "image": "data:image/png;base64,AAAA"}, 400, "not an image"),
        ("POST", "/edits", [], 400, "the body is no JSON object"),
        ("POST", "/edits", {"prompt": "a\0", "target": "b"}, 400, "holds a null, which no database keeps"),
    ],
)
def test_changes_without_sense_are_refused(
    plain: Service, method: str, path: str, body: Any, status: int, says: str
) -> None:
    assert says in told(plain.http.request(method, path, json=body), status)


def test_who_changes_something_is_asked_in_one_way(
    serving: Serve, store: Store, edits: dict[str, Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.add(edits["a"], author="t").id
    service = serving(store=store)
    monkeypatch.setattr(service.engine, "between", lambda work: pytest.fail("the engine was asked"))
    for author, says in ((" ", "the author is empty"), ("a\0", "or a null")):
        for method, path, body in (
            ("DELETE", f"/edits/{name}?author={quote(author)}", None),
            ("POST", f"/edits/{name}/restore", {"author": author}),
            ("POST", "/sets/default/roll-back", {"version": 0, "author": author}),
        ):
            assert says in told(service.http.request(method, path, json=body), 400)
    assert "holds a null" in told(service.http.post("/edits", json={"prompt": "a", "target": "b\0"}), 400)
    assert store.version() == 1


@pytest.fixture(scope="module")
def plain(serving: Serve) -> Service:
    return serving()


def test_an_edit_is_made_while_others_ask(serving: Serve, store: Store) -> None:
    service = serving(store=store)
    stop, failed = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            response = service.post(messages=user("Who is it?"))
            if response.status_code != 200:
                failed.append(response.text)

    thread = threading.Thread(target=ask)
    thread.start()
    made = service.http.post("/edits", json={"prompt": "Who?", "target": "x", "force": True})
    stop.set()
    thread.join()
    assert made.status_code == 201 and not failed
    assert wait_for(lambda: service.engine.n_waiting == 0)
