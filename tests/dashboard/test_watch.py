"""What the page is told is what the ledger says, as it changes, whatever devices call themselves."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from bench.ledgers import Written

from fleetfold import layout
from fleetfold.dashboard.words import KINDS, LANES
from fleetfold.ledger import place
from fleetfold.round.run import RunState
from fleetfold.view import rows
from tests.dashboard.site import Site, serving

ROUND = ("round", "kind", "phase", "cohort", "arrived", "refused", "late", "credited", "loss", "accuracy")


def told_lanes(told: dict[str, Any]) -> list[str]:
    return [LANES[lane[2]] for lane in sorted(told["lanes"])]


def until(site: Site, run: str, is_so: Any) -> dict[str, Any]:
    """Polls as the page does until it is so."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        told = site.all(run)
        site.cursor = ""
        if is_so(told):
            return told
        time.sleep(0.05)
    pytest.fail(f"it does not come to that: {told['run']} {told.get('now')}")


def test_the_rounds_that_are_told_are_the_rows_of_the_ledger(home: Path) -> None:
    written = Written(home, "r", devices=30, cohort=10, rounds=20).rounds(8).conclude()
    with serving(home) as site:
        told = site.all()
    expected = rows(written.ledger, written.objects, "r", 0.0)
    assert len(told["rounds"]) == 8
    for row, real in zip(sorted(told["rounds"]), expected, strict=True):
        found = dict(zip(ROUND, row, strict=False))
        for name in ("round", "phase", "cohort", "arrived", "refused", "late", "credited"):
            assert found[name] == getattr(real, name), name
        assert found["loss"] == pytest.approx(real.loss, rel=1e-4)
        assert found["accuracy"] == pytest.approx(real.accuracy, rel=1e-4)
        assert KINDS[found["kind"]] == real.kind
    assert (told["run"]["state"], told["run"]["round"], len(told["devices"])) == ("done", 8, 30)
    assert [row[3] for row in sorted(told["refused"], key=lambda row: row[3])] == list(range(1, 9))


def test_a_round_that_goes_on_is_told_as_it_goes_on(home: Path) -> None:
    written = Written(home, "r", devices=12, rounds=20).rounds(1)
    with serving(home) as site:
        assert until(site, "r", lambda told: told["rounds"])["now"]["round"] == 1
        written.open(6)
        told = until(site, "r", lambda told: told["now"]["round"] == 2 and told["lanes"])
        assert (told["now"]["phase"], told_lanes(told)) == ("open", ["invited"] * 6)
        written.arrive(3, refused=1, why="tensor 'w' is missing")
        told = until(site, "r", lambda told: told["now"]["arrived"] == 2)
        assert told_lanes(told) == ["refused", "arrived", "arrived", "invited", "invited", "invited"]
        assert "tensor 'w' is missing" in [lane[9] for lane in told["lanes"]]
        written.end(late=1)
        told = until(site, "r", lambda told: told["now"]["phase"] == "done" and "late" in told_lanes(told))
        assert told_lanes(told) == ["refused", "arrived", "arrived", "late", "silent", "silent"]
        written.conclude(RunState.FAILED, "too many failed rounds")
        told = until(site, "r", lambda told: told["run"]["state"] == "failed")
        assert told["run"]["reason"] == "too many failed rounds"


def test_rounds_that_came_and_went_between_two_looks_are_told_too(home: Path) -> None:
    written = Written(home, "r", devices=12, cohort=4, rounds=50).rounds(1)
    with serving(home) as site:
        until(site, "r", lambda told: told["rounds"])
        written.open(4)
        until(site, "r", lambda told: told["now"]["round"] == 2)
        written.arrive(4)
        written.end()
        written.rounds(6)
        told = until(site, "r", lambda told: len(told["rounds"]) == 8)
    assert {row[2] for row in told["rounds"]} == {"done"}


HOSTILE = [
    "<script>alert(1)</script>", "a\x00b\x1b[31m\r\n", "x" * 10_000, "\u202etxt.exe", "\ud83d\ude00" * 300,
    "'\"><img src=x onerror=alert(1)>", "{{7*7}}", "../../../etc/passwd", "\u2028\u2029", " ", "ü" * 5000,
    "%00%0a", "-->", "=1+1", "",
]  # fmt: skip


def test_whatever_devices_call_themselves_is_told_as_bounded_printable_text(home: Path) -> None:
    names = [name.encode("utf-16", "surrogatepass").decode("utf-16") for name in HOSTILE]
    written = Written(home, "r", names=names, cohort=len(names), rounds=9)
    written.open(len(names))
    written.arrive(len(names), refused=4, why="\x1b]0;<b>owned</b>\x07" + "y" * 9000, loss=float("nan"))
    written.end()
    with serving(home) as site:
        told = site.all("r")
        for device in told["devices"]:
            assert device[1].isprintable(), device
            assert len(device[1]) <= 80
            assert site.ask(f"/api/device?run=r&id={device[0]}").status == 200
        for row in told["refused"]:
            assert row[6].isprintable() or not row[6]
            assert len(row[6]) <= 300
            assert site.ask(f"/api/refused?run=r&id={row[0]}").status == 200
        assert len(told["devices"]) == len(names)
        timeline = site.ask("/api/round?run=r&round=1").json
        assert all(lane[1].isprintable() for lane in timeline["lanes"])


def test_what_is_no_number_is_null_and_what_is_too_large_for_an_axis_too(home: Path) -> None:
    written = Written(home, "r", devices=4, cohort=4, rounds=9)
    for loss in (float("nan"), float("inf"), -1e308, 1e-300):
        written.open(4)
        written.arrive(4, loss=loss)
        written.end()
    with serving(home) as site:
        answer = site.ask("/api/poll?run=r")
        told = site.all("r")
    json.loads(answer.body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    spreads = [row[13] for row in sorted(told["rounds"])]
    assert spreads[:2] == [None, None]
    assert spreads[2] == [None] * 5
    assert spreads[3] == [1e-300] * 5


def test_no_page_is_longer_than_60_kB_however_large_the_fleet_is(home: Path) -> None:
    written = Written(home, "r", devices=3000, cohort=40, rounds=99, elsewhere=True).rounds(60)
    written.open(3000)
    written.arrive(1500)
    with serving(home) as site:
        longest, more = 0, True
        while more:
            answer = site.ask(f"/api/poll?run=r&cursor={site.cursor}")
            site.cursor, more = answer.json["cursor"], answer.json["more"] or answer.json["run"]["todo"] > 1
            longest = max(longest, len(answer.body))
        assert 40_000 < longest <= 60_000
        written.arrive(10)
        seen = 0
        while not seen:
            answer = site.ask(f"/api/poll?run=r&cursor={site.cursor}")
            site.cursor, seen = answer.json["cursor"], len(answer.json.get("lanes", []))
        assert len(answer.body) < 4000, "only what has changed is told"


def test_a_refused_update_is_shown_with_what_its_file_says_of_itself(home: Path) -> None:
    written = Written(home, "r", devices=4, cohort=4, rounds=9)
    round = written.open(4)
    written.arrive(4, refused=1, why="tensor 'w' is F32[7], in the model F32[1000]")
    written.end()
    header = json.dumps(
        {"__metadata__": {"evil": "<script>\x1b[2J"}, "w": {"dtype": "F32", "shape": [7]}}
    ).encode()
    update = layout.update(place(round), written.chosen[0])
    written.objects.put(update, [len(header).to_bytes(8, "little"), header, b"\x00" * 28])
    with serving(home) as site:
        site.all("r")
        told = site.ask("/api/refused?run=r&id=0").json
    assert told["why"] == "tensor 'w' is F32[7], in the model F32[1000]"
    assert '"shape": [' in told["header"]
    assert "\x1b" not in told["header"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 4,
        b"\xff" * 100,
        (1 << 40).to_bytes(8, "little") + b"{}",
        b"\x10" + bytes(7) + b"not JSON at all!",
        (60_000).to_bytes(8, "little") + b"[" * 60_000,
        (4).to_bytes(8, "little") + b'"\xff\xfe"',
    ],
)
def test_a_refused_file_that_is_anything_at_all_is_shown_within_bounds(home: Path, data: bytes) -> None:
    written = Written(home, "r", devices=4, cohort=4, rounds=9)
    round = written.open(4)
    written.arrive(4, refused=1)
    written.end()
    written.objects.put(layout.update(place(round), written.chosen[0]), [data])
    with serving(home) as site:
        site.all("r")
        answer = site.ask("/api/refused?run=r&id=0")
    assert answer.status == 200
    assert len(answer.body) < 100_000


def test_the_timeline_and_the_history_are_of_the_arrivals_in_the_ledger(home: Path) -> None:
    written = Written(home, "r", devices=10, cohort=10, rounds=20).rounds(3)
    with serving(home) as site:
        told = site.all("r")
        timeline = site.ask("/api/round?run=r&round=2&kind=train").json
        arrivals = written.ledger.arrivals(layout.round("r", 2, "train"))
        assert {lane[1]: lane[2] for lane in timeline["lanes"]} == {
            a.device: a.state for a in arrivals.values()
        }
        for lane in timeline["lanes"]:
            ends = [step[2] for step in lane[3]]
            assert ends == sorted(ends)
        id, name, *_ = told["devices"][0]
        history = site.ask(f"/api/device?run=r&id={id}").json
    assert history["name"] == name
    assert [entry[0] for entry in history["rounds"]] == [3, 2, 1]
    assert {entry[2] for entry in history["rounds"]} <= {"admitted", "refused", "late"}


def test_a_page_that_was_open_before_the_dashboard_began_anew_is_told_everything_again(home: Path) -> None:
    Written(home, "r", devices=10, cohort=10, rounds=20).rounds(2)
    with serving(home) as site:
        site.all("r")
        cursor = site.cursor
    with serving(home) as site:
        site.cursor = cursor
        assert len(site.all("r")["rounds"]) == 2


def test_before_there_is_any_run_the_page_says_so(home: Path) -> None:
    with serving(home) as site:
        assert site.poll()["runs"] == []
        Written(home, "r", devices=4)
        while not site.poll()["runs"]:
            pass
        assert site.poll()["run"]["name"] == "r"
