"""Addresses that say what they allow: one object, one device, one method, a time, a size, and the hub's own
signature over all that. Nobody has to remember them.

    https://hub:8443/objects/KEY?device=NAME&method=PUT&until=SECONDS&most=BYTES&signature=HEX
                    └──────────────── signed, letter by letter ───────────────┘

What is signed is the text itself: nothing in it is read before it is known to be the hub's own.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote, unquote

from fleetfold.errors import BadConfig
from fleetfold.layout import checked_name

PURPOSE = b"fleetfold address 1\n"
"""Signed before each address: what the same secret may sign one day for another purpose is none."""
_SIGNATURE = "&signature="
_SIGNED = re.compile(
    r"/objects/(?P<key>[^?]+)\?device=(?P<device>[^&]+)&method=(?P<method>[A-Z]+)"
    r"&until=(?P<until>[0-9]+)&most=(?P<most>[0-9]+)"
)


class Refusal(Exception):
    """A no: its HTTP status, the word that it is counted under, and the sentence that the device is told."""

    def __init__(self, status: int, word: str, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.word, self.sentence = status, word, sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Allowed(NamedTuple):
    """What an address allows to whoever holds it and may."""

    key: str
    most: int  # bytes that may be put there


class HubSigner:
    """Addresses below `base`, which is the door's: https://host:port. `clock`: seconds since the epoch."""

    def __init__(self, secret: bytes, base: str, clock: Callable[[], float]) -> None:
        self._secret, self._base, self._clock = secret, base.rstrip("/"), clock

    def to_fetch(self, key: str, device: str, seconds: float) -> str:
        return self._address(key, device, "GET", seconds, 0)

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        return self._address(key, device, "PUT", seconds, most)

    def _address(self, key: str, device: str, method: str, seconds: float, most: int) -> str:
        if not _sound(key):
            raise BadConfig(f"the key {key[:80]!r} cannot be part of an address")
        place = f"/objects/{quote(key)}?device={checked_name(device, 'the device')}"
        signed = f"{place}&method={method}&until={math.ceil(self._clock() + seconds)}&most={most}"
        return self._base + signed + _SIGNATURE + _signature(self._secret, signed)


def check(secret: bytes, method: str, path_and_query: str, device: str, now: float) -> Allowed:
    """What `device` may do by this address, as it came over the wire. Who may GET or PUT may also ask (HEAD)
    what is there. Raises Refusal."""
    signed, _, signature = path_and_query.rpartition(_SIGNATURE)
    expected = _signature(secret, signed)
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogatepass")):
        raise Refusal(403, "address", "this is no address of this hub's, or not as the hub wrote it")
    parts = _SIGNED.fullmatch(signed)
    if parts is None or not _sound(key := unquote(parts["key"], errors="strict")):
        raise Refusal(403, "address", "this is no address of this hub's, or not as the hub wrote it")
    if parts["device"] != device:
        raise Refusal(403, "device", "this address is another device's")
    if method not in (parts["method"], "HEAD"):
        raise Refusal(403, "method", f"this address is for {parts['method']} alone")
    if now > int(parts["until"]):
        raise Refusal(410, "expired", "this address has expired: ask for a fresh one")
    return Allowed(key, int(parts["most"]))


def _signature(secret: bytes, signed: str) -> str:
    text = signed.encode("utf-8", "surrogatepass")
    return hmac.digest(secret, PURPOSE + text, hashlib.sha256).hex()


def _sound(key: str) -> bool:
    """Whether a key names an object below the root, in no more than one way, and in what can be printed."""
    return key.isprintable() and not {"", ".", ".."} & set(key.split("/"))
