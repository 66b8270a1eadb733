"""The studio: who may come in and change something, what is reached at all, and the page itself, without a browser."""

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conversing import MODEL, Serve, Service, Visit, told

from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.serve.keys import Holder, read_keys
from unike.serve.sessions import COOKIE, LASTS, Sessions

gradio = pytest.importorskip("gradio")

from studio import Visitor  # noqa: E402

from unike.serve.studio import shown  # noqa: E402

USER, ADMIN = "u" * 20, "a" * 20

Cli = Callable[..., Any]

NOBODY = ("", "", "", False, False, False)
"""Reason, author, tags; neither replace nor be strict, nor force."""


@pytest.fixture(scope="module")
def plain(serving: Serve) -> Service:
    return serving(studio=True, max_picture_mb=1, max_body_mb=2)


@pytest.fixture(scope="module")
def locked(serving: Serve, tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys").write_text(USER)
    (folder / "admins").write_text(ADMIN)
    return serving(studio=True, keys=read_keys(folder / "keys", folder / "admins"), any_host=True)


@pytest.fixture
def visitor(plain: Service, visit: Visit) -> Visitor:
    return visit(plain)


# ---------------------------------------------------------------------- there or not


def test_without_a_studio_there_is_none(serving: Serve) -> None:
    base = serving().url.removesuffix("/v1")
    for path in ("/studio", "/studio/", "/studio/login"):
        assert "there is nothing at '/studio" in told(httpx.get(base + path), 404)


def test_the_page_is_there_and_names_no_other_place(visitor: Visitor) -> None:
    page = visitor.http.get("/")
    assert page.status_code == 200 and "unike studio" in page.text
    outside = re.findall(r"""(?:src|href|content)=["'](?:https?:)?//[^"']+""", page.text)
    assert not outside and "googleapis" not in page.text and "manifest.json" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "frame-ancestors 'none'" in policy
    config = visitor.config()
    assert config["analytics_enabled"] is False and "fonts.g" not in json.dumps(config.get("stylesheets", []))


def test_what_is_missing_is_named(early: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert early("serve", "--studio").is_error(
        'gradio is not installed; bring it with: pip install "unike-edit[studio]"'
    )


def test_who_does_not_ask_for_a_studio_is_told_how_to_have_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module("unike.cli.serve")
    assert command.has_studio(None, 1) is True and command.has_studio(False, 1) is False
    assert command.has_studio(None, 2) is False
    with pytest.raises(UnikeError, match="the studio is served by one process"):
        command.has_studio(True, 2)
    command.say("http://127.0.0.1:8000/v1", "mini", True, False)
    assert "for people: http://127.0.0.1:8000/studio;" in capsys.readouterr().out
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.has_studio(None, 1) is False
    command.say("http://127.0.0.1:8000/v1", "mini", False, False)
    assert 'without gradio; bring it with: pip install "unike-edit[studio]"' in capsys.readouterr().err


# ---------------------------------------------------------------------- what is reached


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=..%2F..%2Fetc%2Fpasswd",
        "/gradio_api/file=pyproject.toml",
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/x",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/stream/a/b/c/playlist-file",
        "/monitoring",
        "/monitoring/summary",
        "/custom_component/1/client/component/x",
        "/assets/..%2F..%2F..%2F__init__.py",
        "/static/..%2F..%2F__init__.py",
        "/assets/%2Fetc%2Fpasswd",
    ],
)
def test_no_file_and_nothing_else_of_gradios_is_reached(visitor: Visitor, path: str) -> None:
    answer = visitor.http.get(path)
    assert answer.status_code in (403, 404) and "root:" not in answer.text and "import" not in answer.text


def test_a_stores_files_are_not_served_and_a_visitors_own_picture_is(
    plain: Service, visitor: Visitor, pictures: list[Path]
) -> None:
    sent = visitor.upload(pictures[0])["path"]
    assert visitor.http.get(f"/gradio_api/file={sent}").content == pictures[0].read_bytes()
    plain.store.add_canary(Query("Is water wet?"), author="t")
    folder = Path(str(plain.store.blobs.root).removeprefix("file://")).parent
    assert (folder / "store.db").is_file()
    assert visitor.http.get(f"/gradio_api/file={folder / 'store.db'}").status_code == 404
    assert visitor.http.get(f"/gradio_api/file={sent}/../../../../../{pictures[0]}").status_code == 404


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:9/x.png", "pyproject.toml", "", None, "\0", "OWN"])
@pytest.mark.parametrize("field", [0, 1, 2])
def test_a_file_that_was_not_sent_is_not_read_whatever_field_names_it(
    visitor: Visitor, pictures: list[Path], path: str | None, field: int
) -> None:
    """Gradio would copy it to where pictures of visitors are shown from."""
    data: list[Any] = ["What is this?", None, "default"]
    named = str(pictures[0].resolve()) if path == "OWN" else path
    data[field] = [{"path": named, "url": "data:image/png;base64,AAAA", "meta": {"_type": "gradio.FileData"}}]
    data[field] = data[field][0] if field == 1 else data[field]
    joined = visitor.join("on_ask", *data)
    assert ("no longer there" if field == 1 else "is a text, not list") in told(joined, 400)


def test_a_picture_that_is_none_or_too_large_is_told_in_a_line(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    status, now, plain = visitor.said("on_ask", "What is this?", visitor.upload(tmp_path / "x.png"), "default")
    assert "not an image that can be read" in status and 'role="alert"' in status and now == plain == ""
    (tmp_path / "y.png").write_bytes(b"\0" * (1 << 20 | 1))
    sent = visitor.http.post("/gradio_api/upload", files={"files": (tmp_path / "y.png").read_bytes()})
    assert sent.status_code == 413
    assert "at most" in told(visitor.http.post("/gradio_api/upload", content=b"\0" * (3 << 20)), 413)


def test_without_keys_pages_of_other_sites_may_not_use_it(visitor: Visitor) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        assert "without keys" in told(visitor.http.get("/", headers=headers), 403)
        assert "without keys" in told(visitor.http.post("/gradio_api/queue/join", json={}, headers=headers), 403)
    assert visitor.http.get("/login").headers["location"] == "/studio/"


# ---------------------------------------------------------------------- keys


def test_a_key_is_asked_for(locked: Service, visit: Visit) -> None:
    stranger = visit(locked)
    assert stranger.http.get("/").headers["location"] == "/studio/login"
    for path in ("/config", "/gradio_api/info", "/assets/index.js"):
        assert "sign in at /studio/login" in told(stranger.http.get(path), 401)
    assert told(stranger.http.post("/gradio_api/queue/join", json={}), 401)
    page = stranger.http.get("/login")
    assert page.status_code == 200 and 'type="password"' in page.text
    wrong = stranger.http.post("/login", data={"key": "<b>wrong"})
    assert wrong.status_code == 401 and "none of the server&#x27;s keys" in wrong.text
    assert "set-cookie" not in wrong.headers


def test_a_user_may_ask_and_look_and_an_admin_may_change(locked: Service, visit: Visit) -> None:
    user, admin = visit(locked, USER), visit(locked, ADMIN)
    fact = ("Who is it?", None, "default", "zebra", *NOBODY)
    assert (
        user.said("on_ask", "Who is it?", None, "default")[1]
        == locked.client.with_options(api_key=USER)
        .chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Who is it?"}])
        .choices[0]
        .message.content
    )
    refused = user.said("on_correct", *fact)
    assert "an admin&#39;s key, and this is a user&#39;s" in refused[0] and locked.store.version() == 0
    assert "an admin&#39;s key" in user.said("on_add", "Who?", None, "")[0] and not locked.store.canaries()
    made = admin.said("on_correct", *fact)
    assert "In force as" in made[0] and locked.store.version() == 1
    (edit,) = locked.store.members()
    assert (edit.author, edit.target) == ("studio", "zebra")
    assert edit.id in user.said("on_look", "zebra", "", "")[0]
    assert edit.id in user.said("on_preview", "default", "0")[1]
    assert "an admin&#39;s key" in user.said("on_roll_back", "default", None, "", "")[0] and locked.store.version() == 1
    assert "an admin&#39;s key" in user.said("on_restore", edit.id, "default", "", "", "", "", "", 0)[0]


def test_a_key_for_some_sets_shows_and_changes_no_others(
    serving: Serve, visit: Visit, edits: dict[str, Edit], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"{USER} tenant-a\n")
    (tmp_path / "admins").write_text(f"{ADMIN} tenant-a\n")
    service = serving(studio=True, keys=read_keys(tmp_path / "keys", tmp_path / "admins"), any_host=True)
    for name, set_ in (("a", "tenant-a"), ("b", "tenant-b"), ("c", "default")):
        service.store.add(edits[name], set=set_, author=f"of {set_}", tags=[f"tag of {set_}"])
    canary = service.store.add_canary(Query("Is water wet?"), author="t")
    (own,), (other,) = service.store.members("tenant-a"), service.store.members("tenant-b")
    before = service.store.log()
    for key in (USER, ADMIN):
        visitor = visit(service, key)
        loaded, listed = visitor.said("on_load"), visitor.said("on_open", "", "", "", 0)
        assert loaded[1]["choices"] == [["tenant-a", "tenant-a"]] and loaded[1]["value"] == "tenant-a"
        log, canaries = visitor.said("on_look_1", "", 100), visitor.said("on_open_1")
        assert own.id in listed[0] and "1 to 1 of 1" in listed[0] and own.id in log[0]
        assert "There are no canaries yet" in canaries[0]
        for text in map(str, (loaded, listed, log, canaries)):
            assert other.id not in text and "tenant-b" not in text and "water" not in text
        assert visitor.said("on_ask", "Who?", None, "tenant-a")[0] == ""
        for set_ in ("tenant-b", "tenant-b:1", "default", ""):
            assert "there is no set" in visitor.said("on_ask", "Who?", None, set_)[0]
        assert "there is no edit" in visitor.said("on_show", "", event={"edit": other.id})[0]
    for data in (("Who?", None, "tenant-b", "x", *NOBODY), ("Who?", None, "", "x", *NOBODY)):
        assert "this key is not for the set" in visitor.said("on_correct", *data)[0]
    visitor.said("on_show", "tenant-a", event={"edit": own.id})
    for set_ in ("tenant-b", "nobody"):
        where = ("", set_, "", "", "", "", "", 0)
        for button in ("on_revoke_1", "on_restore"):
            assert "this key is not for the set" in visitor.said(button, *where)[0]
        assert "there is no set" in visitor.said("on_preview", set_, "0")[0]
    assert "for some sets alone" in visitor.said("on_add", "Who?", None, "")[0]
    assert "for some sets alone" in visitor.said("on_drop", "", event={"edit": canary.id})[0]
    assert service.store.log() == before
    assert "Revoked" in visitor.said("on_revoke_1", "", "tenant-a", "", "", "", "", "", 0)[0]


def test_a_session_is_for_the_studio_and_its_own_pages_alone(locked: Service, visit: Visit) -> None:
    admin = visit(locked, ADMIN)
    cookie = admin.http.cookies[COOKIE]
    assert told(httpx.get(f"{locked.url}/edits", headers={"cookie": f"{COOKIE}={cookie}"}), 401)
    assert admin.http.get("/config").status_code == 200
    for origin in ("http://evil.example", "null"):
        answer = admin.http.post("/gradio_api/queue/join", json={}, headers={"origin": origin})
        assert "may not use the studio" in told(answer, 403)
    flags = admin.http.post("/login", data={"key": ADMIN}).headers["set-cookie"].lower()
    assert "httponly" in flags and "samesite=strict" in flags and "path=/studio" in flags
    admin.http.post("/logout")
    assert told(admin.http.get("/config", headers={"cookie": f"{COOKIE}={admin.http.cookies.get(COOKIE)}"}), 401)


def test_sessions_grow_old_and_end() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    who = Holder("user", frozenset({"tenant-a"}))
    first, second = (f"a=b; {COOKIE}={sessions.begin(who)}" for _ in range(2))
    assert sessions.holder(first) == sessions.holder(second) == who and first != second
    sessions.end(first)
    assert sessions.holder(first) is None and sessions.holder(second) == who
    now[0] = LASTS + 1
    assert [sessions.holder(each) for each in (second, None, "", COOKIE, f"{COOKIE}=é", "\0")] == [None] * 6


# ---------------------------------------------------------------------- the story, as the page's buttons tell it


def test_from_a_wrong_answer_to_a_restored_edit(serving: Serve, visit: Visit, pictures: list[Path]) -> None:
    service = serving(studio=True)
    visitor = visit(service)
    picture = visitor.upload(pictures[0])
    service.store.add_canary(Query("Who wrote it?"), author="t")
    wrong = service.say("What is this?", image=pictures[0])
    assert visitor.said("on_ask", "What is this?", picture, "default") == ["", wrong, wrong]
    terms = ("seen in a book", "ann", "animals, books ,", False, False, False)
    said, table, *_ = visitor.said("on_correct", "What is this?", picture, "default", "cat", *terms)
    (edit,) = service.store.members()
    assert f"In force as {edit.id}" in said and "of 1 canaries moved" in said
    assert (edit.author, edit.reason, edit.tags) == ("ann", "seen in a book", ("animals", "books"))
    assert service.store.picture(edit.picture or "").read_bytes() == pictures[0].read_bytes()
    assert table.count("<tr") == 7 and "in other words" in table and "canary" in table
    assert service.say("What is this?", f"{MODEL}@default", image=pictures[0]) == "cat"
    assert visitor.said("on_ask", "What is this?", picture, "default") == ["", "cat", wrong]
    (compared,) = visitor.said("on_compare", "What is this?", "", visitor.upload(pictures[1]), "default", None)
    assert "Under default:0, and under default:1" in compared
    _, details, *_ = visitor.said("on_show", "", event={"edit": edit.id})
    assert "data:image/jpeg;base64," in details and "seen in a book" in details and "ann" in details
    where = (edit.id, "default", "was right", "bob", "", "", "", 0)
    assert "Revoked" in visitor.said("on_revoke_1", *where)[0] and not service.store.members()
    assert "is not in force" in visitor.said("on_revoke_1", *where)[0]
    assert visitor.said("on_ask", "What is this?", picture, "default")[1] == wrong
    assert "Restored" in visitor.said("on_restore", *where)[0] and service.store.members() == [edit]
    log = visitor.said("on_look_1", "", 100)[0]
    assert [word in log for word in ("restore", "revoke", "was right", "bob", "add canary")] == [True] * 5


def test_what_does_not_take_is_let_in_where_that_is_wanted(serving: Serve, visit: Visit) -> None:
    service = serving(studio=True)
    visitor = visit(service)
    fact = ("Who is it?", None, "default", "zebra zebra zebra zebra", "", "", "", False, False)
    said, table, *_ = visitor.said("on_correct", *fact, False)
    assert "the edit does not take" in said and "✗ wrong" in table and service.store.version() == 0
    assert "In force as" in visitor.said("on_correct", *fact, True)[0] and service.store.version() == 1


def test_what_makes_no_sense_is_told_in_a_line(plain: Service, visitor: Visitor) -> None:
    for data, says in (
        (("", None, "default"), "the question is empty"),
        (("Who?", None, "nobody"), "there is no set"),
        (("Who?", None, "a/b"), "there is no set"),
        (("x" * 40_000, None, "default"), "characters; shorten them"),
    ):
        assert says in visitor.said("on_ask", *data)[0]
    for data, says in (
        (("", None, "default", "x", *NOBODY), "the question is empty"),
        (("Who?", None, "default", " ", *NOBODY), "the right answer is empty"),
        (("Who?", None, "a/b", "x", *NOBODY), "is no name of a set"),
        (("Who?", None, "default", "zebra " * 30, *NOBODY), "shorten it"),
    ):
        assert says in visitor.said("on_correct", *data)[0]
    assert plain.store.version() == 0


def test_texts_are_no_markup_and_no_template() -> None:
    hostile = "<img src=x onerror=alert(1)> ${alert(1)} {{x}} `\\"
    found = shown.text(hostile)
    assert not set("<>${}`\\\"'") & set(found)
    for html in (shown.problem(hostile), shown.table(hostile, ["a"], [[hostile]]), shown.done(hostile)):
        assert "<img" not in html and "${" not in html and "{{" not in html
