"""The page itself, in a browser, on a run of fifty devices that goes on, and on ledgers of any kind."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.ledgers import Written

from fleetfold.round.run import RunState
from fleetfold.view import last, rows
from fleetfold.wiring.local import Place
from tests.dashboard.running import place_of, running, until
from tests.dashboard.site import serving
from tests.dashboard.test_watch import HOSTILE

pytestmark = pytest.mark.browser
pytest.importorskip("playwright.sync_api", reason="make test-browser installs what this needs")

from tests.dashboard.browser import PHONE, browser, tab  # noqa: E402


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


def test_each_panel_shows_what_the_ledger_says(home: Path, chromium: Any) -> None:
    written = Written(home, "r", devices=50, cohort=50, rounds=20, elsewhere=True).rounds(9, refused=2)
    written.open(50, now=time.time() - 5)
    written.arrive(20, refused=1, why="tensor 'w' is F32[7], in the model F32[1000]")
    with serving(home) as site, tab(chromium, site, "r") as page:
        page.shows("refused-said", "19 refused")
        shown = rows(written.ledger, written.objects, "r", time.time())
        figures = page.text("figures").replace("\n", " ")
        assert "10 of 20" in figures
        assert f"{last(shown, 'accuracy'):.3f}" in figures
        assert f"successful responses {sum(r.arrived for r in shown[:-1])} " in figures
        assert f"bytes up {sum(r.bytes_up for r in shown[:-1]) / 1e6:.2f} MB" in figures
        assert page.text("reason") == written.round.reason
        assert "19 of 50 updates" in page.text("quorum")
        assert "30 invited" in page.text("tally")
        assert page.page.locator("#lanes li.s-refused").count() == 1
        assert page.page.locator("#lanes li.s-arrived").count() == 9, (
            "40 lanes, those who are waited for first"
        )
        says = [device.says for device in written.ledger.fleet() if device.says]
        assert f"50 devices, {sum(s.online for s in says)} online" in page.text("fleet-said")
        slowest = max(written.ledger.fleet(), key=lambda device: device.turnaround or 0)
        assert page.text("slowest").split("\n")[1] == slowest.name
        page.shows("timeline-said", "round 9")
        arrivals = written.ledger.arrivals("runs/r/rounds/000009")
        assert page.page.locator("#gantt tbody tr").count() == len(arrivals) + 3
        page.page.click("#run-table")
        assert page.page.locator("#rounds tbody tr").count() == 10
        page.page.click("#fleet-table")
        assert page.page.locator("#devices tbody tr").count() == 50


def test_a_live_run_of_fifty_devices_is_on_the_page_within_two_seconds(home: Path, chromium: Any) -> None:
    place, waits = place_of(home), list[float]()
    with running(home, "--devices", "50", "--rounds", "500", "--evaluate", "same"), serving(home) as site:
        until(place, lambda run: run.round > 1)
        with tab(chromium, site) as page:
            page.shows("state", "running")
            for _ in range(7):
                number = until(place, lambda run: True).round
                until(place, lambda run, number=number: run.round > number)
                began = time.monotonic()
                page.until(f"() => parseInt(document.querySelector('#figures b').innerText) > {number}")
                waits.append(time.monotonic() - began)
            page.until("() => document.querySelectorAll('#lanes li.s-training').length > 0")
            assert page.page.locator("#tally .s-training, #tally .s-arrived").count() > 0
    assert statistics.median(waits) <= 2.0, waits


def test_a_run_is_paused_resumed_and_stopped_by_its_buttons_and_another_is_started(
    home: Path, chromium: Any
) -> None:
    place = place_of(home)
    with (
        running(home, "--devices", "8", "--rounds", "900", "--workers", "1") as process,
        serving(home) as site,
    ):
        until(place, lambda run: run.round > 1)
        with tab(chromium, site, place.run) as page:
            for what, state in (
                ("pause", RunState.PAUSED),
                ("resume", RunState.RUNNING),
                ("stop", RunState.STOPPED),
            ):
                page.page.click(f"#{what}")
                assert "odd-ones-1" in page.text("dialog-title")
                page.page.click("#dialog .answers button:last-child")
                until(place, lambda run, state=state: run.state is state)
                page.shows("state", state.value)
                if what == "pause":
                    assert process.wait(60) == 0
            page.page.click("#start")
            page.page.fill("#how-many", "2")
            page.page.click("#dialog .answers button:last-child")
            until(Place(home, "odd-ones-2"), lambda run: run.state is RunState.DONE)
            page.until(
                "() => [...document.querySelectorAll('#run option')].some((o) => o.value === 'odd-ones-2')"
            )
            page.page.select_option("#run", "odd-ones-2")
            page.shows("figures", "2 of 2")


def test_a_confirmation_that_is_not_given_does_nothing(home: Path, chromium: Any) -> None:
    place = place_of(home)
    with running(home, "--devices", "4", "--rounds", "900", "--workers", "1"), serving(home) as site:
        until(place, lambda run: run.round > 1)
        with tab(chromium, site, place.run) as page:
            page.page.click("#stop")
            page.page.keyboard.press("Escape")
            page.until("() => !document.getElementById('dialog').open")
            page.page.click("#stop")
            page.page.click("#dialog .answers button:first-child")
            assert until(place, lambda run: True).wish == ""


def test_a_wrong_token_changes_nothing_and_without_one_there_are_no_buttons(
    home: Path, chromium: Any
) -> None:
    place = place_of(home)
    with running(home, "--devices", "4", "--rounds", "900", "--workers", "1"), serving(home) as site:
        until(place, lambda run: run.round > 1)
        with tab(chromium, site, place.run, token="") as page:
            assert page.page.locator("#controls").is_hidden()
            page.page.click("#unlock")
            page.page.fill("#token", "wrong")
            page.page.click("#dialog .answers button")
            page.page.click("#stop")
            page.page.click("#dialog .answers button:last-child")
            page.shows("toast", "that is not the token")
            assert page.page.locator("#controls").is_hidden()
            page.complaints = [said for said in page.complaints if "401" not in said]
        found = until(place, lambda run: True)
        assert (found.wish, found.state) == ("", RunState.RUNNING)
    with serving(home, token="") as site, tab(chromium, site, place.run, token="x") as page:
        assert page.page.locator("#controls").is_hidden()
        assert page.page.locator("#unlock").is_hidden()


def test_the_token_leaves_the_address(home: Path, chromium: Any) -> None:
    Written(home, "r", devices=4)
    with serving(home) as site, tab(chromium, site, "r") as page:
        assert "#" not in page.page.url


@pytest.mark.parametrize(("dark", "phone"), [(False, False), (True, False), (False, True), (True, True)])
def test_axe_finds_no_serious_violation(dark: bool, phone: bool, home: Path, chromium: Any) -> None:
    written = Written(home, "r", devices=50, cohort=30, rounds=20, elsewhere=True).rounds(5)
    written.open(30, now=time.time() - 5)
    written.arrive(9, refused=2)
    told = {"size": PHONE} if phone else {}
    with serving(home) as site, tab(chromium, site, "r", dark=dark, **told) as page:
        page.shows("timeline-said", "round 5")
        assert page.violations() == []
        page.page.click("#fleet-table")
        page.page.click("#run-table")
        assert page.violations() == []
        page.page.click("#devices tbody button.name >> nth=0")
        page.shows("dialog-body", "brought")
        assert page.violations() == []
        page.page.keyboard.press("Escape")
        page.page.click("#refused tbody button.quiet >> nth=0")
        page.shows("dialog-body", "header")
        assert page.violations() == []
        page.page.keyboard.press("Escape")
        page.page.click("#stop" if page.page.locator("#stop").is_visible() else "#start")
        assert page.violations() == []


def test_the_page_is_no_wider_than_a_phone(home: Path, chromium: Any) -> None:
    written = Written(
        home, "r", names=["d" * 64, "x" * 10_000, *(f"d{k}" for k in range(20))], cohort=22, rounds=9
    )
    written.rounds(2, refused=3)
    with serving(home) as site, tab(chromium, site, "r", size=PHONE) as page:
        page.shows("timeline-said", "round 2")
        assert page.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_everything_is_reached_by_the_keyboard(home: Path, chromium: Any) -> None:
    Written(home, "r", devices=50, cohort=10, rounds=9).rounds(3).conclude()
    with serving(home) as site, tab(chromium, site, "r") as page:
        page.shows("timeline-said", "round 3")
        reached = set[str]()
        for _ in range(150):
            page.page.keyboard.press("Tab")
            reached.add(
                page.page.evaluate("() => document.activeElement.id || document.activeElement.className")
            )
        expected = {
            "skip",
            "run",
            "start",
            "theme",
            "log",
            "run-table",
            "lanes-order",
            "lanes",
            "shade",
            "tiles",
            "fleet-table",
        }
        assert expected <= reached
        page.page.focus("#tiles")
        page.page.keyboard.press("ArrowRight")
        page.page.keyboard.press("ArrowDown")
        said = page.text("tile-said")
        page.page.keyboard.press("Enter")
        page.shows("dialog-body", "turnaround")
        assert said.startswith(page.text("dialog-title"))
        page.page.keyboard.press("Escape")
        assert page.page.evaluate("() => document.activeElement.id") == "tiles"


def test_hostile_names_and_numbers_are_shown_as_text_and_break_nothing(home: Path, chromium: Any) -> None:
    names = [name.encode("utf-16", "surrogatepass").decode("utf-16") for name in HOSTILE]
    written = Written(home, "r", names=names, cohort=len(names), rounds=9, elsewhere=True)
    for loss in (float("nan"), float("inf"), -1e308, 1e-300, 1.0):
        written.open(len(names))
        written.arrive(
            len(names), refused=4, why="<img src=x onerror=alert(1)>\x1b[31m" + "y" * 9000, loss=loss
        )
        written.end()
    with serving(home) as site, tab(chromium, site, "r") as page:
        page.page.on("dialog", lambda dialog: page.complaints.append(f"alert: {dialog.message}"))
        page.shows("timeline-said", "round 5")
        page.page.click("#fleet-table")
        page.shows("devices", "<script>alert(1)</script>")
        for number in range(len(names)):
            page.page.click(f"#devices tbody button.name >> nth={number}")
            page.shows("dialog-body", "brought")
            page.page.keyboard.press("Escape")
        page.page.click("#refused tbody button.quiet >> nth=0")
        page.shows("dialog-body", "<img src=x onerror=alert(1)>")
        assert page.page.locator("main img, dialog img, main script").count() == 0
        assert page.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_the_page_says_so_when_nobody_answers_and_goes_on_when_somebody_does(
    home: Path, chromium: Any
) -> None:
    Written(home, "r", devices=10, cohort=10, rounds=9).rounds(2)
    with serving(home) as site, tab(chromium, site, "r") as page:
        page.page.route("**/api/poll*", lambda route: route.abort())
        page.shows("trouble", "does not answer")
        page.page.unroute("**/api/poll*")
        page.until("() => !document.getElementById('trouble').innerText.includes('does not answer')")
        page.complaints = [said for said in page.complaints if "ERR_FAILED" not in said]


def test_the_largest_fleet_takes_less_than_200_MB_of_the_tab(home: Path, chromium: Any) -> None:
    written = Written(home, "r", devices=10_000, cohort=100, rounds=500, elsewhere=True).rounds(499)
    written.open(10_000, now=time.time() - 5)
    written.arrive(4000)
    with serving(home) as site, tab(chromium, site, "r") as page:
        page.until("() => document.getElementById('fleet-said').innerText.includes('10,000 devices')", 60)
        page.shows("live", "live", 60)
        session = page.page.context.new_cdp_session(page.page)
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")
        assert heap["usedSize"] + heap.get("backingStorageSize", 0) <= 200e6, heap
        for shade in ("turnaround", "battery", "chosen"):
            page.page.select_option("#shade", shade)
        page.page.click("#fleet-table")
        page.page.fill("#devices input", "device-0777")
        page.until("() => document.querySelectorAll('#devices tbody tr').length === 10")
