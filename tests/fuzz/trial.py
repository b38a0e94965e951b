"""One file through the gate and the fold, and what must hold whatever the file is.

It is refused with a reason that can be kept and shown, or it is an update by the oracle and folds into a
finite model. Nothing else may happen: no other exception, no warning, no second spent, no memory taken.
"""

import math
import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from fleetfold.coordinator.folding import summary
from fleetfold.coordinator.intake import Quarantined
from fleetfold.errors import BadUpdate
from fleetfold.fold.codecs import Read
from fleetfold.fold.floats import widened
from fleetfold.fold.fold import fold_shard, measured
from fleetfold.fold.gate import Admitted, admit
from fleetfold.fold.recipe import Recipe, Source, Unfit
from fleetfold.fold.robust import median, norms_squared
from fleetfold.fold.tensors import FLOATS, Header, read, write_header
from fleetfold.fold.wire import Wire
from fleetfold.ledger import Arrival
from fleetfold.messages import encode
from tests.fuzz.oracle import objection
from tests.fuzz.valid import Case, Model

SECONDS = 1.0
MEMORY = 64 << 20
RECORD = 1 << 16
"""Bytes that what is kept of one update may take."""


class Fault(AssertionError):
    """The gate or the fold did what it must not."""


class Verdict(Struct, frozen=True):
    admitted: bool
    reason: str = ""  # of a refusal


def tried(case: Case, data: bytes, way: int = 0) -> Verdict:
    """`way`: by which of the fold's paths an admitted file is folded. Raises Fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            verdict = _judged(case, data, way)
        except (Fault, Slow):
            raise
        except MemoryError as error:
            raise Fault(f"took over {MEMORY >> 20} MB") from error
        except Exception as error:
            raise Fault(f"crashed with {type(error).__name__}: {str(error)[:200]!r}") from error
    why = objection(data, case.expected) if verdict.admitted else ""
    if why:
        raise Fault(f"admitted, although {why}")
    return verdict


def _judged(case: Case, data: bytes, way: int) -> Verdict:
    asked = 0

    def reading(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        return data[offset : offset + length]

    try:
        admitted = admit(reading, len(data), case.expected)
    except BadUpdate as error:
        _shown(error.sentence)
        return Verdict(False, error.sentence)
    finally:
        _need(asked <= 16 + 2 * len(data), f"asked for {asked} bytes of a file of {len(data)}")
    _kept(admitted, len(data))
    if case.model is None:
        return Verdict(True)
    try:
        WAYS[way % len(WAYS)](case.model, data, admitted)
    except Unfit as error:
        _shown(error.reason)
        return Verdict(False, error.reason)
    return Verdict(True)


def _need(true: bool, otherwise: str) -> None:
    if not true:
        raise Fault(otherwise)


def _shown(reason: str) -> None:
    """It goes into a record, a file and onto a screen."""
    _need(0 < len(reason) <= 500 and reason.isprintable(), f"a reason that cannot be shown: {reason[:300]!r}")
    _need(bool(msgspec.json.encode(Quarantined("d", reason))), "it cannot be written down")


def _kept(admitted: Admitted, size: int) -> None:
    """The record of its arrival is small, and comes back as it was; its numbers can be averaged."""
    header = admitted.header
    arrival = Arrival(
        device="d", seat=0, state="admitted", size=size, begin=admitted.begin, form=header.form,
        examples=header.examples, metrics=header.metrics, evaluation=header.evaluation, took=header.took,
    )  # fmt: skip
    record = encode(arrival)
    _need(len(record) <= RECORD, f"a record of {len(record)} bytes")
    _need(msgspec.json.decode(record, type=Arrival) == arrival, "its record is not what it was")
    for metrics in summary([arrival, arrival]).values():
        _need(all(v is None or math.isfinite(v) for v in metrics.values()), "a mean that is not finite")


# The ways through the fold


@cache
def _recipe(model: Model) -> Recipe:
    return Recipe(bases={0: _reader(model.data, model.header.begin)})


def _reader(data: bytes, begin: int) -> Read:
    def give(place: int, into: memoryview) -> None:
        part = data[begin + place : begin + place + len(into)]
        _need(place >= 0 and len(part) == len(into), "it reads beyond the file's end")
        into[:] = part

    return give


def _source(model: Model, data: bytes, admitted: Admitted, **more: Any) -> Source:
    wire = Wire(model.header, admitted.header.form)
    return Source(
        name="d", weight=float(admitted.header.examples), wire=wire, read=_reader(data, admitted.begin),
        sent=wire.sent(len(data) - admitted.begin), **more,
    )  # fmt: skip


def _mean(model: Model, data: bytes, admitted: Admitted, **how: Any) -> None:
    source = _source(model, data, admitted)
    _folded(model.header, fold_shard([source], model.header, recipe=_recipe(model), **how))


def _ahead(model: Model, data: bytes, admitted: Admitted) -> None:
    _mean(model, data, admitted, depth=2, chunk=7 if model.header.size < 9000 else 5000)


def _in_chunks(model: Model, data: bytes, admitted: Admitted) -> None:
    _mean(model, data, admitted, chunk=5 if model.header.size < 9000 else 5000)


def _median(model: Model, data: bytes, admitted: Admitted) -> None:
    """Side by side, with an honest update; lengths measured before, as for clipping."""
    source = _source(model, data, admitted)
    recipe = msgspec.structs.replace(_recipe(model), method=median)
    measured([source], model.header, norms_squared, recipe, together=False)
    honest = Source(
        name="honest", weight=1.0, wire=Wire(model.header, type(source.wire.form)()),
        read=_reader(model.data, model.header.begin),
    )  # fmt: skip
    _folded(model.header, fold_shard([honest, source], model.header, recipe=recipe))


def _from_a_file(model: Model, data: bytes, admitted: Admitted) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        source = _source(model, data, admitted, file=(file.fileno(), admitted.begin))
        _folded(model.header, fold_shard([source], model.header, recipe=_recipe(model)))


WAYS: tuple[Callable[[Model, bytes, Admitted], None], ...] = (
    _mean, _mean, _in_chunks, _mean, _median, _mean, _mean, _from_a_file, _mean, _mean, _in_chunks, _mean,
    _median, _mean, _mean, _ahead,
)  # fmt: skip


def _folded(model: Header, pieces: Iterator[memoryview]) -> None:
    """As long as the model, and finite."""
    made = b"".join(pieces)
    _need(len(made) == model.size - model.begin, f"folded into {len(made)} bytes")
    tensors, _ = read(write_header(model.layout, b"{}") + made)
    for tensor in model.tensors:
        array = tensors[tensor.name]
        if tensor.dtype in FLOATS:
            _need(bool(np.isfinite(widened(array)).all()), f"the model's {tensor.name!r} is not finite")
        elif tensor.dtype == "BOOL":
            _need(bool((array.view(np.uint8) <= 1).all()), f"the model's {tensor.name!r} is no boolean")


# Time and memory


class Slow(Exception):
    pass


@contextmanager
def bounded(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """What is done within has so many seconds and so much more memory than the process has now (on Linux)."""

    def ring(*_: object) -> None:
        raise Slow

    before = resource.getrlimit(resource.RLIMIT_DATA)
    old = signal.signal(signal.SIGALRM, ring)
    if os.path.exists("/proc/self/statm"):
        resource.setrlimit(resource.RLIMIT_DATA, (_data() + memory, before[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data() -> int:
    """Bytes of writable memory that the process has, touched or not."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def timed(case: Case, data: bytes, way: int, seconds: float = SECONDS) -> tuple[Verdict, float]:
    """`tried`, within bounds. A hang is interrupted, and is one only if it hangs again: a busy machine may
    stop anybody for a second."""
    for attempt in (1, 2):
        start = time.perf_counter()
        try:
            with bounded(seconds):
                verdict = tried(case, data, way)
            return verdict, time.perf_counter() - start
        except Slow:
            if attempt == 2:
                raise Fault(f"took over {seconds:g} s") from None
    raise AssertionError
