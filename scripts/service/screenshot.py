"""docs/studio.png: the studio with `mini`, after a wrong answer was corrected.

    .venv/bin/python scripts/service/screenshot.py

Starts a server on a store of its own, and asks in Debian's Chromium what `unike demo` asks, about the same picture.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from unike.cli.demo import DEMO_CASE
from unike.data.datasets.pocket import Pocket
from unike.data.queries import EditCase

OUT = Path(__file__).parents[2] / "docs" / "studio.png"

CANARIES = ("t_locality", "m_locality")


def take(page: Page, address: str, case: EditCase) -> None:
    """Add canaries, ask, correct, and take the picture."""
    page.set_default_timeout(120_000)
    page.goto(address)
    probes = {probe.kind: probe.query for probe in reversed(case.probes)}
    page.get_by_role("tab", name="Canaries").click()
    for kind in CANARIES:
        query = probes[kind]
        if query.image is not None:
            page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(query.image)
            page.locator("[role=tabpanel]:visible .image-container img").wait_for()
        page.get_by_label("Question to watch").fill(query.prompt)
        page.get_by_role("button", name="Add it").click()
        page.locator("#u-canaries").get_by_text(query.prompt).wait_for()
    page.get_by_role("tab", name="Ask").click()
    assert case.edit.image is not None and case.edit.target is not None
    page.locator("#u-picture input[type=file]").set_input_files(case.edit.image)
    page.locator("#u-picture img").wait_for()
    page.get_by_label("Question", exact=True).fill(case.edit.prompt)
    page.get_by_label("Reason").first.fill("the picture's own caption says so")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("document.querySelector('#u-now textarea, #u-now input').value")
    page.get_by_label("Right answer").fill(case.edit.target)
    page.get_by_role("button", name="Correct it").click()
    page.locator("#u-ask-status .u-done").wait_for()
    page.wait_for_timeout(1000)
    page.mouse.move(0, 0)
    page.screenshot(path=str(OUT), full_page=True)


def main() -> None:
    case = next(case for case in Pocket().cases("dev") if case.case_id == DEMO_CASE)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        words = ["serve", "--studio", "--store", f"{folder}/store", "--port", "0"]
        with subprocess.Popen([sys.executable, "-m", "unike", *words], stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                found = re.search(r"http://\S+/studio", server.stdout.readline())
                assert found is not None, "the server did not start"
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                take(browser.new_page(viewport={"width": 1000, "height": 900}), f"{found[0]}/", case)
                browser.close()
            finally:
                server.terminate()
    Image.open(OUT).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
