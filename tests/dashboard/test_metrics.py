"""What Prometheus is told by the dashboard: of every run, by the names that the numbers have everywhere."""

from pathlib import Path

from bench.ledgers import Written

from fleetfold.tell.numbers import SIX
from tests.dashboard.site import serving


def test_every_run_is_told_of_and_what_ends_later_is_told_later(home: Path) -> None:
    first = Written(home, "first", devices=4, cohort=4, rounds=9)
    first.rounds(3)
    Written(home, "second", devices=4, cohort=4, rounds=9).rounds(1)
    with serving(home) as site:
        before = site.ask("/metrics")
        first.rounds(2)
        after = site.ask("/metrics")
    assert before.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = before.body.decode().splitlines()
    assert 'fleetfold_rounds_total{run="first",phase="done"} 3' in lines
    assert 'fleetfold_rounds_total{run="second",phase="done"} 1' in lines
    assert 'fleetfold_rounds_total{run="first",phase="done"} 5' in after.body.decode().splitlines()
    for number in SIX:
        assert f'fleetfold_{number.name}{{run="first"}}' in before.body.decode()


def test_without_a_run_there_is_nothing_to_tell(home: Path) -> None:
    with serving(home) as site:
        assert (site.ask("/metrics").status, site.ask("/metrics").body) == (200, b"")
