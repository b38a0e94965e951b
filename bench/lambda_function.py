"""One function of the fold in a process of its own: lambda_function.py WORK PORT [SHARD], told on stdin.

It imports and makes its clients as the function does when it is cold, asks with each of them once, waits for
a line, does its work as when it is warm, and prints what that took: one JSON object.
"""

import os
import sys
import time

BEGUN = time.perf_counter()
WORK, PORT = sys.argv[1], sys.argv[2]
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_EC2_METADATA_DISABLED": "true",
}

import threading  # noqa: E402
from contextlib import closing  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import boto3  # noqa: E402
import msgspec  # noqa: E402
from botocore.config import Config  # noqa: E402

from bench.lambda_ import BUCKET, Done, Given  # noqa: E402
from fleetfold import layout  # noqa: E402
from fleetfold.adapters.memory import MemoryRecords  # noqa: E402
from fleetfold.adapters.multipart import Uploads  # noqa: E402
from fleetfold.adapters.stores import StoreObjects, open_store  # noqa: E402
from fleetfold.coordinator.cutting import ALONE, assemble, fold_part, load  # noqa: E402
from fleetfold.coordinator.sources import header_of  # noqa: E402
from fleetfold.ledger import Ledger, place  # noqa: E402


class Watched:
    """Objects, and from when to when they were read, and how much."""

    def __init__(self, objects: StoreObjects) -> None:
        self._objects, self._lock = objects, threading.Lock()
        self.put, self.size, self.list, self.delete = objects.put, objects.size, objects.list, objects.delete
        self.first, self.last, self.read = float("inf"), 0.0, 0

    def open(self, key: str) -> Any:
        since = time.perf_counter()
        return _Watched(self._objects.open(key), self, since)

    def seen(self, since: float, size: int) -> None:
        with self._lock:
            self.first, self.last = min(self.first, since), max(self.last, time.perf_counter())
            self.read += size


class _Watched:
    file: int | None = None

    def __init__(self, reader: Any, watched: Watched, since: float) -> None:
        self._reader, self._watched, self._since, self.close = reader, watched, since, reader.close

    def read(self, offset: int, into: memoryview) -> int:
        since, self._since = min(self._since, time.perf_counter()), float("inf")
        done = int(self._reader.read(offset, into))
        self._watched.seen(since, done)
        return done


def main() -> None:
    store = open_store(f"s3://{BUCKET}")
    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    uploads = Uploads(client, BUCKET)
    ready = time.perf_counter()
    uploads.abandon("warm", uploads.begin("warm"))
    print(msgspec.json.encode({"import_s": ready - BEGUN}).decode(), flush=True)
    given = msgspec.json.decode(sys.stdin.readline(), type=Given)
    at, cpu, since = place(given.round), time.process_time(), time.perf_counter()
    watched, digest = Watched(store), ""
    if WORK == "fold":
        plan = load(store, at, given.folding.plan)
        fold_part(watched, uploads, plan, int(sys.argv[3]))
    else:
        ledger = Ledger(MemoryRecords())
        ledger.save_folding(at, given.folding, 0)
        header = header_of(store, layout.model(given.round.run, given.round.base))
        made = assemble(
            ledger, uploads, ALONE, (), watched, given.round, given.arrivals, given.settings, header, None
        )
        digest = made.digest
    took = time.perf_counter() - since
    done = Done(
        seconds=took, cpu_s=time.process_time() - cpu, reading_s=watched.last - watched.first,
        read=watched.read, peak_mb=_peak_mb(), import_s=ready - BEGUN, digest=digest,
    )  # fmt: skip
    with closing(client):
        print(msgspec.json.encode(done).decode(), flush=True)


def _peak_mb() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main()
