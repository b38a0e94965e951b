"""The door over the wire, with real TLS: who gets what, who gets a no, and who gets nothing at all."""

import base64
import hashlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import StringIO
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from fleetfold import layout
from fleetfold.adapters.objects import FileObjects
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.hub import door as door_module
from fleetfold.hub import exchange as exchange_module
from fleetfold.hub.door import SHARE, Door, tls
from fleetfold.hub.signing import HubSigner
from fleetfold.log import Log
from fleetfold.ports import fetch
from tests.hub.pki import Authority

SECRET = b"s" * 32
UPDATE = os.urandom(299_999) + b"."
SOON = 60.0


class Said(NamedTuple):
    status: int
    body: bytes
    headers: http.client.HTTPMessage


class Site:
    """A door that is open, and who may come. `held`: device → the id of its credential in force."""

    def __init__(self, folder: Path, slots: int = door_module.SLOTS) -> None:
        self.folder, self.authority = folder, Authority(folder / "pki")
        self.objects = FileObjects(folder / "objects")
        self.held, self.stored, self.log = {"a": "a1", "b": "b1"}, list[str](), StringIO()
        self.now = 1_000_000.0
        certificate = self.authority.issue("localhost", "", server=True)
        self.door = Door(
            self.objects, tls(*certificate, self.authority.file), SECRET,
            lambda device: self.held.get(device), self.stored.append, Log(out=self.log), lambda: self.now,
            host="127.0.0.1", port=0, slots=slots,
        )  # fmt: skip
        self.door.start()
        self.signer = HubSigner(SECRET, "", lambda: self.now)
        self.a, self.b = (
            self.context(*self.authority.issue("a", "a1")),
            self.context(*self.authority.issue("b", "b1")),
        )

    @property
    def lines(self) -> list[str]:
        """What it has logged."""
        return self.log.getvalue().splitlines()

    def enrolled(self, device: str) -> ssl.SSLContext:
        self.held[device] = f"{device}1"
        return self.context(*self.authority.issue(device, f"{device}1"))

    def context(self, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        if certificate:
            context.load_cert_chain(certificate, key)
        return context

    def connected(self, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.door.port), timeout=30)
        try:
            return context.wrap_socket(plain, server_hostname="localhost", session=session)
        except BaseException:
            plain.close()
            raise

    def ask(
        self, method: str, address: str, body: bytes | None = None, who: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None, **headers: str,
    ) -> Said:  # fmt: skip
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connected(who or self.a, session)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, address, body, named)
            answer = connection.getresponse()
            return Said(answer.status, answer.read(), answer.headers)
        finally:
            connection.close()

    def put(self, address: str, data: bytes, who: ssl.SSLContext | None = None, **headers: str) -> Said:
        return self.ask("PUT", address, data, who, **{"Content_Digest": digest(data), **headers})

    def to_put(self, key: str, device: str = "a", seconds: float = SOON, most: int = 1 << 20) -> str:
        return self.signer.to_deliver(key, device, seconds, most)

    def to_get(self, key: str, device: str = "a", seconds: float = SOON) -> str:
        return self.signer.to_fetch(key, device, seconds)

    def staged(self) -> list[str]:
        return os.listdir(self.folder / "objects" / "staging")

    def untouched(self, key: str) -> bool:
        """Once the door has noticed: nothing of it is there, nor on its way."""
        eventually(lambda: not self.staged())
        return self.objects.size(key) is None and key not in self.stored


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def ended(wire: socket.socket) -> bytes:
    """What comes until there is no connection any more."""
    came = b""
    with suppress(ConnectionError, ssl.SSLError):
        while more := wire.recv(5_000):
            came += more
    return came


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.door.stop()
    assert site.staged() == []
    assert not [line for line in site.lines if "\n" in line or "Traceback" in line]


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key that no other test uses."""
    return f"u/{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}.safetensors"


# What is given and taken


def test_what_is_put_is_durable_told_of_and_given_back(site: Site, key: str) -> None:
    said = site.put(site.to_put(key), UPDATE)
    assert (said.status, said.body) == (201, b"")
    assert fetch(site.objects, key) == UPDATE
    assert site.stored.count(key) == 1
    assert site.ask("GET", site.to_get(key)).body == UPDATE
    assert site.ask("GET", site.to_get(key, "b"), who=site.b).body == UPDATE


@pytest.mark.parametrize("size", [0, 1, exchange_module.PIECE, exchange_module.PIECE + 1, 3_000_000])
def test_objects_of_any_size_come_and_go_whole(site: Site, key: str, size: int) -> None:
    data = os.urandom(size)
    assert site.put(site.to_put(key, most=size), data).status == 201
    said = site.ask("GET", site.to_get(key))
    assert (said.status, said.body, said.headers["Content-Length"]) == (200, data, str(size))


def test_who_may_put_may_ask_what_is_there(site: Site, key: str) -> None:
    assert site.ask("HEAD", site.to_put(key)).status == 404
    site.put(site.to_put(key), UPDATE)
    for address in (site.to_put(key), site.to_get(key)):
        said = site.ask("HEAD", address)
        assert (said.status, said.body, said.headers["Content-Length"]) == (200, b"", "300000")


def test_what_is_not_there_cannot_be_got(site: Site, key: str) -> None:
    assert site.ask("GET", site.to_get(key)).status == 404


def test_a_download_that_broke_off_is_resumed_by_range(site: Site, key: str) -> None:
    site.objects.put(key, [UPDATE])
    with site.connected(site.a) as broken:
        broken.sendall(f"GET {site.to_get(key)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, got = broken.recv(5_000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        while len(got) < 100_000:
            got += broken.recv(10_000)
    said = site.ask("GET", site.to_get(key), Range=f"bytes={len(got)}-")
    assert (said.status, got + said.body) == (206, UPDATE)
    assert said.headers["Content-Range"] == f"bytes {len(got)}-299999/300000"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=0-", 206), ("bytes=299999-", 206), ("bytes=300000-", 416), ("bytes=999999999999999999-", 416),
        ("bytes=0-5", 200), ("bytes=-5", 200), ("bytes=1-,5-", 200), ("lines=1-", 200), ("bytes=x-", 200),
        ("bytes=" + "9" * 5000 + "-", 200),
    ],
)  # fmt: skip
def test_a_range_is_from_a_byte_on_and_any_other_is_the_whole(
    site: Site, key: str, asked: str, status: int
) -> None:
    site.objects.put(key, [UPDATE])
    said = site.ask("GET", site.to_get(key), Range=asked)
    assert said.status == status
    if status == 416:
        assert said.headers["Content-Range"] == "bytes */300000"
    elif status == 206:
        assert said.body == UPDATE[int(asked[6:-1]) :]
    else:
        assert said.body == UPDATE


def test_a_part_of_another_number_than_those_that_lie_there_is_refused(site: Site, key: str) -> None:
    assert site.put(site.to_put(layout.part(key, 0, 3)), UPDATE).status == 201
    assert site.put(site.to_put(layout.part(key, 0, 2)), UPDATE).status == 409
    assert site.put(site.to_put(layout.part(key, 1, 3)), UPDATE).status == 201


def test_an_update_in_parts_is_there_when_all_of_them_are(site: Site, key: str) -> None:
    most = layout.PART
    parts = [bytes(most), b"the rest"]
    assert site.put(site.to_put(layout.part(key, 1, 2), most=most), parts[1]).status == 201
    assert site.ask("HEAD", site.to_put(key)).status == 404
    assert site.put(site.to_put(layout.part(key, 0, 2), most=most), parts[0]).status == 201
    assert site.ask("HEAD", site.to_put(key)).headers["Content-Length"] == str(most + 8)
    assert site.put(site.to_put(key), UPDATE).status == 409, "what was told is delivered stays as it is"
    assert site.ask("GET", site.to_get(key), Range=f"bytes={most - 1}-").body == b"\0the rest"


def test_one_connection_may_ask_again_and_again(site: Site, key: str) -> None:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = site.connected(site.a)
    for method, address, body in (
        ("PUT", site.to_put(key), UPDATE),
        ("GET", site.to_put(key), None),  # a no is no end
        ("GET", site.to_get(key), None),
    ):
        connection.request(method, address, body, {"Content-Digest": digest(UPDATE)} if body else {})
        answer = connection.getresponse()
        got = answer.read()
    assert got == UPDATE
    connection.close()


def test_who_expects_to_be_told_is_told_before_it_sends(site: Site, key: str) -> None:
    def announced(data: bytes, most: int = 1 << 20) -> tuple[ssl.SSLSocket, bytes]:
        wire = site.connected(site.a)
        head = f"PUT {site.to_put(key, most=most)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        head += f"Content-Digest: {digest(data)}\r\nExpect: 100-continue\r\n\r\n"
        wire.sendall(head.encode())
        return wire, wire.recv(5_000)

    wire, heard = announced(UPDATE)
    assert heard == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.sendall(UPDATE)
    assert wire.recv(5_000).startswith(b"HTTP/1.1 201 ")
    wire.close()
    for data, most, status in ((UPDATE, 1 << 20, b"200"), (b"else", 1 << 20, b"409"), (UPDATE, 5, b"413")):
        wire, heard = announced(data, most)
        assert heard.startswith(b"HTTP/1.1 " + status)
        wire.close()


# Who


METHODS = ("GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "OPTIONS", "TRACE")


@pytest.mark.parametrize(("me", "owner"), [*product("ab", repeat=2)])
def test_every_pair_of_certificate_and_address_by_every_method(
    site: Site, key: str, me: str, owner: str
) -> None:
    site.objects.put(key, [UPDATE])
    for signed, method in product(("GET", "PUT"), METHODS):
        fresh = f"{key}-{method}"
        address = (site.to_get if signed == "GET" else site.to_put)(fresh if method == "PUT" else key, owner)
        said = (
            site.put(address, UPDATE, getattr(site, me))
            if method == "PUT"
            else site.ask(method, address, who=getattr(site, me))
        )
        if method not in ("GET", "HEAD", "PUT"):
            assert said.status == 405
        elif me == owner and method in (signed, "HEAD"):
            assert said.status == (201 if method == "PUT" else 200)
            site.objects.delete(fresh)
        else:
            assert said.status == 403
            assert said.body.count(b"\n") <= 1
            assert UPDATE[:50] not in said.body
            assert site.objects.size(fresh) is None


@pytest.mark.parametrize(
    ("name", "id"), [("a", "a0"), ("b", "a1"), ("c", "c1"), ("a", ""), ("A", "a1"), ("hub", "")]
)
def test_a_certificate_that_is_not_the_one_in_force_opens_nothing(
    site: Site, key: str, name: str, id: str
) -> None:
    site.objects.put(key, [UPDATE])
    other = site.context(*site.authority.issue(name, id))
    for owner, (method, address) in product(
        {name, "a"}, (("GET", site.to_get), ("HEAD", site.to_get), ("PUT", site.to_put))
    ):
        said = site.ask(method, address(key, owner), who=other)
        assert (said.status, UPDATE[:50] in said.body) == (401, False)


def test_who_shows_no_certificate_of_the_fleet_gets_not_one_byte(
    site: Site, key: str, tmp_path: Path
) -> None:
    site.objects.put(key, [UPDATE])
    stranger = Authority(tmp_path)
    seen = site.door.refused["handshake"]
    strangers = {
        "none": site.context(),
        "another authority": site.context(*stranger.issue("a", "a1")),
        "a server's": site.context(*site.authority.issue("server", "a1", server=True)),
        "old": site.context(*site.authority.issue("a", "a1")),
    }
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        strangers["old"].minimum_version = strangers["old"].maximum_version = ssl.TLSVersion.TLSv1_1
    strangers["old"].set_ciphers("ALL:@SECLEVEL=0")
    for who, context in strangers.items():
        with suppress(OSError), site.connected(context) as wire:
            wire.sendall(f"GET {site.to_get(key)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert ended(wire) == b"", who
    with socket.create_connection(("127.0.0.1", site.door.port)) as plain:
        plain.sendall(f"GET {site.to_get(key)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"HTTP" not in plain.recv(5_000)
    eventually(lambda: site.door.refused["handshake"] == seen + len(strangers) + 1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_who_is_revoked_is_refused_at_once_and_by_a_resumed_session_too(
    site: Site, key: str, version: ssl.TLSVersion
) -> None:
    context = site.enrolled("r")
    context.maximum_version = version
    site.objects.put(key, [UPDATE])
    address = site.to_get(key, "r")

    def asked(wire: ssl.SSLSocket) -> bytes:
        wire.sendall(f"HEAD {address} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return wire.recv(5_000)[9:12]

    resumed = version is ssl.TLSVersion.TLSv1_2  # of 1.3 the door makes no tickets
    with site.connected(context) as first:
        assert asked(first) == b"200"
        session = first.session
        with site.connected(context, session) as again:
            assert again.session_reused == resumed
            assert asked(again) == b"200", "a resumed session is still the same device's"
        del site.held["r"]
        assert asked(first) == b"401"
    with site.connected(context, session) as again:
        assert again.session_reused == resumed
        assert asked(again) == b"401"
    site.held["r"] = "r2"
    assert site.ask("HEAD", address, who=context).status == 401, "enrolled anew, the old one stays shut out"


def test_a_resumed_session_is_no_other_devices(site: Site, key: str) -> None:
    site.objects.put(key, [UPDATE])
    with site.connected(site.a) as first:
        first.sendall(f"HEAD {site.to_get(key)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert first.recv(5_000)[9:12] == b"200"
        session = first.session
    assert site.ask("GET", site.to_get(key, "b"), session=session).status == 403


def test_who_is_revoked_in_an_upload_leaves_nothing_behind(site: Site, key: str) -> None:
    with uploading(site, site.to_put(key, "r"), who=site.enrolled("r")) as wire:
        del site.held["r"]
        wire.sendall(UPDATE[1000:])
        assert wire.recv(5_000).startswith(b"HTTP/1.1 401 ")
    assert site.untouched(key)


def test_a_device_that_is_cut_off_loses_its_connections_at_once(site: Site, key: str) -> None:
    with (
        uploading(site, site.to_put(key)) as mine,
        uploading(site, site.to_put(key, "b"), who=site.b) as other,
    ):
        site.door.cut("a")
        assert ended(mine) == b""
        other.sendall(UPDATE[1000:])
        assert other.recv(5_000).startswith(b"HTTP/1.1 201 ")


# What is refused


def test_an_address_is_good_as_often_as_one_likes_until_it_expires(site: Site, key: str) -> None:
    put, get = site.to_put(key), site.to_get(key)
    assert [site.put(put, UPDATE).status for _ in range(2)] == [201, 200]
    assert site.put(put, b"other bytes").status == 409
    assert site.put(put, UPDATE[:-1] + b"x").status == 409
    assert site.ask("GET", get).body == UPDATE
    site.now += SOON + 1
    try:
        for said in (site.put(put, UPDATE), site.ask("GET", get), site.ask("HEAD", put)):
            assert said.status == 410
            assert said.headers["Content-Length"] != "0"
    finally:
        site.now -= SOON + 1
    assert fetch(site.objects, key) == UPDATE


def test_an_address_that_was_changed_is_none(site: Site, key: str) -> None:
    site.objects.put("u/secret", [UPDATE])
    address = site.to_put(key)
    for old, new in (
        (key, "u/secret"), (key, "u/../u/secret"), (key, key + "x"), ("device=a", "device=b"),
        ("method=PUT", "method=GET"), ("until=1", "until=2"), ("most=1", "most=2"), ("&most", "&more=1&most"),
        ("&most", "&most=9999999&most"), ("signature=", "signature=0"), (address[-64:], "0" * 64),
        ("/objects/", "/"), ("/objects/", "/objects//"), (address, "/"), (address, "/objects/u/secret"),
    ):  # fmt: skip
        changed = address.replace(old, new, 1)
        assert changed != address
        for method, who in product(("GET", "HEAD", "PUT"), (site.a, site.b)):
            said = site.put(changed, UPDATE, who) if method == "PUT" else site.ask(method, changed, who=who)
            assert said.status == 403
    assert site.untouched(key)


@pytest.mark.parametrize("more", [1, 1_000_000])
def test_an_upload_larger_than_allowed_is_refused(site: Site, key: str, more: int) -> None:
    assert site.put(site.to_put(key, most=1000), bytes(1000 + more)).status == 413
    assert site.untouched(key)


def test_a_body_that_goes_on_after_its_length_is_not_read_as_part_of_it(site: Site, key: str) -> None:
    with uploading(site, site.to_put(key)) as wire:
        wire.sendall(UPDATE[1000:] + b"and more of the same" * 1000)
        assert wire.recv(5_000).startswith(b"HTTP/1.1 201 ")
        assert b"Traceback" not in ended(wire)
    assert fetch(site.objects, key) == UPDATE


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": "5"}, 422),
        ({"Content-Length": "5", "Content-Digest": "sha-512=:AAAA:"}, 422),
        ({"Content-Length": "5", "Content-Digest": digest(b"hello")[:-2]}, 422),
        ({"Content-Length": "5", "Content-Digest": digest(b"other")}, 422),
        ({"Content-Length": "5", "Content-Digest": digest(b"")}, 422),
        ({"Content-Digest": digest(b"hello")}, 411),
        ({"Content-Digest": digest(b"hello"), "Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "-5", "Content-Digest": digest(b"hello")}, 400),
        ({"Content-Length": "5x", "Content-Digest": digest(b"hello")}, 400),
        ({"Content-Length": "5", "Transfer-Encoding": "chunked", "Content-Digest": digest(b"hello")}, 400),
        ({"Content-Length": "5", "Content-Digest": f"sha-512=:AAAA:, {digest(b'hello')}"}, 201),
    ],
)
def test_an_upload_promises_its_length_and_digest_and_keeps_to_them(
    site: Site, key: str, headers: dict[str, str], status: int
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    body = b"hello" if "Content-Length" in headers else b""
    body = b"5\r\nhello\r\n0\r\n\r\n" if "Transfer-Encoding" in headers else body
    with site.connected(site.a) as wire:
        wire.sendall(f"PUT {site.to_put(key)} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + body)
        said = wire.recv(5_000)
    assert said[9:13] == b"%d " % status
    assert b"Traceback" not in said
    assert status == 201 or site.untouched(key)


def test_what_is_compressed_is_taken_as_it_comes(site: Site, key: str) -> None:
    """And never unpacked: a small body may be a large one."""
    assert site.put(site.to_put(key), b"not gzip at all", Content_Encoding="gzip").status == 201
    assert fetch(site.objects, key) == b"not gzip at all"


@pytest.mark.parametrize(
    "nonsense", [b"\r\n\r\nGET\r\n\r\n", b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"G" * 100_000]
)
def test_what_is_no_request_is_counted_and_gets_no_traceback(site: Site, nonsense: bytes) -> None:
    seen = site.door.refused["malformed"]
    with site.connected(site.a) as wire:
        wire.sendall(nonsense)
        assert wire.recv(5_000).startswith(b"HTTP/1.")
    eventually(lambda: site.door.refused["malformed"] > seen)


def test_a_door_that_is_shut_lets_nobody_finish(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with uploading(site, site.to_put("u/x")) as wire:
        site.door.stop()
        assert ended(wire) == b""
    assert site.untouched("u/x")
    assert site.door.refused == {}


def test_of_many_who_put_at_once_one_wins_and_the_others_hear_of_it(site: Site, key: str) -> None:
    contexts = [site.enrolled(f"m{k}") for k in range(12)]
    start = threading.Barrier(12)
    bodies = [bytes([k % 3]) * 200_000 for k in range(12)]

    def put(k: int) -> int:
        start.wait()
        return site.put(site.to_put(key, f"m{k}"), bodies[k], contexts[k]).status

    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(put, range(12)))
    assert said.count(201) == 1
    won = bodies[said.index(201)]
    assert fetch(site.objects, key) == won
    assert [s for s, body in zip(said, bodies, strict=True) if body == won and s != 201] == [200] * 3
    assert said.count(409) == 8


# Bad luck and ill will


class uploading:
    """A PUT of UPDATE of which the first 1,000 bytes have come."""

    def __init__(self, site: Site, address: str, who: ssl.SSLContext | None = None) -> None:
        staged = len(site.staged())
        self._wire = site.connected(who or site.a)
        head = f"PUT {address} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(UPDATE)}\r\n"
        self._wire.sendall(f"{head}Content-Digest: {digest(UPDATE)}\r\n\r\n".encode() + UPDATE[:1000])
        eventually(lambda: len(site.staged()) > staged)

    def __enter__(self) -> ssl.SSLSocket:
        return self._wire

    def __exit__(self, *_: object) -> None:
        self._wire.close()


def test_who_hangs_up_in_an_upload_leaves_nothing_behind(site: Site, key: str) -> None:
    with uploading(site, site.to_put(key)):
        assert site.objects.size(key) is None
    assert site.untouched(key)
    with uploading(site, site.to_put(key)) as wire:
        wire.sendall(UPDATE[1000:-1])
    assert site.untouched(key)
    assert site.put(site.to_put(key), UPDATE).status == 201


def test_who_hangs_up_in_a_download_costs_nothing(site: Site, key: str) -> None:
    site.objects.put(key, [bytes(20_000_000)])
    who, address = site.enrolled("h"), site.to_get(key, "h")
    for _ in range(SHARE + 1):
        with site.connected(who) as wire:
            wire.sendall(f"GET {address} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert wire.recv(1000)
    eventually(lambda: site.ask("HEAD", address, who=who).status == 200)


def test_a_device_may_not_take_the_places_of_others(site: Site, key: str) -> None:
    site.objects.put(key, [UPDATE])
    who, address = site.enrolled("s"), site.to_get(key, "s")
    held = [site.connected(who) for _ in range(SHARE)]
    for wire in held:
        wire.sendall(f"HEAD {address} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert wire.recv(5_000)[9:12] == b"200"
    said = site.ask("GET", address, who=who)
    assert (said.status, said.headers["Retry-After"]) == (429, "2")
    assert site.ask("GET", site.to_get(key, "b"), who=site.b).status == 200
    for wire in held:
        wire.close()
    eventually(lambda: site.ask("GET", address, who=who).status == 200)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Site]:
    """A door with two places."""
    site = Site(tmp_path, slots=2)
    yield site
    site.door.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Site:
    """And with little patience."""
    for module, name, seconds in (
        (door_module, "GRACE", 1.0), (exchange_module, "GRACE", 1.0), (door_module, "HANDSHAKE", 0.3),
        (door_module, "IDLE", 0.3), (door_module, "LINGER", 0.3),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(exchange_module, "PACE", 1 << 40)
    narrow: Site = request.getfixturevalue("narrow")
    return narrow


def test_who_is_too_slow_is_told_so_and_leaves_nothing_behind(impatient: Site, key: str) -> None:
    with uploading(impatient, impatient.to_put(key)) as wire:
        assert wire.recv(5_000).startswith(b"HTTP/1.1 408 ")
    assert impatient.untouched(key)
    assert impatient.door.refused["slow"] == 1


def test_who_does_not_take_what_it_asked_for_is_let_go(impatient: Site, key: str) -> None:
    impatient.objects.put(key, [bytes(50_000_000)])
    with impatient.connected(impatient.a) as wire:
        wire.sendall(f"GET {impatient.to_get(key)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert wire.recv(1000).startswith(b"HTTP/1.1 200 ")
        eventually(lambda: not impatient.door.live)


@pytest.mark.parametrize("begun", ["nothing", "half a handshake", "nothing after it", "half a request"])
def test_who_takes_a_place_and_says_nothing_makes_room(impatient: Site, key: str, begun: str) -> None:
    impatient.objects.put(key, [UPDATE])
    wires: list[socket.socket] = []
    for _ in range(4):
        wire = socket.create_connection(("127.0.0.1", impatient.door.port))
        wires.append(wire)
        if begun == "half a handshake":
            wire.sendall(b"\x16\x03\x01\x02\x00\x01")
    if begun in ("nothing after it", "half a request"):
        wires += [impatient.connected(impatient.a) for _ in range(2)]
    if begun == "half a request":
        wires[-1].sendall(b"GET /objects/")

    def served() -> bool:
        try:
            return impatient.ask("GET", impatient.to_get(key, "b"), who=impatient.b).body == UPDATE
        except OSError:  # it was itself too slow, on a busy machine
            return False

    eventually(served)
    for wire in wires:
        wire.close()


def test_more_than_there_are_places_for_wait_and_are_served(narrow: Site, key: str) -> None:
    contexts = [narrow.enrolled(f"m{k}") for k in range(20)]

    def put(k: int) -> int:
        return narrow.put(narrow.to_put(f"{key}-{k}", f"m{k}"), UPDATE, contexts[k]).status

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(put, range(20))) == [201] * 20


def test_a_full_disk_is_told_and_costs_nothing_that_was_there(tmp_path: Path) -> None:
    small = tmp_path / "objects"
    small.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    site = Site(tmp_path)
    try:
        assert site.put(site.to_put("u/1"), UPDATE).status == 201
        said = site.put(site.to_put("u/2", most=1 << 21), bytes(1_000_000))
        assert said.status == 507
        assert said.body == b"the hub's disk is full: nothing was stored, try later\n"
        assert site.untouched("u/2")
        assert site.put(site.to_put("u/3"), UPDATE).status == 201, "there is room again for what fits"
        assert site.ask("GET", site.to_get("u/1")).body == UPDATE
    finally:
        site.door.stop()
        subprocess.run(["umount", str(small)], check=True)


def test_a_hub_that_cannot_reach_its_records_says_so_and_no_more(tmp_path: Path) -> None:
    site = Site(tmp_path)

    class Away(dict[str, str]):
        def get(self, device: str, default: object = None) -> str:
            raise (
                Unavailable("cannot read or write /hub/hub.db: locked") if device == "a" else KeyError(device)
            )

    site.held = Away()
    assert site.ask("GET", site.to_get("u/1")).status == 503
    said = site.ask("GET", site.to_get("u/1", "b"), who=site.b)
    assert (said.status, said.body) == (500, b"the hub failed at this: try later\n")
    assert site.door.refused == {"unavailable": 1, "fault": 1}
    site.door.stop()


def test_refusals_are_counted_each_and_logged_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(3):
        site.ask("GET", site.to_get("u/none"))
        site.ask("GET", site.to_get("u/none", "b"))
    site.door.stop()
    assert site.door.refused == {"absent": 3, "device": 3}
    assert len(site.lines) == 2
    assert all("refused at the door (" in line and "device=" in line for line in site.lines)


def test_a_place_that_is_taken_is_told(site: Site) -> None:
    certificate = site.authority.issue("localhost", "", server=True)
    again = Door(
        site.objects, tls(*certificate, site.authority.file), SECRET, lambda _: None, print, print,
        time.time, host="127.0.0.1", port=site.door.port,
    )  # fmt: skip
    with pytest.raises(BadConfig, match="cannot listen"):
        again.start()
    with pytest.raises(BadConfig, match="not the door's"):
        tls(certificate[1], certificate[0], site.authority.file)


DOOR = """
import sys, time
from pathlib import Path
from fleetfold.adapters.objects import FileObjects
from fleetfold.hub.door import Door, tls
folder, certificate, key, authority = map(Path, sys.argv[1:])
door = Door(FileObjects(folder, durable=True), tls(certificate, key, authority), b"s" * 32,
            lambda device: "a1", print, print, lambda: 1e6, host="127.0.0.1", port=0)
door.start()
print(door.port, flush=True)
time.sleep(600)
"""


def test_kill_9_in_an_upload_leaves_nothing_that_anybody_can_see(tmp_path: Path) -> None:
    authority, folder = Authority(tmp_path / "pki"), tmp_path / "objects"
    arguments = [str(p) for p in (folder, *authority.issue("localhost", "", server=True), authority.file)]
    context = ssl.create_default_context(cafile=str(authority.file))
    context.load_cert_chain(*authority.issue("a", "a1"))
    address = HubSigner(SECRET, "", lambda: 1e6).to_deliver("u/x", "a", SOON, 1 << 20)
    head = f"PUT {address} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(UPDATE)}\r\n"
    head += f"Content-Digest: {digest(UPDATE)}\r\n\r\n"
    for dies_in_it in (True, False):
        hub = subprocess.Popen([sys.executable, "-c", DOOR, *arguments], stdout=subprocess.PIPE)
        try:
            assert hub.stdout is not None
            port = int(hub.stdout.readline())
            assert list((folder / "staging").iterdir()) == [], "what the dead one left is swept"
            with context.wrap_socket(
                socket.create_connection(("127.0.0.1", port)), server_hostname="localhost"
            ) as wire:
                wire.sendall(head.encode() + UPDATE[:-1])
                eventually(lambda: any(p.stat().st_size for p in (folder / "staging").iterdir()))
                if dies_in_it:
                    hub.send_signal(signal.SIGKILL)
                    hub.wait()
                    assert not (folder / "u").exists()
                    assert len(list((folder / "staging").iterdir())) == 1
                    continue
                wire.sendall(UPDATE[-1:])
                assert wire.recv(5_000).startswith(b"HTTP/1.1 201 ")
        finally:
            hub.kill()
            hub.communicate()
    assert fetch(FileObjects(folder), "u/x") == UPDATE
