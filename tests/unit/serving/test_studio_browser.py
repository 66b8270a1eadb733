"""The studio in a real browser: from a wrong answer to a revoked edit, on a phone, in the dark, and by keyboard."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conversing import MODEL, Serve, Service
from studio import FAINT, NAMELESS

from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.serve.keys import read_keys

pytest.importorskip("gradio")
api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.service

CHROMIUM = shutil.which("chromium")

HOSTILE = "<img src=x onerror='window.hacked=1'> ${window.hacked=2} {{hacked}} **bold**"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; make test-service brings it")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def service(serving: Serve) -> Service:
    return serving(studio=True)


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens the studio of a service; what a page asks of other places, or its scripts trip over, fails the test."""
    contexts: list[Any] = []
    troubles: list[str] = []

    def open_(service: Service, **more: Any) -> Any:
        base = service.url.removesuffix("/v1")
        context = browser.new_context(**more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda sent: troubles.append(sent.url) if not own(sent.url, base) else None)
        page.goto(f"{base}/studio/")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not troubles


def own(url: str, base: str) -> bool:
    return url.startswith((f"{base}/studio", "data:", f"blob:{base}"))


def send(page: Any, picture: Path) -> None:
    page.locator("#u-picture input[type=file]").set_input_files(picture)
    page.locator("#u-picture img").wait_for()


def ask(page: Any, question: str, picture: Path | None = None) -> tuple[str, str]:
    """The answers under the set and of the unedited model."""
    if picture is not None:
        send(page, picture)
    page.get_by_label("Question", exact=True).fill(question)
    return answers(page, lambda: page.get_by_label("Question", exact=True).press("Enter"))


def answers(page: Any, act: Callable[[], None]) -> tuple[str, str]:
    """The same, the first time."""
    act()
    page.wait_for_function("document.querySelector('#u-now textarea, #u-now input').value")
    return tuple(page.get_by_label(label).input_value() for label in ("Answer under the set", "of the unedited model"))  # type: ignore[return-value]


def correct(page: Any, target: str) -> str:
    """What the page says of a correction."""
    page.get_by_label("Right answer").fill(target)
    page.get_by_role("button", name="Correct it").click()
    page.locator("#u-ask-status .u-status").wait_for()
    return page.locator("#u-ask-status").inner_text()


def check_looks(page: Any, width: int) -> None:
    """Everything has a name and enough contrast, and nothing is wider than the screen."""
    assert page.evaluate(NAMELESS) == [] and page.evaluate(FAINT) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


TABS = ("Ask & correct", "Edits", "Log", "Canaries")


def preview(page: Any, version: str) -> None:
    """Show what rolling the set back would change."""
    page.get_by_role("tab", name="Log").click()
    if not page.locator("#u-preview").is_visible():
        page.get_by_role("button", name="Roll a set back").click()
    page.get_by_label("To what was in force in version").click()
    page.get_by_role("option", name=re.compile(f"^{version}: ")).click()
    page.get_by_role("button", name="Show what would change").click()
    page.locator("#u-change tbody tr").first.wait_for()


def test_a_set_is_rolled_back(service: Service, opened: Open, edits: dict[str, Edit]) -> None:
    first, second = (service.store.add(edits[name], author="ann") for name in "ab")
    page = opened(service)
    preview(page, "1")
    (row,) = page.locator("#u-change tbody tr").all()
    assert row.locator("td").all_inner_texts() == ["is taken off", second.prompt, second.target, second.id]
    page.get_by_label("Reason for rolling back").fill("too much")
    page.get_by_role("button", name="Yes, roll it back").click()
    page.get_by_text("Version 1 of default is in force again, as version 3.").wait_for()
    assert service.store.members() == [first] and service.store.log()[-1].reason == "too much"
    page.locator("#u-roll-back").wait_for(state="hidden")
    preview(page, "2")
    assert "comes into force" in page.locator("#u-change").inner_text()


def test_from_a_wrong_answer_to_revoke_and_back(service: Service, opened: Open, pictures: list[Path]) -> None:
    service.store.add_canary(Query("Who wrote it?"), author="t")
    page = opened(service)
    wrong = service.say("What is this?", image=pictures[0])
    assert ask(page, "What is this?", pictures[0]) == (wrong, wrong) and wrong != "cat"

    page.get_by_label("Reason").first.fill("seen in a book")
    page.get_by_label("Tags").fill("animals")
    assert "In force as" in correct(page, "cat")
    (edit,) = service.store.members()
    assert service.say("What is this?", f"{MODEL}@default", image=pictures[0]) == "cat"
    rows = page.locator("#u-table tbody tr")
    shown = [rows.nth(row).locator("td").all_inner_texts() for row in range(rows.count())]
    assert shown[0] == ["the question", "What is this?", wrong, "cat", "✓ right"]
    assert [row[0] for row in shown].count("in other words") == 4 and shown[-1][0] == "canary"
    page.wait_for_function("document.querySelector('#u-now textarea, #u-now input').value === 'cat'")

    page.get_by_role("button", name="Did something else move?").click()
    page.get_by_label("Another question").fill("Who wrote it?")
    page.get_by_role("button", name="Compare before and after").click()
    row = page.locator("#u-other tbody td")
    row.first.wait_for()
    assert row.all_inner_texts()[3] == service.say("Who wrote it?", f"{MODEL}@default")

    page.get_by_role("tab", name="Edits").click()
    page.get_by_label("Search").fill("BOOK")
    page.get_by_label("Search").press("Enter")
    page.get_by_role("button", name=f"Show {edit.id}").click()
    page.locator("#u-shown").wait_for()
    assert "seen in a book" in page.locator("#u-edit").inner_text()
    assert page.locator("#u-edit img").evaluate("image => image.complete && image.naturalWidth > 0")
    page.locator("#u-reason input, #u-reason textarea").fill("was right after all")
    page.get_by_role("button", name="Revoke", exact=True).click()
    page.get_by_text(f"Revoked {edit.id} in default").wait_for()
    assert (
        service.store.members() == [] and service.say("What is this?", f"{MODEL}@default", image=pictures[0]) == wrong
    )

    page.get_by_role("tab", name="Log").click()
    page.locator("#u-log tbody tr").nth(2).wait_for()
    assert "was right after all" in page.locator("#u-log tbody tr").first.inner_text()
    page.get_by_role("tab", name="Ask & correct").click()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("document.querySelector('#u-now textarea, #u-now input').value !== 'cat'")
    assert page.get_by_label("Answer under the set").input_value() == wrong

    page.get_by_role("tab", name="Edits").click()
    page.get_by_role("button", name="Restore", exact=True).click()
    page.get_by_text(f"Restored {edit.id} in default").wait_for()
    assert service.store.members() == [edit]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_it_can_be_read_on_a_phone_and_in_the_dark(
    service: Service, opened: Open, pictures: list[Path], scheme: str, width: int, height: int
) -> None:
    phone = width < 500
    page = opened(
        service, viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=phone, is_mobile=phone
    )
    ask(page, "What is this?", pictures[0])
    assert "In force as" in correct(page, "cat")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] > 128")
    assert light == (scheme == "light")
    check_looks(page, width)
    for name in TABS[1:]:
        page.get_by_role("tab", name=name).click()
        if name == "Edits":
            page.get_by_role("button", name=re.compile("Show ")).click()
            page.locator("#u-shown").wait_for()
        elif name == "Log":
            page.locator("#u-log tr").last.wait_for()
            preview(page, "0")
        else:
            page.locator("#u-canaries p").last.wait_for()
        check_looks(page, width)


def test_the_keyboard_alone_will_do(service: Service, opened: Open) -> None:
    page = opened(service)
    page.get_by_label("Question", exact=True).wait_for()
    keys = page.keyboard

    def reach(selector: str, key: str = "Tab") -> None:
        for _ in range(60):
            if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
                return
            keys.press(key)
        raise AssertionError(f"{selector} is not reached with {key}")

    reach("#u-question input, #u-question textarea")
    keys.type("Who wrote it?")
    wrong, _ = answers(page, lambda: keys.press("Enter"))
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    reach("#u-target input, #u-target textarea")
    keys.type("cat")
    keys.press("Enter")
    page.locator("#u-ask-status .u-done").wait_for()
    (edit,) = service.store.members()
    reach("[role=tab]", "Shift+Tab")
    for _ in range(8):
        if "Edits" in page.evaluate("document.activeElement.textContent"):
            break
        keys.press("Shift+Tab")
    keys.press("Enter")
    page.get_by_role("button", name=f"Show {edit.id}").wait_for()
    reach("button[data-edit]")
    keys.press("Enter")
    page.wait_for_function("document.activeElement.id === 'u-shown'")
    reach("#u-reason input, #u-reason textarea")
    keys.type("no more")
    reach("#u-revoke, #u-revoke button")
    keys.press("Enter")
    page.get_by_text(f"Revoked {edit.id}").wait_for()
    assert service.store.log()[-1].reason == "no more" and service.say("Who wrote it?", f"{MODEL}@default") == wrong


def test_what_people_write_stays_text(service: Service, opened: Open) -> None:
    page = opened(service)
    ask(page, f"Who is {HOSTILE}?")
    page.get_by_label("Reason").first.fill(HOSTILE)
    page.get_by_label("Tags").fill(HOSTILE)
    page.get_by_label("Author").first.fill(HOSTILE)
    assert "In force as" in correct(page, "cat")
    service.store.add_canary(Query(HOSTILE), author=HOSTILE)
    assert HOSTILE in page.locator("#u-table").inner_text()
    page.get_by_role("tab", name="Edits").click()
    page.get_by_role("button", name=re.compile("Show ")).click()
    page.locator("#u-shown").wait_for()
    assert page.locator("#u-edit").inner_text().count(HOSTILE) >= 4
    page.get_by_label("Tag", exact=True).click()
    page.get_by_role("option").nth(1).wait_for()
    (edit,) = service.store.members()
    service.store.revoke(edit.id, author="t")
    preview(page, "1")
    for name, place in (("Log", "#u-log"), ("Canaries", "#u-canaries")):
        page.get_by_role("tab", name=name).click()
        page.locator(place).get_by_text(HOSTILE).first.wait_for()
    assert page.evaluate("window.hacked") is None and page.locator("img[src=x]").count() == 0


def test_bad_input_is_told_in_a_line(service: Service, opened: Open, tmp_path: Path) -> None:
    page = opened(service)
    page.get_by_role("button", name="Ask", exact=True).click()
    alert = page.locator("#u-ask-status [role=alert]")
    alert.get_by_text("the question is empty").wait_for()
    page.get_by_role("button", name="Correct it").click()
    (tmp_path / "x.png").write_text("no picture")
    page.locator("#u-picture input[type=file]").set_input_files(tmp_path / "x.png")
    page.wait_for_timeout(1000)
    page.get_by_label("Question", exact=True).fill("What is this?")
    page.get_by_role("button", name="Ask", exact=True).click()
    alert.get_by_text("not an image that can be read").wait_for()
    page.get_by_role("button", name="Correct it").click()
    alert.get_by_text("the right answer is empty").wait_for()
    assert "Traceback" not in page.content() and "\n" not in alert.inner_text()


def test_a_key_is_asked_for_and_opens_what_it_is_for(serving: Serve, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("u" * 20)
    (tmp_path / "admins").write_text("a" * 20)
    keys = read_keys(tmp_path / "keys", tmp_path / "admins", environment=False)
    service = serving(studio=True, keys=keys, any_host=True)
    page = opened(service)
    for key, says in (("x" * 20, "none of the server's keys"), ("u" * 20, "an admin's key"), ("a" * 20, "In force as")):
        page.get_by_label("Key of this server").fill(key)
        page.get_by_role("button", name="Sign in").click()
        if key[0] == "x":
            page.get_by_role("alert").get_by_text(says).wait_for()
            continue
        ask(page, "Who is it?")
        assert says in correct(page, "cat")
        page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Key of this server").wait_for()
    assert len(service.store.members()) == 1
    assert json.loads(page.request.get(f"{page.url.removesuffix('/login')}/config").text())["error"]
