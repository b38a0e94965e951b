"""An S3 for measuring, a process of its own: as fast to each function as the real one, and no faster.

    one port a function: answers begin after LATENCY, all its connections together get RATE bytes a second,
    and put as many                                           lambda_store.py FOLDER RATE LATENCY PORTS

Bytes go from file to socket in the kernel. Signatures are not looked at. On stdout: the ports.
"""

import os
import sys
import threading
import time
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree

QUANTUM = 64 << 10
"""Bytes that one connection gets before it is another one's turn."""
PARTS = ".parts"
"""Behind the name of an object: a list of the files that it is made of. Nothing is copied."""
SLACK = 0.01
"""Seconds of sending that may be caught up with."""


class Rate:
    """So many bytes a second, whoever asks."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free, self._lock = rate, 0.0, threading.Lock()

    def wait(self, size: int) -> None:
        with self._lock:
            now = time.perf_counter()
            start = max(self._free, now - SLACK)
            self._free = start + size / self._rate
        if start + size / self._rate > now:
            time.sleep(start + size / self._rate - now)


class Store(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    serial = count(1)

    def __init__(self, folder: Path, rate: float, latency: float) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.folder, self.latency = folder, latency
        self.down, self.up = Rate(rate), Rate(rate)


class _Request(BaseHTTPRequestHandler):
    server: Store
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 256 << 10

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _place(self) -> tuple[Path, dict[str, str]]:
        address = urlsplit(self.path)
        key = unquote(address.path[1:]).partition("/")[2]
        return self.server.folder / "objects" / key, dict(parse_qsl(address.query, keep_blank_values=True))

    def _parts(self, query: dict[str, str]) -> Path:
        return self.server.folder / "uploads" / query["uploadId"]

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        place, query = self._place()
        time.sleep(self.server.latency)
        if "uploadId" in query:
            return self._list(query)
        pieces = _pieces(place)
        if "list-type" in query or not pieces:
            empty = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            missing = b"<Error><Code>NoSuchKey</Code></Error>"
            return self._say(200, empty) if "list-type" in query else self._say(404, missing)
        size = sum(piece.stat().st_size for piece in pieces)
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(size, int(last or size) + 1)
        self.send_response_only(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{size}-{pieces[0].stat().st_mtime_ns}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        begin = 0
        for piece in pieces if self.command == "GET" else ():
            end = begin + piece.stat().st_size
            if start < min(end, stop):
                with piece.open("rb") as file:
                    while start < min(end, stop):
                        step = min(QUANTUM, end - start, stop - start)
                        self.server.down.wait(step)
                        start += os.sendfile(self.connection.fileno(), file.fileno(), start - begin, step)
            begin = end

    def do_PUT(self) -> None:
        place, query = self._place()
        left = int(self.headers.get("Content-Length", 0))
        time.sleep(self.server.latency)
        if "uploadId" in query:
            place = self._parts(query) / f"{int(query['partNumber']):05}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_name(place.name + ".new").open("wb") as file:
            while left:
                data = self.rfile.read(min(left, QUANTUM))
                self.server.up.wait(len(data))
                file.write(data)
                left -= len(data)
        os.replace(file.name, place)
        self._say(200, ETag=f'"{place.name}"')

    def do_POST(self) -> None:
        place, query = self._place()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self.server.latency)
        if "uploads" in query:
            upload = f"{os.getpid()}-{next(self.server.serial)}"
            (self.server.folder / "uploads" / upload).mkdir(parents=True)
            return self._say(200, f"<Result><UploadId>{upload}</UploadId></Result>".encode())
        numbers = [int(n.text or 0) for n in ElementTree.fromstring(body).iter() if n.tag.endswith("Number")]
        place.parent.mkdir(parents=True, exist_ok=True)
        parts = [str(self._parts(query) / f"{number:05}") for number in numbers]
        place.with_name(place.name + PARTS).write_text("\n".join(parts))
        tag = md5(body, usedforsecurity=False).hexdigest()
        text = f'<CompleteMultipartUploadResult><ETag>"{tag}"</ETag></CompleteMultipartUploadResult>'
        self._say(200, text.encode())

    def do_DELETE(self) -> None:
        self._say(204)

    def _list(self, query: dict[str, str]) -> None:
        found = "".join(
            f"<Part><PartNumber>{int(part.name)}</PartNumber><ETag>&quot;{part.name}&quot;</ETag>"
            f"<Size>{part.stat().st_size}</Size></Part>"
            for part in sorted(self._parts(query).glob("[0-9]????"))
        )
        body = f"<ListPartsResult><IsTruncated>false</IsTruncated>{found}</ListPartsResult>"
        self._say(200, body.encode())


def _pieces(place: Path) -> list[Path]:
    """The files that are the object there, one after another; none if there is none."""
    parts = place.with_name(place.name + PARTS)
    if parts.is_file():
        return [Path(part) for part in parts.read_text().split("\n")]
    return [place] if place.is_file() else []


def main(folder: str, rate: str, latency: str, ports: str) -> None:
    stores = [Store(Path(folder), float(rate), float(latency)) for _ in range(int(ports))]
    for store in stores:
        threading.Thread(target=store.serve_forever, args=(0.1,), daemon=True).start()
    print(" ".join(str(store.server_port) for store in stores), flush=True)
    sys.stdin.read()  # until whoever started it closes it, or dies


if __name__ == "__main__":
    main(*sys.argv[1:])
