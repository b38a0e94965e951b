"""A fold by functions as on Lambda: real code, real HTTP, an S3 that gives each of them 60 MB/s and no more.

    prepare ─▶ plan ─▶ lambda_function.py fold k, a process each ─▶ parts ─▶ … publish ─▶ the model
                              ▲ lambda_store.py: 60 MB/s a function, 30 ms until an answer begins

Functions do not share a processor, and here they would: they run one after another, and the slowest counts.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from bench.onsite import end, machine, note
from fleetfold.ledger import Arrival, Folding
from fleetfold.round.state import Policy, Round
from fleetfold.settings import Settings

HERE = Path(__file__).parent
BUCKET = "bench"
MEMORY = Path("/dev/shm")
"""Where the objects lie, where there is such: the store's disk is not what is measured."""
CPU = 0.145
"""Of a processor that a function of 256 MB has: 1,769 MB have a whole one (AWS Lambda's documentation)."""
SHOWN = {
    "wall_s": ("seconds in all: the slowest part, then publishing", "3"),
    "parts_s": ("the slowest part", ""),
    "publish_s": ("publishing: the upload is finished, the model is read for its sha256", ""),
    "share": ("of the bandwidth that is used while a part is folded", "0.85"),
    "peak_mb": ("MB of a function at its highest", "200"),
    "import_s": ("seconds until a function has its code and its clients", ""),
    "zip_mb": ("MB of the functions' zip, as it is deployed", "50"),
    "zip_import_s": ("seconds of a new Python until it has the handlers from that zip alone", "1.5"),
    "cpu_s": ("seconds of a processor, of the busiest part", ""),
    "cpu_256mb_s": (f"the same on {CPU:g} of one, as a function of 256 MB has", ""),
    "publish_cpu_s": ("seconds of a processor, of publishing", ""),
    "alone_s": ("seconds in all, by one function", ""),
    "alone_peak_mb": ("MB of it", "200"),
}
"""Figure → what it is, and what it may be, with 8 functions."""


class Given(Struct, frozen=True):
    """What a function is told."""

    round: Round
    arrivals: tuple[Arrival, ...]
    settings: Settings
    folding: Folding


class Done(Struct, frozen=True, kw_only=True):
    """What it tells: wall and processor of its work, the reading in it, its highest memory."""

    seconds: float
    cpu_s: float
    reading_s: float
    read: int
    peak_mb: float
    import_s: float
    digest: str = ""


class Figures(Struct, frozen=True, kw_only=True):
    functions: int
    updates: int
    model_mb: float
    mb_per_s: float
    wall_s: float
    parts_s: float
    publish_s: float
    share: float
    peak_mb: float
    import_s: float
    cpu_s: float
    cpu_256mb_s: float
    publish_cpu_s: float
    alone_s: float
    alone_peak_mb: float
    zip_mb: float = 0.0
    zip_import_s: float = 0.0


def lambda_(
    *,
    functions: Annotated[int, Parameter(validator=Number(gte=1), help="that fold")] = 8,
    updates: Annotated[int, Parameter(validator=Number(gte=1), help="of a round")] = 20,
    megabytes: Annotated[float, Parameter(help="of the model and of each update")] = 42.7,
    bandwidth: Annotated[float, Parameter(help="MB a second that one function is given")] = 60.0,
    latency: Annotated[float, Parameter(help="ms until the store begins to answer")] = 30.0,
    runs: Annotated[int, Parameter(validator=Number(gte=1), help="medians of so many are shown")] = 5,
    at_once: Annotated[bool, Parameter(help="all functions together, on this machine's cores")] = False,
    zip: Annotated[bool, Parameter(help="make the functions' zip as well, by pip")] = True,
    json: Annotated[bool, Parameter(help="print one JSON object", negative="")] = False,
) -> None:
    """Wall, bandwidth, memory and processor of a fold by functions, against one function.

    One after another, unless --at-once: real functions do not share a processor. What is made is compared
    with the fold in one piece.
    """
    machine()
    rate = bandwidth * 1e6
    with _stored(functions, updates, megabytes * 1e6, rate, latency / 1e3) as there:
        found = [there.figures(at_once) for _ in range(runs)]
        alone = there.alone()
    middle = {name: median(each[name] for each in found) for name in found[0]}
    figures = msgspec.convert(
        {
            "functions": functions, "updates": updates, "model_mb": megabytes, "mb_per_s": bandwidth,
            **middle, "alone_s": alone.seconds, "alone_peak_mb": alone.peak_mb,
            **(_zipped(runs) if zip else {}),
        },
        Figures,
    )  # fmt: skip
    if json:
        print(msgspec.json.encode(figures).decode())
    else:
        Console(width=None if sys.stdout.isatty() else 110).print(_table(figures))


def _zipped(runs: int) -> dict[str, float]:
    """Of the zip as `fleetfold aws deploy` makes it, and of one for this Python, which can be run here."""
    from fleetfold.aws.package import OWN, package

    with TemporaryDirectory(prefix="fleetfold-bench-") as folder:
        deployed, own = package(Path(folder)), package(Path(folder), python=OWN)
        code = Path(folder) / "code"
        shutil.unpack_archive(own.path, code)
        script = f"import sys; sys.path.insert(0, {str(code)!r}); import fleetfold.aws.handlers"
        command = [sys.executable, "-I", "-S", "-B", "-c", script]
        took = []
        for _ in range(runs + 1):  # the first one finds the files cold
            since = time.perf_counter()
            subprocess.run(command, check=True, cwd=folder)
            took.append(time.perf_counter() - since)
    note(f"the zip: {own.unzipped / 1e6:.0f} MB unzipped; its first import took {took[0]:.2f} s")
    return {"zip_mb": deployed.zipped / 1e6, "zip_import_s": median(took[1:])}


class _Stored:
    """Updates in the store, and how they are to be folded."""

    def __init__(self, ports: list[int], cut: Given, whole: Given, digest: str, rate: float) -> None:
        self._ports, self._cut, self._whole, self._digest, self._rate = ports, cut, whole, digest, rate
        self._run = 0

    def figures(self, at_once: bool) -> dict[str, float]:
        """Of one fold."""
        shards = range(self._cut.folding.shards)
        names = [("fold", port, str(k)) for k, port in zip(shards, self._ports, strict=False)]
        if at_once:
            folded = _called(names, self._cut)
        else:
            folded = [done for name in names for done in _called([name], self._cut)]
        (published,) = _called([("publish", self._ports[-1], "")], self._cut)
        if published.digest != self._digest:
            sys.exit("what the functions made is not what the fold in one piece is")
        slowest = max(done.seconds for done in folded)
        busiest = max(done.cpu_s for done in folded)
        for k, done in enumerate(folded):
            share = done.read / done.reading_s / self._rate
            note(
                f"part {k}: {done.seconds:.2f} s, {share:.3f} of the bandwidth, "
                f"{done.cpu_s:.2f} s of a processor, {done.peak_mb:.0f} MB"
            )
        return {
            "wall_s": slowest + published.seconds,
            "parts_s": slowest,
            "publish_s": published.seconds,
            "share": min(done.read / done.reading_s / self._rate for done in folded),
            "peak_mb": max(done.peak_mb for done in [*folded, published]),
            "import_s": median(done.import_s for done in folded),
            "cpu_s": busiest,
            "cpu_256mb_s": busiest / CPU,
            "publish_cpu_s": published.cpu_s,
        }

    def alone(self) -> Done:
        """Of one function that folds everything."""
        (done,) = _called([("publish", self._ports[-1], "")], self._whole)
        return done


def _called(names: list[tuple[str, int, str]], given: Given) -> list[Done]:
    """Functions, each a process that is warm when it is called, all at once."""
    with ExitStack() as stack:
        found = []
        for work, port, shard in names:
            command = [sys.executable, "-m", "bench.lambda_function", work, str(port), shard]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent
            )
            stack.callback(end, process)
            found.append(process)
        for process in found:
            _line(process)
        for process in found:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(given).decode() + "\n")
            process.stdin.flush()
        return [msgspec.json.decode(_line(process), type=Done) for process in found]


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit("a function has died")
    return line


@contextmanager
def _stored(functions: int, updates: int, size: float, rate: float, latency: float) -> Iterator[_Stored]:
    """A store with a round's updates, of a process of its own, and the plan for them."""
    with ExitStack() as stack:
        memory = str(MEMORY) if MEMORY.is_dir() else None
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fleetfold-bench-", dir=memory)))
        given, digest = _made(folder / "objects", updates, size)
        command = [sys.executable, "-P", str(HERE / "lambda_store.py"), str(folder), str(rate), str(latency),
                   str(functions + 1)]  # fmt: skip
        store = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(end, store)
        ports = [int(port) for port in _line(store).split()]
        cut, whole = (_planned(ports[-1], given, n) for n in (functions, 1))
        yield _Stored(ports, cut, whole, digest, rate)


def _planned(port: int, given: Given, functions: int) -> Given:
    """The same with the plan for so many functions."""
    import boto3
    from botocore.config import Config
    from msgspec.structs import replace

    from fleetfold.adapters.memory import MemoryRecords
    from fleetfold.adapters.multipart import Uploads
    from fleetfold.adapters.stores import open_store
    from fleetfold.coordinator.cutting import prepare
    from fleetfold.fold.plan import LAMBDA
    from fleetfold.ledger import Ledger, place

    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
                   "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}  # fmt: skip
    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    ledger, site = Ledger(MemoryRecords()), replace(LAMBDA, folders=functions)
    prepare(
        ledger, open_store(f"s3://{BUCKET}"), Uploads(client, BUCKET), site,
        given.round, given.arrivals, given.settings,
    )  # fmt: skip
    client.close()
    found = ledger.folding(place(given.round))
    assert found is not None
    return replace(given, folding=found[0])


def _made(folder: Path, updates: int, size: float) -> tuple[Given, str]:
    """A model and updates of fp32 as files. → what a function is told, but for the plan; the digest of the
    fold in one piece."""
    import numpy as np

    from fleetfold import layout
    from fleetfold.adapters.objects import FileObjects
    from fleetfold.coordinator.folding import fold_round
    from fleetfold.fold.tensors import header_in, write
    from fleetfold.messages import UpdateHeader, encode

    objects, chance, tensors = FileObjects(folder), np.random.default_rng(0), 50
    values = chance.standard_normal(int(size) // 4, np.float32)
    model = write({f"t{k}": part for k, part in enumerate(np.array_split(values, tensors))})
    objects.put(layout.model("b", 0), [model])
    arrivals = []
    for seat in range(updates):
        about = UpdateHeader(run="b", round=1, kind="train", device=f"d{seat}", examples=seat + 1)
        moved = values + np.float32(0.01 * (seat + 1))
        parts = {f"t{k}": part for k, part in enumerate(np.array_split(moved, tensors))}
        data = write(parts, encode(about))
        key = layout.update(layout.round("b", 1, "train"), f"d{seat}")
        objects.put(key, [data])
        arrivals.append(
            Arrival(
                device=f"d{seat}", seat=seat, state="admitted", key=key, size=len(data),
                begin=header_in(data).begin, examples=seat + 1,
            )
        )  # fmt: skip
    round = Round(
        run="b", number=1, base=0, cohort="", invited=updates, opened_at=0.0,
        policy=Policy(target=1, quorum=1, deadline=1.0), arrived=frozenset(range(updates)),
    )  # fmt: skip
    settings = Settings()
    made = fold_round(objects, round, arrivals, settings, header_in(model), None)
    objects.delete(made.model)
    none = Folding(plan="", updates="", count=0, model="")
    return Given(round, tuple(arrivals), settings, none), made.digest


def _table(figures: Figures) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    what = f"{figures.updates} × {figures.model_mb:g} MB, {figures.functions} functions"
    table.add_column(f"{what} at {figures.mb_per_s:g} MB/s")
    for column in ("measured", "at most"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, (words, most) in SHOWN.items():
        table.add_row(words, f"{getattr(figures, name):.3g}", most)
    return table
