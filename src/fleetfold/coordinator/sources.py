"""Updates and models as the fold reads them: by range, from where their tensors begin.

    arrival record ─▶ where the tensors begin, how they are written ─▶ Source          no header is read again

An update that is not there any more, or is shorter than it was, is Unfit; a model that is not is a KeyError.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from threading import Lock

from fleetfold import layout
from fleetfold.fold.codecs import Read
from fleetfold.fold.plan import Shard
from fleetfold.fold.recipe import Source, Unfit
from fleetfold.fold.tensors import PREFIX, Header, header_length, parse_header
from fleetfold.fold.wire import Wire
from fleetfold.ledger import Arrival
from fleetfold.ports import Objects, Reader, read_on

OPEN = 256
"""Updates whose files are all held open while they are folded."""
FLOWING = 64
"""Updates that may be streamed at once: each is a connection, which the store ends when it stands still."""
LOOSE = 1 << 20
"""Bytes that are asked for at once where only the update says what of it is needed: so small an update as a
whole."""
HEADER_LIMIT = 1 << 28
"""Bytes of header that a file of our own may have."""
GONE = "is no longer the file that was admitted"


@contextmanager
def opened(
    objects: Objects, run: str, base: int, arrivals: Sequence[Arrival], weights: Sequence[float],
    model: Header, at_once: int = 1, *, lazily: bool = False, shard: Shard | None = None,
) -> Iterator[tuple[list[Source], Mapping[int, Read]]]:  # fmt: skip
    """The arrivals as sources, in their order, and the models of the run that they were trained from, with
    version `base`, by version; `at_once`: so many are opened at a time. Raises Unfit. `lazily`: each is
    opened when it is first read, `model` is the header of version `base`, and all read many at once; of
    `shard` alone, which a store is asked for by few requests."""
    wires = lru_cache(maxsize=None)(lambda form: Wire(model, form))
    with ExitStack() as stack:
        files = _Files(objects, stack, hold=len(arrivals) <= OPEN, lazily=lazily)
        flow = getattr(objects, "flow", None) if shard is not None and len(arrivals) <= FLOWING else None
        versions = {base, *(arrival.base for arrival in arrivals)}
        bases = {version: files.model(run, version) for version in versions}
        if lazily:
            key, begin = layout.model(run, base), model.begin
            bases[base] = files.read(key, begin)
            if flow is not None and shard is not None:
                own = flow(key, model.size, [(begin + shard.start, begin + shard.stop)])
                bases[base] = _whole(stack.enter_context(closing(own)), key, begin)

        def source(arrival: Arrival, weight: float) -> Source:
            wire = wires(arrival.form)
            if flow is None or shard is None:
                return _source(files, arrival, wire, weight)
            begin, sent = arrival.begin, wire.sent(arrival.size - arrival.begin)
            spans = [(begin + a, begin + b) for a, b in wire.spans(shard.start, shard.stop, sent)]
            most = LOOSE if arrival.form.codec == "topk" else 0
            reader = stack.enter_context(closing(flow(arrival.key, arrival.size, spans, most)))
            if arrival.size <= LOOSE:
                return _source(
                    files, arrival, wire, weight, _at_once(reader, arrival.key, begin, arrival.size)
                )
            return _source(files, arrival, wire, weight, _whole(reader, arrival.key, begin))

        if at_once > 1:
            with ThreadPoolExecutor(at_once) as pool:
                sources = list(pool.map(source, arrivals, weights))
        else:
            sources = list(map(source, arrivals, weights))
        yield sources, bases


def header_of(objects: Objects, key: str) -> Header:
    """The header of a file of tensors. Raises KeyError, or BadUpdate if it is not one."""
    size = objects.size(key)
    if size is None:
        raise KeyError(key)
    with closing(objects.open(key)) as reader:
        length = header_length(read_on(reader, 0, min(PREFIX, size)), size, HEADER_LIMIT)
        return parse_header(read_on(reader, 0, length), size)


class Headers:
    """Headers of files, which never change: the newest of them, so many that they have `most` tensors."""

    def __init__(self, objects: Objects, most: int = 1 << 16) -> None:
        self._objects, self._most, self._tensors = objects, most, 0
        self._known: dict[str, Header] = {}

    def of(self, key: str) -> Header:
        """As `header_of`."""
        if key not in self._known:
            self.note(key, header_of(self._objects, key))
        return self._known[key]

    def note(self, key: str, header: Header) -> None:
        """Somebody has read it."""
        if key in self._known:
            return
        self._known[key] = header
        self._tensors += len(header.tensors)
        while self._tensors > self._most and len(self._known) > 1:
            self._tensors -= len(self._known.pop(next(iter(self._known))).tensors)


class _Files:
    """Files of tensors, read from where their tensors begin. `hold`: each is kept open until the fold is
    done; else it is opened for each read, for no process may have 10,000 of them. `lazily`: it is opened when
    it is first read, by one thread of many."""

    def __init__(self, objects: Objects, stack: ExitStack, *, hold: bool, lazily: bool) -> None:
        self._objects, self._stack, self._hold, self._lazily = objects, stack, hold, lazily
        self.held: dict[str, tuple[int, int]] = {}  # those that are files: open, and where tensors begin

    def read(self, key: str, begin: int) -> Read:
        """Raises KeyError if it is to be opened and is not there, or when it is read and is not there."""
        opening = Lock()

        @lru_cache(maxsize=1)
        def held() -> Reader:
            return self._stack.enter_context(closing(self._objects.open(key)))

        if self._hold and not self._lazily and (file := held().file) is not None:
            self.held[key] = (file, begin)

        def read(place: int, into: memoryview) -> None:
            if self._hold:
                with opening:
                    reader = held()
                done = reader.read(begin + place, into)
            else:
                with closing(self._objects.open(key)) as reader:
                    done = reader.read(begin + place, into)
            if done != len(into):
                raise KeyError(key)

        return read

    def model(self, run: str, version: int) -> Read:
        """A model of the run; nothing is opened before it is read."""
        key = layout.model(run, version)

        @lru_cache(maxsize=1)
        def opened() -> Read:
            return self.read(key, header_of(self._objects, key).begin)

        return lambda place, into: opened()(place, into)


def _whole(reader: Reader, key: str, begin: int) -> Read:
    """Reads what was asked for, or raises KeyError."""

    def read(place: int, into: memoryview) -> None:
        if reader.read(begin + place, into) != len(into):
            raise KeyError(key)

    return read


def _at_once(reader: Reader, key: str, begin: int, size: int) -> Read:
    """The same, of a small update: one request brings all of it, when the first of it is wanted."""
    asking = Lock()

    @lru_cache(maxsize=1)
    def tensors() -> memoryview:
        data = memoryview(bytearray(size - begin))
        if reader.read(begin, data) != len(data):
            raise KeyError(key)
        return data

    def read(place: int, into: memoryview) -> None:
        with asking:
            data = tensors()[place : place + len(into)]
        if len(data) != len(into):
            raise KeyError(key)
        into[:] = data

    return read


def _source(
    files: _Files, arrival: Arrival, wire: Wire, weight: float, flowing: Read | None = None
) -> Source:
    try:
        plain = flowing or files.read(arrival.key, arrival.begin)
    except KeyError:
        raise Unfit([arrival.key], GONE) from None

    def read(place: int, into: memoryview) -> None:
        try:
            plain(place, into)
        except KeyError:
            raise Unfit([arrival.key], GONE) from None

    return Source(
        name=arrival.key, weight=weight, wire=wire, read=read, base=arrival.base,
        file=files.held.get(arrival.key),
        sent=wire.sent(arrival.size - arrival.begin),
    )  # fmt: skip
