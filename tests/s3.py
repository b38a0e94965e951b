"""A small S3 in this process, from its documentation: an emulator, and no more than the tests need.

It checks of a request what the real one does (signature of version 4, time, Range, If-Match, CRC-32; of parts
their number, order, ETag, checksum and 5 MiB) and notes each in `asked`. 409 and 503 come where a test says
so. It does not show: credentials of roles, policies, late or lost answers, TLS.
"""

import hashlib
import hmac
import threading
from base64 import b64encode
from calendar import timegm
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from time import strptime, time
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape
from zlib import crc32

KEY_ID, SECRET, REGION, BUCKET = "fleet", "a secret of tests", "us-east-1", "bucket"
PAGE = 100
"""Keys of one answer; the real one gives 1,000."""
LEAST = 5 << 20
"""Bytes of a part that is not the last."""
Trouble = Callable[[str, str], tuple[int, str] | None]
"""(method, key) of a request that is good → status and code that it is answered with instead, or None."""


class S3(ThreadingHTTPServer):
    """One bucket. `asked`: (method, key) of each request; `uploads`: the parts of those not ended; `places`:
    their key, and whether their parts have checksums; `ahead`: seconds by which its clock is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.places: dict[str, tuple[str, bool]] = {}
        self.trouble: Trouble = _no_trouble
        self.asked: list[tuple[str, str]] = []
        self.serial = count(1)
        self.ahead = 0.0

    def clear(self) -> None:
        for kept in (self.objects, self.uploads, self.places, self.asked):
            kept.clear()
        self.ahead, self.trouble = 0.0, _no_trouble

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }


@contextmanager
def serving() -> Iterator[S3]:
    server = S3()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Refused(Exception):
    pass


class _Request(BaseHTTPRequestHandler):
    server: S3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, how: object) -> None:
        address = urlsplit(self.path)
        self.query = dict(parse_qsl(address.query, keep_blank_values=True))
        bucket, _, self.key = unquote(address.path[1:]).partition("/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.key))
        try:
            self._check(address.path)
            if bucket != BUCKET:
                raise _Refused(404, "NoSuchBucket")
            if trouble := self.server.trouble(self.command, self.key):
                raise _Refused(*trouble)
            how()  # type: ignore[operator]
        except _Refused as refused:
            status, code, *said = refused.args
            self._say(
                status, f"<Error><Code>{code}</Code><Message>{''.join(said)}</Message></Error>".encode()
            )

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _get(self) -> None:
        if not self.key:
            return self._list()
        if "uploadId" in self.query:
            return self._list_parts()
        data = self.server.objects.get(self.key)
        if data is None:
            raise _Refused(404, "NoSuchKey")
        if self.headers.get("If-Match", etag(data)) != etag(data):
            raise _Refused(412, "PreconditionFailed")
        headers = {"ETag": etag(data), "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._say(200, data, **headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(len(data), int(last or len(data)) + 1)
        if start >= len(data):
            raise _Refused(416, "InvalidRange")
        self._say(206, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}", **headers)

    def _list(self) -> None:
        prefix, after = self.query.get("prefix", ""), self.query.get("continuation-token", "")
        keys = sorted(k for k in self.server.objects if k.startswith(prefix) and k > after)
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[key])}</Size>"
            f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag></Contents>"
            for key in keys[:PAGE]
        )
        more = len(keys) > PAGE
        token = f"<NextContinuationToken>{escape(keys[PAGE - 1])}</NextContinuationToken>" if more else ""
        self._say(
            200,
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{found}"
            "</ListBucketResult>".encode(),
        )

    def _parts(self) -> dict[int, bytes]:
        """Of the upload that the request names."""
        upload = self.query["uploadId"]
        if self.server.places.get(upload, ("",))[0] != self.key:
            raise _Refused(404, "NoSuchUpload")
        return self.server.uploads[upload]

    def _list_parts(self) -> None:
        parts, after = self._parts(), int(self.query.get("part-number-marker", 0))
        numbers = sorted(number for number in parts if number > after)
        checked = self.server.places[self.query["uploadId"]][1]
        found = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>{escape(etag(parts[n]))}</ETag>"
            f"<Size>{len(parts[n])}</Size>"
            + (f"<ChecksumCRC32>{checksum(parts[n])}</ChecksumCRC32>" if checked else "")
            + "</Part>"
            for n in numbers[:PAGE]
        )
        more = len(numbers) > PAGE
        self._say(
            200,
            f"<ListPartsResult><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"<NextPartNumberMarker>{[0, *numbers[:PAGE]][-1]}</NextPartNumberMarker>{found}"
            "</ListPartsResult>".encode(),
        )

    def _completed(self) -> bytes:
        """The object that the parts which the request names make, as S3 checks them."""
        parts, least = self._parts(), LEAST
        checked = self.server.places[self.query["uploadId"]][1]
        named = [
            {field.tag.rpartition("}")[2]: field.text or "" for field in part}
            for part in ElementTree.fromstring(self.body)
        ]
        numbers = [int(part["PartNumber"]) for part in named]
        if not numbers:
            raise _Refused(400, "MalformedXML")
        if numbers != sorted(set(numbers)):
            raise _Refused(400, "InvalidPartOrder")
        for part, number in zip(named, numbers, strict=True):
            data = parts.get(number)
            if data is None or part["ETag"].strip('"') != etag(data).strip('"'):
                raise _Refused(400, "InvalidPart")
            if checked and part.get("ChecksumCRC32") != checksum(data):
                raise _Refused(400, "InvalidRequest")
        if any(len(parts[number]) < least for number in numbers[:-1]):
            raise _Refused(400, "EntityTooSmall")
        return b"".join(parts[number] for number in numbers)

    def _put(self) -> None:
        if self.headers.get("x-amz-checksum-crc32", checksum(self.body)) != checksum(self.body):
            raise _Refused(400, "BadDigest")
        if "uploadId" in self.query:
            number = int(self.query["partNumber"])
            if not 1 <= number <= 10_000:
                raise _Refused(400, "InvalidArgument")
            self._parts()[number] = self.body
        elif self.headers.get("If-None-Match") == "*" and self.key in self.server.objects:
            raise _Refused(412, "PreconditionFailed")
        else:
            self.server.objects[self.key] = self.body
        self._say(200, ETag=etag(self.body))

    def _post(self) -> None:
        if "uploads" in self.query:
            upload = str(next(self.server.serial))
            self.server.uploads[upload] = {}
            self.server.places[upload] = (self.key, "x-amz-checksum-algorithm" in self.headers)
            body = f"<Result><UploadId>{upload}</UploadId></Result>"
        elif "delete" in self.query:
            gone = [n.text or "" for n in ElementTree.fromstring(self.body).iter() if n.tag.endswith("Key")]
            for key in gone:
                self.server.objects.pop(key, None)
            told = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in gone)
            body = f"<DeleteResult>{told}</DeleteResult>"
        else:
            self.server.objects[self.key] = self._completed()
            self._end()
            body = "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
        self._say(200, body.encode())

    def _delete(self) -> None:
        if "uploadId" in self.query:
            self._parts()
            self._end()
        else:
            self.server.objects.pop(self.key, None)
        self._say(204)

    def _end(self) -> None:
        del self.server.uploads[self.query["uploadId"]]
        del self.server.places[self.query["uploadId"]]

    def _check(self, path: str) -> None:
        """The signature, from the address or from the header, as the documentation of version 4 has it."""
        query = dict(self.query)
        if (signature := query.pop("X-Amz-Signature", "")) != "":
            credential, signed = query["X-Amz-Credential"], query["X-Amz-SignedHeaders"]
            at, digest, good = query["X-Amz-Date"], "UNSIGNED-PAYLOAD", int(query["X-Amz-Expires"])
        elif (header := self.headers.get("Authorization", "")).startswith("AWS4-HMAC-SHA256 "):
            fields = dict(part.strip().split("=", 1) for part in header[17:].split(","))
            credential, signed = fields["Credential"], fields["SignedHeaders"]
            signature, good = fields["Signature"], 900
            at, digest = self.headers["x-amz-date"], self.headers["x-amz-content-sha256"]
            if digest not in ("UNSIGNED-PAYLOAD", hashlib.sha256(self.body).hexdigest()):
                raise _Refused(400, "XAmzContentSHA256Mismatch")
        else:
            raise _Refused(403, "AccessDenied")
        who, _, scope = credential.partition("/")
        canonical = "\n".join(
            [
                self.command,
                path,
                "&".join(
                    f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items())
                ),
                *(f"{name}:{self.headers.get(name, '').strip()}" for name in signed.split(";")),
                "",
                signed,
                digest,
            ]
        )
        text = "\n".join(["AWS4-HMAC-SHA256", at, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = ("AWS4" + SECRET).encode()
        for part in [*scope.split("/"), text]:
            key = hmac.digest(key, part.encode(), "sha256")
        if who != KEY_ID or not hmac.compare_digest(key.hex(), signature):
            raise _Refused(403, "SignatureDoesNotMatch")
        if good > 7 * 86_400 or time() + self.server.ahead > timegm(strptime(at, "%Y%m%dT%H%M%SZ")) + good:
            raise _Refused(403, "AccessDenied", "Request has expired")


def _no_trouble(method: str, key: str) -> None:
    return None


@lru_cache(1000)
def checksum(data: bytes) -> str:
    return b64encode(crc32(data).to_bytes(4, "big")).decode()


@lru_cache(1000)
def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
