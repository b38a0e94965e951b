"""Reports and comparisons: files that stand alone, say what the ledger says, and obey nobody's text."""

import base64
import hashlib
import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleetfold.ledger import Arrival
from fleetfold.messages import Timings
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.tell.compare import cells, compare, compared, different
from fleetfold.tell.curves import Curve, chart, short, ticks
from fleetfold.tell.facts import Facts, Member, Refusal, gathered
from fleetfold.tell.html import e
from fleetfold.tell.report import report
from fleetfold.tell.timeline import lanes
from fleetfold.view import rows
from tests.tell.hostile import SCRIPT, TEXTS, row
from tests.tell.test_traces import ROUND
from tests.world import World

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
RUN = Run(name="r-1", app="app.py", settings=Settings(rounds=3), started_at=1_000.0, state=RunState.DONE)


class Read(HTMLParser):
    """What a browser would make of a page: its elements, and the words in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_data(self, data: str) -> None:
        self.words += data


def stands_alone(page: str) -> Read:
    """Nothing in it asks for anything, runs, or is obeyed; and its style sheet is the one it allows."""
    read = Read(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"} & set(read.tags)
    names = {name for name, _ in read.attributes}
    assert not {"src", "href", "style", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page
    sheet = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page
    assert all(c.isprintable() or c == "\n" for c in page)
    return read


@pytest.fixture(scope="module")
def lived() -> World:
    world = World(devices=3, silent=1, rounds=3, quorum=1, deadline=60.0, evaluate="cohort",
                  tamper=lambda device, update: b"\x00" * 9 if device == "d1" else update)  # fmt: skip
    world.live()
    return world


def facts_of(world: World) -> Facts:
    told = rows(world.ledger, world.objects, "r", world.now)
    return gathered(world.ledger, world.objects, world.run(), told)


def test_a_report_says_what_the_ledger_says_and_asks_for_nothing(lived: World) -> None:
    facts = facts_of(lived)
    read = stands_alone(report(facts, NOW))
    by_name = {member.name: member for member in facts.members}
    assert {name: (m.invited, m.used, m.refused, m.silent) for name, m in by_name.items()} == {
        "d0": (3, 3, 0, 0), "d2": (3, 3, 0, 0), "d1": (3, 0, 3, 0), "d3": (3, 0, 0, 3),
    }  # fmt: skip
    assert len(facts.refusals) == 6, "of three rounds and their evaluations"
    for words in ("3 rounds done", "2 of 4 devices", facts.refusals[0].reason, "The slowest round", "sha256"):
        assert words in read.words
    assert facts.slowest is not None
    assert read.tags.count("svg") > 5
    assert "trimmed_mean" not in read.words


def test_a_run_without_a_round_has_a_report_too() -> None:
    world = World(devices=2)
    read = stands_alone(report(facts_of(world), NOW))
    assert "No round has ended" in read.words


def hostile(text: str) -> Facts:
    arrivals = {
        text: Arrival(device=text, seat=0, state="refused", reason=text, at=1_010.0,
                      took=Timings(download=1.0, compute=1e9, upload=0.0)),
    }  # fmt: skip
    metrics = {"devices": {text: float("nan"), "loss": float("inf")}, text: {text: 1.0}}
    run = replace(RUN, name=text, app=text, reason=text)
    return Facts(
        run=run, rows=[row(1, reason=text, metrics=metrics, loss=float("nan")), row(2)],
        members=[Member(text, invited=1, seconds=float("nan"))], refusals=[Refusal(1, text, text)],
        slowest=replace(ROUND, reason=text), lanes=lanes(ROUND, [text, "silent"], arrivals), agents=[text],
    )  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_whatever_a_device_says_stands_in_the_page_as_text(text: str) -> None:
    page = report(hostile(text), NOW)
    read = stands_alone(page)
    assert len(page) < 200_000
    if text == SCRIPT:
        assert SCRIPT in read.words
    other = compare([compared(hostile(text).run, hostile(text).rows), compared(RUN, [row(1)])], NOW)
    stands_alone(other)


def test_of_ten_thousand_devices_and_five_hundred_rounds_the_page_shows_some_and_says_how_many_more() -> None:
    members = [Member(f"device-{n}", invited=5, used=5) for n in range(10_000)]
    refusals = [Refusal(n, f"device-{n}", f"reason {n}") for n in range(2_000)]
    arrivals = {m.name: Arrival(device=m.name, seat=0, state="admitted", at=1_011.0) for m in members}
    facts = Facts(
        run=RUN, rows=[row(n) for n in range(1, 501)], members=members, refusals=refusals, slowest=ROUND,
        lanes=lanes(ROUND, [m.name for m in members], arrivals),
    )  # fmt: skip
    page = report(facts, NOW)
    assert len(page) < 500_000
    words = stands_alone(page).words
    assert "… and 9,900 more." in words
    assert "The 40 slowest of 10000 devices are shown" in words


def test_runs_side_by_side_show_the_best_of_each_and_where_their_settings_differ() -> None:
    one = compared(RUN, [row(1), row(2)])
    two = compared(
        replace(RUN, name="r-2", settings=Settings(rounds=3, fold="median")),
        [row(1, accuracy=0.75, seconds=9.0), row(2, phase="open", accuracy=0.9)],
    )
    by_name = {column.name: told for column, told in cells([one, two])}
    assert [(cell.text, cell.best) for cell in by_name["accuracy"]] == [("0.5", False), ("0.75", True)]
    assert [cell.best for cell in by_name["run time"]] == [True, False]
    assert not any(cell.best for cell in by_name["failed"][:0])
    assert different([one, two]) == [("fold", ["mean", "median"])]
    words = stands_alone(compare([one, two], NOW)).words
    assert "median" in words
    assert "r-2" in words


# Drawings


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 0.5)], [(1.0, 0.5), (2.0, 0.5)], [(1.0, float("nan")), (2.0, 3.0)],
        [(1.0, 1e299), (2.0, -1e299)], [(1.0, 0.0), (2.0, 5e-324)],
        [(1.0, None), (2.0, 1.0), (3.0, None), (4.0, 2.0)],
    ],
)  # fmt: skip
def test_every_curve_can_be_drawn_within_its_frame(points: list[tuple[float, float | None]]) -> None:
    drawn = chart("loss", [Curve("a", points)])
    assert drawn is not None
    assert "nan" not in drawn
    for x, y in re.findall(r'cx="([-\d.e+]+)" cy="([-\d.e+]+)"', drawn):
        assert 0 <= float(x) <= 460
        assert 0 <= float(y) <= 220
    assert chart("loss", [Curve("a", [(1.0, None), (2.0, float("inf"))])]) is None


def test_a_curve_of_five_hundred_rounds_is_drawn_to_its_end() -> None:
    drawn = chart("loss", [Curve("a", [(float(n), 1.0 / n) for n in range(1, 501)])])
    [path] = re.findall(r'points="([^"]+)"', drawn or "")
    assert len(path.split()) == 500


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 1e-9), (-3.0, 7.0), (1e6, 1e6 + 3), (0.0, 97.0)])
def test_ticks_are_round_numbers_that_cover_their_range(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high * (1 - 1e-9)
    assert 2 <= len(found) <= 8


def test_numbers_are_short_on_an_axis() -> None:
    assert [short(x) for x in (0.25, 12.5, 9_999.0, 32_000.0, 1.5e6, -2e9)] == [
        "0.25", "12.5", "9999", "32k", "1.5M", "-2G",
    ]  # fmt: skip


def test_only_what_is_made_here_is_markup() -> None:
    assert e("p", "<b>", e("b", "&"), title='"><script>') == (
        '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;<b>&amp;</b></p>'
    )


@pytest.mark.tools
def test_a_browser_shows_and_prints_a_page_and_its_policy_is_never_broken(tmp_path: Path) -> None:
    from fleetfold.cli.files import printed

    browser = shutil.which("chromium")
    assert browser, "apt-get install chromium"
    path = tmp_path / "page.html"
    path.write_text(report(hostile(SCRIPT), NOW))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile", path.as_uri()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "&lt;script&gt;alert(1)" in done.stdout
    assert "Content Security Policy" not in done.stderr
    printed(path, tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
