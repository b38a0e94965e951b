"""Who is let in: every request passes here first, whatever it asks for.

Host      one of our own names, or an address: a page elsewhere that has its name point here is refused
token     of who may read from another machine, and of who changes anything: compared in constant time
Origin    of who changes anything: our own page
answers   never stored, never framed, no script but our own
"""

import hmac
import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "x-fleetfold-token"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """`token`: "" lets nobody change anything. `names`: under which we are reached besides addresses and
    localhost; `here`: only from this machine, who may read without a token."""

    def __init__(self, app: ASGIApp, token: str, names: Collection[str], *, here: bool) -> None:
        self._app, self._token, self._names, self._here = app, token.encode(), frozenset(names), here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        why = self._refusal(scope["method"], scope["path"], Headers(scope=scope))

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if why is not None:
            status, sentence = why
            await JSONResponse({"error": sentence}, status)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 421, "this is not the name of this dashboard: fleetfold dashboard --name NAME"
        known = self._knows(headers.get(TOKEN) or headers.get("authorization", "").removeprefix("Bearer "))
        if method in ("GET", "HEAD"):
            open_to_all = self._here or not path.startswith(("/api/", "/metrics"))
            return None if open_to_all or known else (401, "a token is needed to read this from elsewhere")
        if method != "POST":
            return 405, f"no {method[:20]} here"
        if not self._token:
            return 403, "this dashboard only reads: start it with --control"
        if headers.get("origin", "").partition("://")[2] != host:
            return 403, "that did not come from this dashboard's own page"
        return None if known else (401, "that is not the token")

    def _knows(self, given: str) -> bool:
        return bool(self._token) and hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        name = name.lower()
        if name in LOOPBACK or name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return not self._here
