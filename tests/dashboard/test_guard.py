"""Who is let in: nobody by another name or from another page; without the token nobody changes anything."""

from pathlib import Path

import pytest
from bench.ledgers import Written

from fleetfold.dashboard.guard import is_loopback
from fleetfold.round.run import RunState
from tests.dashboard.site import TOKEN, serving


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/api/poll", "/nowhere", "/api/do"])
def test_every_answer_is_neither_stored_nor_framed_nor_runs_what_is_not_ours(home: Path, path: str) -> None:
    with serving(home) as site:
        headers = site.ask(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_the_page_itself_has_no_script_and_no_style_within_it(home: Path) -> None:
    with serving(home) as site:
        page = site.ask("/").body.decode()
    assert "<style" not in page
    assert "style=" not in page
    assert " on" not in "".join(part.split(">")[0] for part in page.split("<")[1:])
    assert "//" not in page.replace("<!doctype html>", ""), "nothing is fetched from elsewhere"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[evil", "192.168.1.9"]
)
def test_a_name_that_is_not_ours_is_refused_though_it_leads_here(home: Path, host: str) -> None:
    with serving(home) as site:
        answer = site.ask("/api/poll", host=host or " ")
    assert answer.status in (400, 421)
    assert b"cursor" not in answer.body


def test_localhost_and_the_names_that_were_given_are_ours(home: Path) -> None:
    with serving(home, names=("board.example",)) as site:
        for host in ("localhost", f"127.0.0.1:{site.port}", "board.example", "BOARD.example:80", "[::1]:1"):
            assert site.ask("/", host=host).status == 200, host


def test_from_elsewhere_reading_needs_the_token_too_but_for_the_page_that_asks_for_it(home: Path) -> None:
    with serving(home, here=False) as site:
        assert site.ask("/", host="192.168.1.9:8340").status == 200
        assert site.ask("/api/poll", host="192.168.1.9:8340").status == 401
        assert site.ask("/api/poll", x_fleetfold_token="wrong").status == 401
        assert site.ask("/api/poll", x_fleetfold_token=TOKEN).status == 200
        assert site.ask("/metrics", host="192.168.1.9:8340").status == 401
        assert site.ask("/metrics", authorization=f"Bearer {TOKEN}").status == 200, "as Prometheus says it"
        assert site.ask("/metrics", authorization=f"Basic {TOKEN}").status == 401
        assert site.ask("/api/poll", host="evil.example", x_fleetfold_token=TOKEN).status == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"token": ""}, 401),
        ({"token": "wrong"}, 401),
        ({"token": TOKEN[:-1]}, 401),
        ({"token": "ü"}, 401),
        ({"origin": ""}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
    ],
)
def test_without_the_token_or_from_another_page_nothing_is_changed(
    home: Path, headers: dict[str, str], status: int
) -> None:
    written = Written(home, "r", devices=4, cohort=4, rounds=9)
    written.rounds(1)
    with serving(home) as site:
        answer = site.do("r", "stop", headers.pop("token", TOKEN), **headers)
    assert answer.status == status
    found = written.ledger.run("r")
    assert found is not None
    assert (found[0].wish, found[0].state) == ("", RunState.RUNNING)


def test_a_dashboard_without_a_token_changes_nothing_whatever_it_is_sent(home: Path) -> None:
    Written(home, "r", devices=4)
    with serving(home, token="") as site:
        for token in ("", "x", TOKEN):
            answer = site.do("r", "stop", token)
            assert (answer.status, "--control" in answer.json["error"]) == (403, True)
        assert site.poll("r")["control"] is False


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_nothing_else_is_done_here(home: Path, method: str) -> None:
    with serving(home) as site:
        assert site.ask("/api/do", method, x_fleetfold_token=TOKEN, origin=site.url).status == 405
        assert site.ask("/api/do").status == 404 or site.ask("/api/do").status == 405
        assert site.ask("/", "POST", b"{}", x_fleetfold_token=TOKEN, origin=site.url).status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/page/../guard.py",
        "/page/%2e%2e/guard.py",
        "/page/..%2fguard.py",
        "/guard.py",
        "/page/",
        "/page/uplot.map",
    ],
)
def test_only_the_pages_own_files_are_given_out(home: Path, path: str) -> None:
    with serving(home) as site:
        answer = site.ask(path)
    assert answer.status == 404
    assert b"import" not in answer.body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[" * 1500, 400),
        (b"{" + b" " * 5000, 413),
        (b'{"run": "r"}', 400),
        (b'{"run": "r", "what": "stop", "rm": 1}', 400),
        (b'{"run": "../..", "what": "stop"}', 409),
        (b'{"run": "r", "what": "burn"}', 409),
        (b'{"run": "r", "what": "start", "rounds": -1}', 400),
    ],
)
def test_an_order_that_is_none_is_refused_in_words(home: Path, body: bytes, status: int) -> None:
    Written(home, "r", devices=4)
    with serving(home) as site:
        answer = site.ask("/api/do", "POST", body, x_fleetfold_token=TOKEN, origin=site.url)
    assert (answer.status, bool(answer.json["error"])) == (status, True)


@pytest.mark.parametrize("query", ["run=../../etc", "run=%00", "run=nobody", "run=" + "x" * 5000])
def test_a_run_that_is_not_there_is_an_answer_and_no_fault(home: Path, query: str) -> None:
    Written(home, "r", devices=4)
    with serving(home) as site:
        for path in ("poll", "round", "device", "refused"):
            assert site.ask(f"/api/{path}?{query}").status == 409
        for asked in (
            "round?run=r&round=x",
            "round?run=r&round=99999999999999999999",
            "round?run=r&kind=x&round=1",
            "device?run=r&id=-1",
            "refused?run=r&id=9",
        ):
            assert site.ask(f"/api/{asked}").status == 409, asked


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.9", "localhost.example", "")))
