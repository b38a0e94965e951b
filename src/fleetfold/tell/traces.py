"""Rounds as traces of OpenTelemetry, made from the ledger when a round has ended, and sent by OTLP.

round ─┬─ invite
       ├─ device ─┬─ wait ── download ── train ── upload       one for each device that answered
       └─ fold

Ids follow from the run and the round, so that the same round sent twice is the same trace.
"""

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any

from msgspec import Struct

from fleetfold.errors import BadConfig, Unavailable, shown
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.tell.timeline import lanes

MOST = 500
"""Devices of one round that have spans: the slowest. More than that nobody reads, and collectors refuse."""
WAITING = 16
"""Rounds that wait to be sent; later ones are left to `fleetfold export --to otlp`."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Names in the environment, as OpenTelemetry has them: with one of them, runs send their rounds."""


class Span(Struct, frozen=True, kw_only=True):
    """`begin`, `end`: seconds since the epoch; `parent`: another's id, "" of the first."""

    name: str
    id: str
    parent: str
    begin: float
    end: float
    facts: Mapping[str, str | int | float | bool] = {}
    error: str = ""


def spans(round: Round, arrivals: Mapping[str, Arrival]) -> list[Span]:
    """Of a round that has ended; the first is the whole."""
    return list(_spans(round, arrivals))


def _spans(round: Round, arrivals: Mapping[str, Arrival]) -> Iterator[Span]:
    ended = max(round.ended_at, round.opened_at)
    about: dict[str, str | int | float | bool] = {
        "fleetfold.run": round.run, "fleetfold.round": round.number, "fleetfold.kind": round.kind,
        "fleetfold.phase": round.phase.value, "fleetfold.reason": shown(round.reason),
        "fleetfold.invited": round.invited, "fleetfold.arrived": len(round.arrived),
        "fleetfold.refused": len(round.refused),
    }  # fmt: skip
    failed = round.reason if round.phase is Phase.FAILED else ""
    told = [each for each in lanes(round, sorted(arrivals), arrivals) if each.took is not None]
    about["fleetfold.devices_left_out"] = max(0, len(told) - MOST)
    yield Span(
        name=f"round {round.number}", id="round", parent="", begin=round.opened_at, end=ended, facts=about,
        error=shown(failed),
    )  # fmt: skip
    yield Span(
        name="invite", id="invite", parent="round", begin=round.opened_at,
        end=max(round.asked_at, round.opened_at), facts={"fleetfold.invited": round.invited},
    )  # fmt: skip
    for each in told[:MOST]:
        id = f"device {each.device}"
        facts: dict[str, str | int | float | bool] = {
            "fleetfold.device": shown(each.device), "fleetfold.state": each.state,
            "fleetfold.reason": shown(each.reason), "fleetfold.bytes": each.bytes,
            "fleetfold.examples": each.examples,
        }  # fmt: skip
        refused = each.reason or "refused" if each.state == "refused" else ""
        yield Span(
            name="device", id=id, parent="round", begin=round.asked_at,
            end=round.asked_at + (each.took or 0.0), facts=facts, error=shown(refused),
        )  # fmt: skip
        for step in each.steps:
            name = "train" if step.name == "compute" and round.kind != "evaluate" else step.name
            yield Span(name=name, id=f"{id} {name}", parent=id, begin=step.begin, end=step.end)
    if round.closed_at:
        yield Span(name="fold", id="fold", parent="round", begin=round.closed_at, end=ended)


_PARTS = ("opentelemetry.sdk", "opentelemetry.exporter")


def there() -> bool:
    """Whether OpenTelemetry is installed; it is imported only where it is used."""
    return find_spec("opentelemetry") is not None and all(map(find_spec, _PARTS))


def installed() -> None:
    """Raises BadConfig where it is not."""
    if not there():
        raise BadConfig("traces need OpenTelemetry", next="pip install 'fleetfold[otel]'")


def wanted() -> bool:
    """Whether the environment says where traces go."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def exporter(endpoint: str = "") -> Any:
    """By OTLP over HTTP. `endpoint`: http://HOST:PORT of a collector; "": as the environment says."""
    installed()
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what fails is said by us, once
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces") if endpoint else OTLPSpanExporter()


def send(exporter: Any, round: Round, arrivals: Mapping[str, Arrival]) -> int:
    """The trace of one round. → spans sent. Raises Unavailable."""
    from opentelemetry.sdk.trace.export import SpanExportResult

    made = [_real(round, span) for span in spans(round, arrivals)]
    if exporter.export(made) is not SpanExportResult.SUCCESS:
        raise Unavailable(f"the collector did not take the trace of round {round.number} of {round.run}")
    return len(made)


def send_all(exporter: Any, ledger: Ledger, run: str) -> tuple[int, int]:
    """Every round of a run that has ended. → (rounds, spans). Raises Unavailable."""
    ended = [round for round in ledger.rounds(run) if round.phase in ENDED]
    return len(ended), sum(send(exporter, round, ledger.arrivals(place(round))) for round in ended)


def _real(round: Round, span: Span) -> Any:
    """As OpenTelemetry has it."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    whole = f"{place(round)} {round.opened_at!r}"
    trace = int.from_bytes(blake2b(whole.encode(), digest_size=16).digest())

    def context(id: str) -> SpanContext:
        own = blake2b(f"{whole} {id}".encode("utf-8", "replace"), digest_size=8).digest()
        return SpanContext(trace, int.from_bytes(own), False, TraceFlags(TraceFlags.SAMPLED))

    return ReadableSpan(
        name=span.name, context=context(span.id), parent=context(span.parent) if span.parent else None,
        resource=Resource({"service.name": "fleetfold", "service.instance.id": round.run}),
        attributes=dict(span.facts), start_time=_nanoseconds(span.begin), end_time=_nanoseconds(span.end),
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
        instrumentation_scope=InstrumentationScope("fleetfold"),
    )  # fmt: skip


def _nanoseconds(at: float) -> int:
    return int(max(0.0, at) * 1e9)


class Sending:
    """Sends rounds in a thread of its own, so that nobody waits for a collector; it may be away."""

    def __init__(self, exporter: Any, trouble: Callable[[str], None]) -> None:
        self._exporter, self._trouble = exporter, trouble
        self._rounds: queue.Queue[tuple[Round, Mapping[str, Arrival]] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, round: Round, arrivals: Mapping[str, Arrival]) -> None:
        try:
            self._rounds.put_nowait((round, arrivals))
        except queue.Full:
            self._trouble(f"the trace of round {round.number} of {round.run} is left out: too many wait")

    def close(self, patience: float = 5.0) -> None:
        """When what waits is sent, or after so many seconds."""
        try:
            self._rounds.put(None, timeout=patience)
        except queue.Full:
            return
        self._thread.join(patience)

    def _work(self) -> None:
        while (each := self._rounds.get()) is not None:
            try:
                send(self._exporter, *each)
            except Exception as error:  # noqa: BLE001 - a collector's trouble is not the run's
                self._trouble(str(error))
