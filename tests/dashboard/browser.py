"""Debian's Chromium without a screen, and what a person at it can do. `make test-browser` installs both."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.site import TOKEN, Site

playwright = pytest.importorskip("playwright.sync_api", reason="make test-browser installs what this needs")
AXE = Path(__file__).parents[2] / ".browser/node_modules/axe-core/axe.min.js"
SERIOUS = ("serious", "critical")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1440, "height": 1000}


class Tab:
    """A page, and what it has complained of."""

    def __init__(self, page: Any) -> None:
        self.page, self.complaints = page, list[str]()
        page.on("console", lambda said: self._hear(said.type, said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def text(self, id: str) -> str:
        return str(self.page.inner_text(f"#{id}"))

    def until(self, script: str, seconds: float = 30.0, arg: object = None) -> None:
        """Waits for that expression to be true."""
        self.page.wait_for_function(script, arg=arg, timeout=1000 * seconds, polling=50)

    def shows(self, id: str, text: str, seconds: float = 30.0) -> None:
        """Waits for the element to say that among other things."""
        self.until(
            "([id, text]) => document.getElementById(id).innerText.includes(text)", seconds, [id, text]
        )

    def violations(self) -> list[str]:
        """What axe-core finds serious in the page as it is; it comes past the page's policy."""
        self.page.evaluate(f"() => {{ {AXE.read_text()} }}")
        found = self.page.evaluate(
            "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"
        )
        return [
            f"{each['id']}: {each['help']}: {json.dumps([node['html'][:160] for node in each['nodes'][:3]])}"
            for each in found
            if each["impact"] in SERIOUS
        ]


@contextmanager
def browser() -> Iterator[Any]:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("make test-browser installs chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def tab(
    chromium: Any, site: Site, run: str = "latest", *, token: str = TOKEN, dark: bool = False,
    size: dict[str, int] = DESK, sharp: int = 1,
) -> Iterator[Tab]:  # fmt: skip
    """The page on that run, once it shows it; it may have complained of nothing when it is left."""
    context = chromium.new_context(
        color_scheme="dark" if dark else "light",
        viewport=size,
        device_scale_factor=sharp,
        reduced_motion="reduce",
    )
    found = Tab(context.new_page())
    found.page.goto(f"{site.url}/?run={run}" + (f"#token={token}" if token else ""))
    found.until("() => !document.getElementById('all').hidden || !document.getElementById('empty').hidden")
    yield found
    context.close()
    assert found.complaints == []
