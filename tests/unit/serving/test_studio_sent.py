"""What is sent to the studio by hand: whatever it is, it ends in one line, and in no traceback."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conversing import Serve, Service, told, wait_for

pytest.importorskip("gradio")

from studio import Visitor

from unike.serve.studio import door

ODD: list[Any] = [None, 7, 1.5, True, [], {}, {"path": "/etc/passwd"}, {"path": 7}, "half \ud83d", "a\0b", "$none$"]


@pytest.fixture(scope="module")
def service(serving: Serve) -> Service:
    return serving(studio=True)


@pytest.fixture
def visitor(service: Service) -> Iterator[Visitor]:
    found = Visitor(service.url)
    with found.http:
        yield found


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that is sent within the test leaves a traceback, in whichever log."""
    yield
    logged = caplog.get_records("call")
    written = "\n".join([*capfd.readouterr(), *(record.getMessage() for record in logged)])
    assert "Traceback" not in written and "Error" not in written and not any(record.exc_info for record in logged)


def functions(visitor: Visitor) -> list[tuple[int, list[Any]]]:
    """What the page does, by its number, with what is sent as long as nobody has written anything."""
    config = visitor.config()
    first = {each["id"]: each["props"].get("value") for each in config["components"]}
    return [(each["id"], [first[i] for i in each["inputs"]]) for each in config["dependencies"] if each["backend_fn"]]


def test_whatever_a_field_holds_ends_in_a_line(service: Service, visitor: Visitor, quiet: None) -> None:
    answered = refused = 0
    for number, first in functions(visitor):
        for at in range(len(first)):
            for value in ODD:
                data = [*first]
                data[at] = value
                said = visitor.send(data=data, fn_index=number, session_hash=visitor.session)
                if said.status_code == 200:
                    found = visitor.outcome()
                    assert found["success"], (number, at, value, found)
                    answered += 1
                else:
                    assert told(said, 400)
                    refused += 1
    assert answered > 50 and refused > 50 and service.store.all() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fn_index": 999}, "fn_index names nothing that this page does"),
        ({"fn_index": -1}, "fn_index names nothing"),
        ({"fn_index": True}, "fn_index names nothing"),
        ({"fn_index": "0"}, "fn_index names nothing"),
        ({"fn_index": None}, "fn_index names nothing"),
        ({"data": []}, "data is a list of 3 values"),
        ({"data": ["a", None, "default", "more"]}, "data is a list of 3 values"),
        ({"data": {}}, "data is a list of 3 values"),
        ({"data": None}, "data is a list of 3 values"),
        ({"session_hash": None}, "session_hash names a session"),
        ({"session_hash": 7}, "session_hash names a session"),
        ({"session_hash": "../x"}, "session_hash names a session"),
        ({"session_hash": "x" * 1000}, "session_hash names a session"),
    ],
)
def test_what_no_button_sends_is_refused(visitor: Visitor, quiet: None, change: dict[str, Any], says: str) -> None:
    body = {"data": ["", None, "default"], "fn_index": 0, "session_hash": visitor.session}
    assert says in told(visitor.send(**body | change), 400)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(visitor: Visitor, quiet: None, body: bytes) -> None:
    assert "the body is no" in told(visitor.http.post("/gradio_api/queue/join", content=body), 400)


@pytest.mark.parametrize(
    "more",
    [
        {"trigger_id": 999},
        {"trigger_id": "x"},
        {"trigger_id": {}},
        {"event_data": 7},
        {"event_data": ["edit"]},
        {"event_data": {}},
        {"batched": True},
        {"simple_format": True},
        {"event_id": "x"},
        {"oauth_token": 7},
    ],
)
def test_what_comes_along_changes_nothing(visitor: Visitor, quiet: None, more: dict[str, Any]) -> None:
    for name, data in (("on_ask", ["", None, "default"]), ("on_show", [""]), ("on_drop", [""])):
        number = next(each["id"] for each in visitor.config()["dependencies"] if each["api_name"] == name)
        said = visitor.send(**{"data": data, "fn_index": number, "session_hash": visitor.session} | more)
        assert said.status_code == 200, said.text
        found = visitor.outcome()
        assert found["success"] and 'role="alert"' in found["output"]["data"][0], found


def test_a_page_that_was_loaded_before_the_server_began_anew_is_told(
    visitor: Visitor, quiet: None, caplog: pytest.LogCaptureFixture
) -> None:
    answer = visitor.http.get("/gradio_api/queue/data", params={"session_hash": "of_another_time"})
    assert answer.status_code == 200 and '"session_not_found":true' in answer.text
    assert not wait_for(lambda: any("without completing" in line for line in caplog.messages), 0.1)


# ---------------------------------------------------------------------- paths and files


@pytest.mark.parametrize("path", ["/static/" + "a" * 5000, "/assets/%00", "/static/" + "é" * 200, "/svelte/../../x"])
def test_paths_that_name_no_file_are_not_there(visitor: Visitor, quiet: None, path: str) -> None:
    assert "there is nothing at" in told(visitor.http.get(path), 404)


FORM = {"content-type": "multipart/form-data; boundary=X"}


@pytest.mark.parametrize("query", ["", "?upload_id=a"])
@pytest.mark.parametrize(
    "head",
    ['form-data; name="files"; x=y', "form-data", 'form-data; filename="a.png"', "", "\xff"],
)
def test_an_upload_that_is_no_file_is_refused(visitor: Visitor, quiet: None, head: str, query: str) -> None:
    body = f"--X\r\nContent-Disposition: {head}\r\n\r\nx\r\n--X--\r\n".encode()
    assert told(visitor.http.post(f"/gradio_api/upload{query}", content=body, headers=FORM), 400)


@pytest.mark.parametrize("body", [b"--X\r\n\r\n\r\n", b"x" * 100])
def test_an_upload_that_is_no_form_is_refused(visitor: Visitor, quiet: None, body: bytes) -> None:
    for headers in (FORM, {}, {"content-type": "multipart/form-data"}):
        assert told(visitor.http.post("/gradio_api/upload", content=body, headers=headers), 400)


def test_visitors_fill_no_disk(
    visitor: Visitor, pictures: list[Path], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert visitor.upload(pictures[0])
    monkeypatch.setattr(door, "MOST_KEPT", 1 << 15)  # each counts for more
    answer = visitor.http.post("/gradio_api/upload", files={"files": ("a.png", pictures[0].read_bytes(), "image/png")})
    assert "too many pictures" in told(answer, 429)


def test_what_a_button_sends_is_not_megabytes(visitor: Visitor, quiet: None) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/cancel"):
        answer = visitor.http.post(path, content=b"[" + b"[]," * 500_000 + b"[]]")
        assert "at most 1,048,576 bytes" in told(answer, 413)
