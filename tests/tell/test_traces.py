"""A round's steps in time, and as traces that a collector takes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fleetfold.errors import Unavailable
from fleetfold.ledger import Arrival, place
from fleetfold.messages import Timings
from fleetfold.round.state import Phase, Policy, Round
from fleetfold.tell import traces
from fleetfold.tell.teller import Teller
from fleetfold.tell.timeline import lane, lanes
from tests.tell.hostile import TEXTS
from tests.world import World

ROUND = Round(
    run="r", number=1, base=0, cohort="c", invited=3, policy=Policy(target=2, quorum=1, deadline=60.0),
    opened_at=1_000.0, asked_at=1_000.0, closed_at=1_012.0, ended_at=1_013.0, phase=Phase.DONE,
)  # fmt: skip


def arrival(device: str = "d0", at: float = 1_010.0, **changed: Any) -> Arrival:
    took = changed.pop("took", Timings(download=1.0, compute=4.0, upload=2.0))
    return Arrival(device=device, seat=0, state=changed.pop("state", "admitted"), at=at, took=took, **changed)


def test_steps_end_with_the_arrival_and_what_was_before_them_is_waiting() -> None:
    steps = lane(ROUND, "d0", arrival()).steps
    assert [(s.name, s.begin, s.end) for s in steps] == [
        ("wait", 1_000.0, 1_003.0), ("download", 1_003.0, 1_004.0), ("compute", 1_004.0, 1_008.0),
        ("upload", 1_008.0, 1_010.0),
    ]  # fmt: skip


@pytest.mark.parametrize("boast", [1e9, 11.0, 0.0])
def test_no_step_begins_before_the_invitation_whatever_a_device_claims(boast: float) -> None:
    steps = lane(ROUND, "d0", arrival(took=Timings(download=boast, compute=boast, upload=boast))).steps
    assert steps[0].begin >= ROUND.asked_at
    assert steps[-1].end == pytest.approx(1_010.0)
    assert all(step.begin <= step.end for step in steps)


def test_who_was_not_heard_of_comes_first_and_then_the_slowest() -> None:
    arrivals = {"a": arrival("a", 1_001.0), "b": arrival("b", 1_009.0)}
    assert [each.device for each in lanes(ROUND, ["a", "b", "c"], arrivals)] == ["c", "b", "a"]


def test_a_trace_has_each_step_of_each_device_below_its_round() -> None:
    found = traces.spans(ROUND, {"d0": arrival(), "d1": arrival("d1", state="refused", reason="NaN in w")})
    by_id = {span.id: span for span in found}
    assert len(by_id) == len(found)
    names = ["round 1", "invite", "fold", "device", "wait", "download", "train", "upload"]
    assert {span.name for span in found} == set(names)
    for span in found:
        if span.parent:
            parent = by_id[span.parent]
            assert parent.begin <= span.begin <= span.end <= parent.end
    assert by_id["device d1"].error == "NaN in w"
    assert not by_id["device d0"].error


def test_of_ten_thousand_devices_the_slowest_have_spans() -> None:
    arrivals = {f"d{n}": arrival(f"d{n}", 1_001.0 + n / 1000) for n in range(10_000)}
    found = traces.spans(ROUND, arrivals)
    assert len([span for span in found if span.name == "device"]) == traces.MOST
    assert found[0].facts["fleetfold.devices_left_out"] == 10_000 - traces.MOST
    assert "d9999" in {span.facts.get("fleetfold.device") for span in found}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_no_text_of_a_device_is_longer_or_stranger_in_a_trace_than_a_line(text: str) -> None:
    found = traces.spans(ROUND, {text: arrival(text, reason=text, state="refused")})
    said = [str(value) for span in found for value in (*span.facts.values(), span.error)]
    assert all(len(value) <= 500 and value.isprintable() for value in said)


@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[bytes]]]:
    """A receiver of OTLP over HTTP on this machine: (its address, what it was sent)."""
    bodies: list[bytes] = []

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Takes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def received(bodies: list[bytes]) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    requests = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    scopes = [scope for r in requests for resource in r.resource_spans for scope in resource.scope_spans]
    return [span for scope in scopes for span in scope.spans]


def test_a_collector_gets_every_round_of_a_run_and_the_same_trace_when_it_is_sent_again() -> None:
    pytest.importorskip("opentelemetry.sdk")
    world = World(devices=3, rounds=2)
    world.live()
    with collector() as (address, bodies):
        exporter = traces.exporter(address)
        rounds, count = traces.send_all(exporter, world.ledger, "r")
        first = received(bodies)
        traces.send_all(exporter, world.ledger, "r")
        both = received(bodies)
    assert (rounds, count) == (2, len(first))
    assert len({span.trace_id for span in first}) == 2
    assert {span.span_id for span in both} == {span.span_id for span in first}
    whole = {span.span_id: span for span in first if not span.parent_span_id}
    assert sorted(span.name for span in whole.values()) == ["round 1", "round 2"]
    assert sum(span.name == "train" for span in first) == 6
    ledgers = {int(r.opened_at * 1e9) for r in world.ledger.rounds("r")}
    assert {span.start_time_unix_nano for span in whole.values()} == ledgers


def test_who_drives_a_run_sends_each_round_once_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    world = World(devices=2, rounds=2)
    world.live()
    with collector() as (address, bodies):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        for _ in range(2):
            teller = Teller(tmp_path, world.ledger, world.objects, "r")
            teller.look()
            teller.close()
        found = received(bodies)
    assert sorted(span.name for span in found if not span.parent_span_id) == ["round 1", "round 2"]


def test_a_collector_that_refuses_is_a_sentence_and_rounds_are_sent_beside_the_run() -> None:
    pytest.importorskip("opentelemetry.sdk")
    with collector(400) as (address, _), pytest.raises(Unavailable, match="round 1 of r"):
        traces.send(traces.exporter(address), ROUND, {})
    troubles: list[str] = []
    with collector() as (address, bodies):
        sending = traces.Sending(traces.exporter(address), troubles.append)
        for number in range(3):
            sending.add(replace(ROUND, number=number), {"d0": arrival()})
        sending.close()
        found = received(bodies)
    assert sorted(span.name for span in found if not span.parent_span_id) == ["round 0", "round 1", "round 2"]
    assert not troubles
    assert place(ROUND)
