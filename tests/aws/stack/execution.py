"""One Lambda execution environment: a real process with AWS's own runtime client, and the Runtime API that it
talks to. Emulates Lambda; standard library alone, since it runs within LocalStack.

invoke ─▶ next ─▶ python -m awslambdaric module.handler ─▶ response | error ─▶ what invoke returns

As on the real one: no environment but the function's, kill at the timeout, death when more memory was used
than the function has (seen after each invocation), 6 MB in and out, a REPORT line.
It does not show: the CPU's share by memory, a read-only file system, /tmp's size, freezing between calls.
"""

import json
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from child import spawn

PAYLOAD = 6 * 1024 * 1024
"""Bytes of an invocation's payload, and of its answer."""
INIT = 10.0
"""Seconds that a function has to start, besides its timeout."""
MIB = 1024 * 1024


@dataclass(frozen=True)
class Function:
    """What an environment runs. `timeout` in seconds, `memory` in MiB."""

    name: str
    arn: str
    handler: str
    code: str
    timeout: float
    memory: int
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    ok: bool
    body: bytes
    log: str


class Environment:
    """Of one function, for one invocation at a time. `python`: one that has awslambdaric."""

    def __init__(self, function: Function, python: str, log: Path) -> None:
        self.function, self._log = function, log
        self._work: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._said: queue.Queue[tuple[str, str, bytes]] = queue.Queue()
        self._began, self._count = time.monotonic(), 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _runtime_api(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._scratch = tempfile.mkdtemp(prefix="lambda-")
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", "LANG": "en_US.UTF-8", "TZ": ":UTC",
            "TMPDIR": self._scratch, "LAMBDA_TASK_ROOT": function.code, "PYTHONPATH": function.code,
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1",
            **function.environment,
            "_HANDLER": function.handler, "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
        }  # fmt: skip
        with log.open("ab") as out:
            self._process = spawn(
                [python, "-m", "awslambdaric", function.handler], cwd=function.code, env=environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    def alive(self) -> bool:
        return self._process.poll() is None

    def invoke(self, id: str, payload: bytes) -> Outcome:
        """An environment that has died in it is of no use any more."""
        if len(payload) > PAYLOAD:
            return Outcome(False, _error("RequestEntityTooLarge", f"{len(payload)} bytes of payload"), "")
        start, since = self._log.stat().st_size, time.monotonic()
        self._write(f"START RequestId: {id} Version: $LATEST\n")
        self._work.put((id, payload))
        kind, body = self._await(id)
        peak = self._peak()
        if kind == "response" and peak > self.function.memory:
            self.stop()
            kind, body = (
                "error",
                _error("Runtime.OutOfMemory", f"RequestId: {id} Error: Runtime exited: killed"),
            )
        if kind == "response" and len(body) > PAYLOAD:
            kind, body = "error", _error("Function.ResponseSizeTooLarge", f"{len(body)} bytes of answer")
        took = 1000 * (time.monotonic() - since)
        first = f"\tInit Duration: {1000 * (since - self._began):.2f} ms" if not self._count else ""
        self._count += 1
        self._write(
            f"END RequestId: {id}\nREPORT RequestId: {id}\tDuration: {took:.2f} ms\tBilled Duration: "
            f"{int(took) + 1} ms\tMemory Size: {self.function.memory} MB\tMax Memory Used: {peak} MB{first}\n"
        )
        with self._log.open("rb") as file:
            file.seek(start)
            return Outcome(kind == "response", body, file.read().decode(errors="replace"))

    def stop(self) -> None:
        self._work.put(None)
        if self.alive():
            self._process.kill()
        self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def next(self) -> tuple[str, bytes] | None:
        """What the runtime is to do. None: end."""
        return self._work.get()

    def said(self, id: str, kind: str, body: bytes) -> None:
        self._said.put((id, kind, body))

    def _await(self, id: str) -> tuple[str, bytes]:
        until = time.monotonic() + self.function.timeout + (0.0 if self._count else INIT)
        while True:
            try:
                by, kind, body = self._said.get(timeout=0.05)
            except queue.Empty:
                pass
            else:
                if kind == "init":
                    self.stop()
                elif by != id:
                    continue
                return kind, body
            if not self.alive() and self._said.empty():
                code = self._process.returncode
                how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                self.stop()
                said = f"RequestId: {id} Error: Runtime exited with error: {how}"
                self._write(f"{said}\n")
                return "error", _error("Runtime.ExitError", said)
            if time.monotonic() > until:
                self.stop()
                said = f"RequestId: {id} Error: Task timed out after {self.function.timeout:.2f} seconds"
                self._write(f"{said}\n")
                return "error", _error("Sandbox.Timedout", said)

    def _peak(self) -> int:
        """Most memory that the process had, in MiB."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return 0
        found = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(found[0].split()[1]) // 1024 if found else 0

    def _write(self, text: str) -> None:
        with self._log.open("a") as file:
            file.write(text)


def _error(kind: str, message: str) -> bytes:
    return json.dumps({"errorType": kind, "errorMessage": message}).encode()


def _runtime_api(environment: Environment) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", 1 << 16, True

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            """/2018-06-01/runtime/invocation/next: waits."""
            work = environment.next()
            if work is None:
                self._answer(410)
                return
            id, payload = work
            function = environment.function
            self._answer(
                200, payload,
                **{
                    "Lambda-Runtime-Aws-Request-Id": id,
                    "Lambda-Runtime-Deadline-Ms": str(int(1000 * (time.time() + function.timeout))),
                    "Lambda-Runtime-Invoked-Function-Arn": function.arn,
                    "Content-Type": "application/json",
                },
            )  # fmt: skip

        def do_POST(self) -> None:
            """…/invocation/ID/response, …/invocation/ID/error, …/init/error."""
            body = self._body()
            words = self.path.split("/")
            kind = "init" if words[-2] == "init" else words[-1]
            environment.said(words[-2], kind, body)
            self._answer(202, b'{"status":"OK"}')

        def _body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            whole = bytearray()
            while size := int(self.rfile.readline().strip() or b"0", 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return bytes(whole)

        def _answer(self, status: int, body: bytes = b"", **headers: Any) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Request
