"""An API of AWS's over HTTP, served by plain functions: paths and parameters come from botocore's own model.

request ─▶ operation and its parameters, by the model ─▶ the method of that name ─▶ JSON, or Refused
"""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import botocore.session
from botocore import xform_name
from botocore.model import OperationModel

_KEY = re.compile(r"Credential=([^/]+)/")


class Refused(Exception):
    """An error of the API: its status, code and message."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


class Api:
    """One service. `operations`: an object with a method for each operation that is emulated."""

    def __init__(self, service: str, operations: object) -> None:
        self.service, self._operations = service, operations
        model = botocore.session.get_session().get_service_model(service)
        self._paths: list[tuple[str, re.Pattern[str], OperationModel]] = []
        for name in model.operation_names:
            operation = model.operation_model(name)
            path = operation.http["requestUri"].partition("?")[0]
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path).replace(r"\+", ""))
            self._paths.append((operation.http["method"], re.compile(pattern), operation))

    def find(self, method: str, path: str) -> tuple[OperationModel, dict[str, str]] | None:
        fits = [
            (operation, found.groupdict())
            for wanted, pattern, operation in self._paths
            if wanted == method and (found := pattern.fullmatch(path))
        ]
        return min(fits, key=lambda fit: len(fit[1])) if fits else None  # the most literal of them

    def call(
        self, operation: OperationModel, words: dict[str, str], query: dict[str, list[str]], headers: Any,
        body: bytes,
    ) -> tuple[dict[str, Any], Any]:  # fmt: skip
        """→ (the parameters, what the method gave)"""
        asked = _parameters(operation, words, query, headers, body)
        method = getattr(self._operations, xform_name(operation.name), None)
        if method is None:
            raise Refused(501, "NotImplemented", f"{self.service} {operation.name} is not emulated")
        return asked, method(**{xform_name(name): value for name, value in asked.items()})


def _parameters(
    operation: OperationModel, words: dict[str, str], query: dict[str, list[str]], headers: Any, body: bytes
) -> dict[str, Any]:
    shape = operation.input_shape
    if shape is None:
        return {}
    payload = shape.serialization.get("payload")
    said = json.loads(body) if body and payload is None else {}
    found: dict[str, Any] = {}
    for member, of in shape.members.items():
        where, name = of.serialization.get("location"), of.serialization.get("name", member)
        value: Any = None
        if member == payload:
            value = body
        elif where == "uri":
            value = unquote(words[name])
        elif where == "querystring":
            value = query.get(name, [None])[0]
        elif where == "header":
            value = headers.get(name)
        else:
            value = said.get(name)
        if value is not None:
            found[member] = _typed(value, of.type_name)
    return found


def _typed(value: Any, kind: str) -> Any:
    if isinstance(value, str) and kind == "boolean":
        return value == "true"
    if isinstance(value, str) and kind in ("integer", "long"):
        return int(value)
    return value


class Served:
    """Several APIs at one address. `noted`: told of each call, as (access key, service, operation,
    parameters, status). `others`: what else is served, by the first word of the path."""

    def __init__(
        self, port: int, apis: list[Api], noted: Callable[[str, str, str, dict[str, Any], int], None],
        others: dict[str, Callable[[str, list[str], bytes], Any]],
    ) -> None:  # fmt: skip
        self._apis, self._noted, self._others = apis, noted, others
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _request(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, str, Any]:
        """→ (status, the error's code, what is said)"""
        parts = urlsplit(target)
        words = parts.path.strip("/").split("/")
        if other := self._others.get(words[0]):
            return 200, "", other(method, [unquote(word) for word in words[1:]], body)
        key = found[1] if (found := _KEY.search(headers.get("Authorization", ""))) else ""
        for api in self._apis:
            if fit := api.find(method, parts.path):
                operation, named = fit
                asked: dict[str, Any] = {}
                try:
                    asked, said = api.call(operation, named, parse_qs(parts.query), headers, body)
                    status, code, said = 200, "", said if said is not None else {}
                except Refused as refused:
                    status, code, said = refused.status, refused.code, {"message": str(refused)}
                self._noted(key, api.service, operation.name, asked, status)
                return status, code, said
        return 404, "UnknownOperationException", {"message": f"{method} {parts.path}"}


def _request(served: Served) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, 1 << 16

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, code, said = served.answer(self.command, self.path, self.headers, body)
            except Exception as error:  # noqa: BLE001 - whoever asked is told
                status, code, said = 500, "InternalFailureException", {"message": repr(error)}
            data = json.dumps(said, default=str).encode()
            self.send_response(status)
            if code:
                self.send_header("x-amzn-errortype", code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any

    return Request
