"""The pictures of the dashboard in docs/img: `make screenshots`. A run of fifty devices, of which one is slow
and one wrong; then a fleet of ten thousand.

python docs/_tools/screenshots.py [FOLDER]
"""

import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from bench.ledgers import Written  # noqa: E402
from tests.dashboard.browser import PHONE, Tab, browser, tab  # noqa: E402
from tests.dashboard.running import place_of, running, until  # noqa: E402
from tests.dashboard.site import serving  # noqa: E402


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, browser() as chromium:
        home = Path(temporary)
        os.environ["FLEETFOLD_HOME"] = temporary
        flags = ["--rounds", "60"]
        with running(home, *flags) as _, serving(home) as site:
            until(place_of(home), lambda run: run.round > 14)
            for name, dark in (("light", False), ("dark", True)):
                with tab(chromium, site, dark=dark) as page:
                    page.until("() => document.querySelectorAll('#lanes li.s-arrived').length > 12")
                    taken(page, folder / f"dashboard-{name}.png")
            with tab(chromium, site, size=PHONE, sharp=2) as page:
                page.until("() => document.querySelectorAll('#lanes li.s-arrived').length > 3")
                taken(page, folder / "dashboard-phone.png", {"x": 0, "y": 0, "width": 390, "height": 1900})
            with tab(chromium, site) as page:
                page.shows("refused-said", "refused")
                page.page.click("#slowest button.name >> nth=0")
                page.shows("dialog-body", "brought")
                page.page.locator("#dialog").screenshot(path=folder / "dashboard-device.png")
                page.page.keyboard.press("Escape")
                page.page.click("#stop")
                page.page.locator("#dialog").screenshot(path=folder / "dashboard-stop.png")
        written = Written(home, "site-north", devices=10_000, cohort=200, rounds=500, elsewhere=True)
        written.rounds(299, refused=2)
        written.open(10_000, now=time.time() - 42)
        written.arrive(4100, refused=12)
        with serving(home) as site, tab(chromium, site, "site-north") as page:
            page.shows("live", "live", 60)
            page.page.select_option("#shade", "turnaround")
            page.page.locator(".fleet-card").screenshot(path=folder / "dashboard-fleet.png")


def taken(page: Tab, path: Path, clip: dict[str, int] | None = None) -> None:
    page.page.screenshot(path=path, full_page=True, **({"clip": clip} if clip else {}))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/img")
