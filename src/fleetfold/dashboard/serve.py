"""The dashboard's own web server: the page's files, what is polled, what is asked for, what is done.

GET /   /page/…   /api/poll   /api/round   /api/device   /api/refused   /metrics          POST /api/do
"""

import os
import socket
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fleetfold.dashboard import detail
from fleetfold.dashboard.control import Control
from fleetfold.dashboard.guard import Guard
from fleetfold.dashboard.hall import Hall
from fleetfold.dashboard.metrics import exposed
from fleetfold.errors import BadConfig, FleetfoldError, Unavailable
from fleetfold.tell.prometheus import CONTENT_TYPE
from fleetfold.wiring.places import existing

TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
LONGEST = 2048
"""Bytes of what a page may ask to be done."""
ROUNDS = 1_000_000


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be done to a run; `rounds`: of one that is started."""

    run: str
    what: str
    rounds: int | None = None


_ORDER = msgspec.json.Decoder(Order)


class Pages:
    def __init__(self, home: Path, *, control: bool) -> None:
        self._hall, self._control, self._may = Hall(home), Control(home), control
        self._exposed = exposed(home)
        folder = files("fleetfold.dashboard") / "page"
        self._files = {f.name: f.read_bytes() for f in folder.iterdir() if Path(f.name).suffix in TYPES}

    def routes(self) -> list[Route]:
        read = {
            "/api/poll": self._poll, "/api/round": self._round, "/api/device": self._device,
            "/api/refused": self._refused,
        }  # fmt: skip
        return [
            Route("/", self._page),
            Route("/page/{name}", self._page),
            *(Route(path, _json(answer)) for path, answer in read.items()),
            Route("/metrics", self._metrics),
            Route("/api/do", self._do, methods=["POST"]),
        ]

    def _page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            return Response(status_code=404)
        return Response(self._files[name], media_type=TYPES[Path(name).suffix])

    def _metrics(self, request: Request) -> Response:
        try:
            return Response(self._exposed.page(time.time()), headers={"content-type": CONTENT_TYPE})
        except FleetfoldError as error:
            return _failed(error)

    def _poll(self, asked: dict[str, str]) -> bytes:
        told = self._hall.poll(asked.get("run", "latest"), asked.get("cursor", ""))
        more = {"control": self._may, "jobs": self._control.jobs()[:5]}
        return told[:-1] + b"," + msgspec.json.encode(more)[1:]

    def _round(self, asked: dict[str, str]) -> dict[str, Any]:
        with self._hall.watched(asked.get("run", "latest")).reading() as watch:
            first = max(0, _int(asked.get("from", "0")))
            return detail.timeline(watch, _int(asked.get("round", "")), asked.get("kind", "train"), first)

    def _device(self, asked: dict[str, str]) -> dict[str, Any]:
        with self._hall.watched(asked.get("run", "latest")).reading() as watch:
            return detail.history(watch, _int(asked.get("id", "")))

    def _refused(self, asked: dict[str, str]) -> dict[str, Any]:
        with self._hall.watched(asked.get("run", "latest")).reading() as watch:
            return detail.refusal(watch, _int(asked.get("id", "")))

    async def _do(self, request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LONGEST:
                return _answer({"error": "that is too long"}, 413)
        try:
            order = _ORDER.decode(body)
        except (msgspec.MsgspecError, RecursionError):
            return _answer({"error": "that is no order"}, 400)
        if order.rounds is not None and not 1 <= order.rounds <= ROUNDS:
            return _answer({"error": f"rounds: 1 to {ROUNDS}"}, 400)
        try:
            said = await run_in_threadpool(
                lambda: self._control.do(existing(order.run), order.what, order.rounds)
            )
        except FleetfoldError as error:
            return _failed(error)
        return _answer({"said": said})


def _json(work: Callable[[dict[str, str]], Any]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        try:
            return _answer(work(dict(request.query_params)))
        except FleetfoldError as error:
            return _failed(error)

    return answer


def _answer(told: Any, status: int = 200) -> Response:
    body = told if isinstance(told, bytes) else msgspec.json.encode(told)
    return Response(body, status, media_type="application/json")


def _failed(error: FleetfoldError) -> Response:
    status = 503 if isinstance(error, Unavailable) else 409
    return _answer({"error": error.sentence, "next": error.next}, status)


def _int(text: str) -> int:
    try:
        return int(text[:12])
    except ValueError:
        raise BadConfig("that is no number") from None


def _missing(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _answer({"error": "there is no such page here"}, status)


def application(home: Path, token: str, names: tuple[str, ...] = (), *, here: bool) -> Starlette:
    """`token`: "" for one that only reads; `here`: reached from this machine alone."""
    pages = Pages(home, control=bool(token))
    guard = Middleware(Guard, token=token, names=names, here=here)
    return Starlette(
        routes=pages.routes(), middleware=[guard], exception_handlers={404: _missing, 405: _missing}
    )


def server(app: Starlette) -> uvicorn.Server:
    """Of one process and few people: what is idle is let go, what is too much is told so."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
        http="h11", proxy_headers=False, limit_concurrency=64, h11_max_incomplete_event_size=16 << 10,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    return uvicorn.Server(config)


def listening(host: str, port: int) -> socket.socket:
    """Raises BadConfig where somebody else does, or where there is no such address here."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        why = os.strerror(number) if isinstance(number, int) and number > 0 else str(error)
        raise BadConfig(
            f"cannot listen on {host} port {port}: {why}", next="fleetfold dashboard --port 0"
        ) from None
    return found
