"""The dashboard's server as it is, in a thread, and a browser's end of it without the browser."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fleetfold.dashboard import serve

TOKEN = "a-token-of-the-tests"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.cursor = ""

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        """`headers`: with _ for -; an empty one is not sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        told = {"host": f"127.0.0.1:{self.port}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.request(method, path, body or None, {k: v for k, v in told.items() if v})
        answer = connection.getresponse()
        found = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def do(
        self, run: str, what: str, token: str = TOKEN, rounds: int | None = None, **headers: str
    ) -> Answer:
        order = {"run": run, "what": what} | ({"rounds": rounds} if rounds else {})
        told = {"x_fleetfold_token": token, "origin": self.url} | headers
        return self.ask("/api/do", "POST", json.dumps(order).encode(), **told)

    def poll(self, run: str = "latest") -> dict[str, Any]:
        """One page, and where to go on."""
        answer = self.ask(f"/api/poll?run={run}&cursor={self.cursor}")
        assert answer.status == 200, answer.body
        self.cursor = answer.json["cursor"]
        return answer.json

    def all(self, run: str = "latest") -> dict[str, Any]:
        """Pages until there is no more, put together: of each row the newest."""
        told: dict[str, Any] = {}
        tables: dict[str, dict[Any, Any]] = {"rounds": {}, "devices": {}, "lanes": {}, "refused": {}}
        while True:
            page = self.poll(run)
            for table, rows in tables.items():
                wide = 2 if table == "rounds" else 1
                rows.update({tuple(row[:wide]): row for row in page.get(table, [])})
            told |= page
            if not page["more"] and page.get("run") and page["run"]["todo"] <= 1:
                return told | {table: list(rows.values()) for table, rows in tables.items()}


@contextmanager
def serving(
    home: Path, token: str = TOKEN, names: tuple[str, ...] = (), *, here: bool = True
) -> Iterator[Site]:
    socket = serve.listening("127.0.0.1", 0)
    server = serve.server(serve.application(home, token, names, here=here))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        yield Site(socket.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
        socket.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path))
    return tmp_path
