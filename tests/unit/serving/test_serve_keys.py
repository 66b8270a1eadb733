"""Keys: how they are written down, and those that are good for some sets alone: the others are not there for them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conversing import MODEL, Serve, Service, told

from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.serve.keys import Holder, Keys, read_keys
from unike.store import Store

ALL, USER, ADMIN = "w" * 20, "u" * 20, "a" * 20


# ---------------------------------------------------------------------- written down


def held(keys: Keys, *given: str) -> list[Any]:
    """Who holds each of them."""
    return [keys.holder(f"Bearer {key}") for key in given]


def test_keys_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not read_keys()
    monkeypatch.setenv("UNIKE_API_KEYS", f"{USER}, {'x' * 16}")
    monkeypatch.setenv("UNIKE_ADMIN_KEYS", ADMIN)
    keys = read_keys()
    user, admin = Holder("user"), Holder("admin")
    assert held(keys, USER, "x" * 16, ADMIN, "", "é" * 16) == [user, user, admin, None, None]
    assert keys.holder(None) is None and USER not in repr(keys)
    file = tmp_path / "keys"
    for content, says in (
        ("# none\n", "there is no key in"),
        ("short", "has fewer than 16 characters"),
        ("short tenant-a", "has fewer than 16 characters"),
        (f"{USER} tenant/a", r"what stands behind a key in .* is no name of a set; write KEY, or KEY SET SET"),
        (f"{USER} tenant-a:7", "is no name of a set"),
    ):
        file.write_text(content)
        with pytest.raises(UnikeError, match=says) as told:
            read_keys(file)
        assert USER not in str(told.value) and "tenant" not in str(told.value)
    with pytest.raises(UnikeError, match="cannot read the keys in"):
        read_keys(tmp_path / "nothing")


def test_the_sets_of_a_key_stand_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users, admins, twice, both = "u" * 20, "a" * 20, "t" * 20, "b" * 20
    (tmp_path / "keys").write_text(
        f"# whose\n{users} tenant-a  tenant-b\n{twice}\tx\n{twice} y\n{both}\n{'o' * 20} x\n{'o' * 20}\n"
    )
    (tmp_path / "admins").write_text(f"{admins} tenant-a\n{both} tenant-a\n")
    monkeypatch.setenv("UNIKE_API_KEYS", f"{'e' * 20} tenant-c, {'f' * 20}")
    keys = read_keys(tmp_path / "keys", tmp_path / "admins")
    assert held(keys, users, twice, "o" * 20, "e" * 20, "f" * 20) == [
        Holder("user", frozenset({"tenant-a", "tenant-b"})),
        Holder("user", frozenset({"x", "y"})),
        Holder("user"),
        Holder("user", frozenset({"tenant-c"})),
        Holder("user"),
    ]
    assert held(keys, admins, both) == [Holder("admin", frozenset({"tenant-a"}))] * 2


# ---------------------------------------------------------------------- good for some sets


@pytest.fixture(scope="module")
def service(serving: Serve, edits: dict[str, Edit], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two tenants, and who serves them."""
    folder = tmp_path_factory.mktemp("tenants")
    (folder / "keys").write_text(f"{USER} tenant-a\n{ALL}\n")
    (folder / "admins").write_text(f"{ADMIN} tenant-a tenant-new\n{'s' * 20}\n")
    with closing(Store.open(folder / "store")) as store:
        store.add_canary(Query("Is water wet?"), author="t")
        for name, set_ in (("a", "tenant-a"), ("b", "tenant-b"), ("c", "tenant-b"), ("c", "default")):
            store.add(edits[name], set=set_, author=f"of {set_}", tags=[set_])
        yield serving(store=store, keys=read_keys(folder / "keys", folder / "admins"), any_host=True)


def asked(service: Service, key: str, method: str, path: str, **more: Any) -> Any:
    return service.http.request(method, path, headers={"authorization": f"Bearer {key}"}, **more)


def got(service: Service, key: str, path: str) -> Any:
    answer = asked(service, key, "GET", path)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("key", [USER, ADMIN])
def test_a_tenant_is_told_of_its_own_alone(service: Service, key: str) -> None:
    whole, own = "s" * 20, service.store.members("tenant-a")[0]
    assert [each["id"] for each in got(service, key, "/models")["data"]] == [MODEL, f"{MODEL}@tenant-a"]
    assert len(got(service, whole, "/models")["data"]) == len(got(service, ALL, "/models")["data"]) == 4
    assert [each["name"] for each in got(service, key, "/sets")["data"]] == ["tenant-a"]
    assert len(got(service, whole, "/sets")["data"]) == 3
    listed = got(service, key, "/edits")
    assert [each["id"] for each in listed["data"]] == [own.id] and listed["total"] == 1
    assert got(service, whole, "/edits")["total"] == 3
    assert [(line["set"], line["action"]) for line in got(service, key, "/log")["data"]] == [("tenant-a", "add")]
    assert len(got(service, whole, "/log")["data"]) == 5
    assert got(service, key, f"/edits/{own.id}")["in_force_in"] == ["tenant-a"]
    assert got(service, key, "/sets/tenant-a")["data"][0]["id"] == own.id
    assert got(service, key, f"/models/{MODEL}@tenant-a:1")["id"] == f"{MODEL}@tenant-a:1"
    told_all = "".join(str(got(service, key, path)) for path in ("/models", "/sets", "/edits", "/log"))
    assert "tenant-b" not in told_all and "water" not in told_all


@pytest.mark.parametrize("set_", ["tenant-b", "default", "nobody"])
def test_what_is_of_others_is_not_there(service: Service, set_: str) -> None:
    """Just as what is nobody's: a tenant cannot find out who the others are."""
    for path in (f"/models/{MODEL}@{set_}", f"/models/{MODEL}@{set_}:1", f"/sets/{set_}", f"/edits?set={set_}"):
        said = told(asked(service, USER, "GET", path), 404)
        assert said == f"there is no set '{set_}' of edits (known: tenant-a)", path
    assert told(asked(service, USER, "GET", f"/log?set={set_}"), 404) == said
    for body in ({"model": f"{MODEL}@{set_}"}, {"model": f"{MODEL}@{set_}:1"}, {"model": MODEL, "edits": set_}):
        body |= {"messages": [{"role": "user", "content": "Who?"}]}
        answer = asked(service, USER, "POST", "/chat/completions", json=body)
        assert told(answer, 404) == said and answer.json()["error"]["code"] == "model_not_found"


def test_edits_of_others_are_not_found_by_their_ids(service: Service) -> None:
    other = service.store.members("tenant-b")[0].id
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}], "edits": [other]}
    for answer in (
        asked(service, USER, "POST", "/chat/completions", json=body),
        asked(service, ADMIN, "GET", f"/edits/{other}"),
        asked(service, ADMIN, "GET", f"/log?edit={other}"),
        asked(service, ADMIN, "DELETE", f"/edits/{other}?set=tenant-a"),
        asked(service, ADMIN, "POST", f"/edits/{other}/restore", json={"set": "tenant-a"}),
    ):
        assert told(answer, 404) == f"there is no edit that begins with '{other}' in this store"
    body["edits"] = [service.store.members("tenant-a")[0].id]
    assert asked(service, USER, "POST", "/chat/completions", json=body).status_code == 200
    assert asked(service, ALL, "POST", "/chat/completions", json=body | {"edits": [other]}).status_code == 200


def test_a_tenant_asks_under_its_own(service: Service) -> None:
    mine, plain = (
        service.client.with_options(api_key=USER).chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Who?"}]
        )
        for name in (f"{MODEL}@tenant-a", MODEL)
    )
    assert mine.choices[0].message.content != plain.choices[0].message.content


@pytest.mark.parametrize("set_", ["tenant-b", "default", "nobody"])
def test_a_tenant_changes_its_own_alone(service: Service, set_: str) -> None:
    own = service.store.members("tenant-a")[0].id
    before = service.store.log()
    for method, path, body in (
        ("POST", "/edits", {"prompt": "Who?", "target": "x", "set": set_, "force": True}),
        ("DELETE", f"/edits/{own}?set={set_}", None),
        ("POST", f"/edits/{own}/restore", {"set": set_}),
        ("POST", f"/sets/{set_}/roll-back", {"version": 0}),
    ):
        said = told(asked(service, ADMIN, method, path, json=body), 403)
        assert said == f"this key is not for the set '{set_}', but for: tenant-a, tenant-new; name one of these as set"
        assert told(asked(service, USER, method, path, json=body), 403).startswith("edits are changed with an admin's")
    assert service.store.log() == before


def test_a_tenant_makes_takes_off_and_brings_back(service: Service) -> None:
    fact = {"prompt": "Who is it?", "target": "x", "set": "tenant-new", "force": True}
    made = asked(service, ADMIN, "POST", "/edits", json=fact)
    assert made.status_code == 201
    name = made.json()["id"]
    assert asked(service, ADMIN, "DELETE", f"/edits/{name}?set=tenant-new").json()["version"] == 2
    assert asked(service, ADMIN, "POST", f"/edits/{name}/restore", json={"set": "tenant-new"}).json()["version"] == 3
    back = asked(service, ADMIN, "POST", "/sets/tenant-new/roll-back", json={"version": 2})
    assert back.json()["version"] == 4
    assert asked(service, ADMIN, "POST", f"/edits/{name}/restore", json={"set": "tenant-a"}).status_code == 200
    assert asked(service, ADMIN, "DELETE", f"/edits/{name}?set=tenant-a").status_code == 200
    assert told(asked(service, USER, "GET", "/sets/tenant-new"), 404)
