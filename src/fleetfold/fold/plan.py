"""How a model is cut for the fold: into shards that are folded apart, and those into chunks.

    model ─▶ stretches (one dtype, the same updates) ─▶ shards (parts of an upload) ─▶ chunks (one read each)

Cuts lie where a multiple of CUT floats of the model ends, wherever tensors do: blocks and cells of every
codec and measure lie whole in one shard. What is cut changes no byte of what is folded.
"""

from collections.abc import Iterator, Sequence
from math import ceil

from msgspec import Struct

from fleetfold.fold.tensors import DTYPES, FLOATS, Header, Tensor
from fleetfold.fold.wire import PAGE, Wire

CHUNK = 1 << 17
"""Elements of a chunk where reading is as quick as memory: what a few rows of it take stays in the cache."""
CUT = 1 << 14
"""Floats between two places where a model may be cut: few, so that all folders have as much to do."""
BATCH = 256
"""Updates whose sum in 64 bits is one piece of work. It depends on nothing, so that the order of rounding
depends on the order of updates alone."""
READ = 1 << 20
"""Bytes of one read from a store, about."""
PART = 5 << 20
"""Bytes that each part of an upload to S3 must have, but the last."""


class Shard(Struct, frozen=True):
    """Bytes [start, stop) of the model's tensors, counted from where they begin."""

    start: int
    stop: int


class Stretch(Struct, frozen=True):
    """Neighbouring tensors of one dtype that the same kinds of updates carry: elements folded alike."""

    tensor: Tensor  # the first of them
    start: int  # bytes, counted from where the model's tensors begin
    stop: int
    first: int  # of its elements, among the floats of the model
    carried: tuple[bool, ...]  # by each of the wires that are folded

    @property
    def is_float(self) -> bool:
        return self.tensor.dtype in FLOATS


class Chunk(Struct, frozen=True):
    """`count` elements of a stretch from number `offset` on; `start` its byte, `first` its number among the
    floats of the model."""

    stretch: Stretch
    offset: int
    count: int
    start: int
    first: int


def stretches(model: Header, wires: Sequence[Wire] = ()) -> list[Stretch]:
    """The model's tensors in order, as few stretches as there can be; empty tensors take no room."""
    held = [{tensor.name for tensor in wire.carried} for wire in wires]
    found: list[Stretch] = []
    floats = 0
    for tensor in model.tensors:
        carried = tuple(tensor.name in names for names in held)
        start, stop = tensor.start - model.begin, tensor.stop - model.begin
        if start == stop:
            continue
        last = found[-1] if found else None
        if last is not None and (last.tensor.dtype, last.carried) == (tensor.dtype, carried):
            found[-1] = Stretch(last.tensor, last.start, stop, last.first, carried)
        else:
            found.append(Stretch(tensor, start, stop, floats, carried))
        if tensor.dtype in FLOATS:
            floats += (stop - start) // DTYPES[tensor.dtype].itemsize
    return found


def chunks(stretches: Sequence[Stretch], shard: Shard, most: int) -> Iterator[Chunk]:
    """The shard in pieces of at most `most` elements, cut at multiples of `most` floats of the model."""
    for stretch in stretches:
        item = DTYPES[stretch.tensor.dtype].itemsize
        start, stop = max(stretch.start, shard.start), min(stretch.stop, shard.stop)
        offset, end = (start - stretch.start) // item, (stop - stretch.start) // item
        while offset < end:
            first = stretch.first + offset
            count = min(end - offset, most - (first % most if stretch.is_float else 0))
            yield Chunk(stretch, offset, count, stretch.start + offset * item, first)
            offset += count


class Site(Struct, frozen=True, kw_only=True):
    """What a fold has where it runs."""

    name: str
    bandwidth: float  # bytes a second that one folder reads
    latency: float = 0.0  # seconds until a read answers
    folders: int = 1  # that may work at once
    threads: int = 1  # of one folder
    memory: int = 64 << 20  # bytes that one may take for what it reads ahead
    part: int = 0  # bytes that a part of the output must have, but the last; 0: it is written as one


LAPTOP = Site(name="one machine", bandwidth=8e9, threads=2)
LAMBDA = Site(name="Lambda and S3", bandwidth=60e6, latency=0.03, folders=40, memory=32 << 20, part=PART)
"""60 MB/s a function, which is what one read after another has been seen to bring: 20 updates of 512.3 MiB
in 180 s, a quarter of 20 of 2,952.7 MiB in 255 s (Barrak, "Shard the Gradient, Scale the Model", arXiv
2604.22072, 2026, its replication package). Memory: of a function of 256 MB, of which Python and its libraries
take half."""


class Plan(Struct, frozen=True, kw_only=True):
    """How a fold is to be done, why, and what it costs."""

    shards: tuple[Shard, ...]
    groups: int  # of updates: the sum of each is a piece of work, for a model too small to be cut
    chunk: int  # elements
    depth: int  # reads in flight
    threads: int
    reason: str
    read: int  # bytes
    requests: int
    seconds: float


def plan_fold(model: Header, updates: int, size: int, site: Site) -> Plan:
    """For `updates` of `size` bytes of tensors each, folded into a model of that header.

    As many shards as there are folders, as long as each is a part that S3 takes; chunks as large as the
    memory allows for enough reads in flight to fill the bandwidth.
    """
    whole = sum(t.stop - t.start for t in model.tensors)
    most = max(1, whole // site.part if site.part else 1)
    wanted = min(site.folders, most)
    shards = _cut(model, whole, wanted, site.part)
    chunk, depth = CHUNK, 1
    share = size / max(1, whole)
    largest = max((shard.stop - shard.start for shard in shards), default=0)
    if site.latency:
        # Large enough that few are asked for, small enough that many are held: some are under way while
        # others wait for their first byte.
        chunk = PAGE
        while chunk < 1 << 21 and 4 * chunk < largest and 4 * chunk * share < READ:
            chunk *= 2
        takes = min(4 * chunk, largest) * share / site.bandwidth
        depth = max(4, min(64, ceil(5 * site.latency / max(takes, 1e-3)), site.memory // (8 * chunk)))
    each = min(4 * chunk, largest) * share
    read = updates * size
    pieces = sum(1 for s in shards for _ in chunks(stretches(model), s, chunk))
    requests = updates * pieces + len(shards)
    seconds = read / site.bandwidth / len(shards) + site.latency * requests / len(shards) / depth
    return Plan(
        shards=shards, groups=ceil(updates / BATCH), chunk=chunk, depth=depth, threads=site.threads,
        read=read, requests=requests, seconds=seconds,
        reason=_reason(whole, len(shards), most, site, depth, each),
    )  # fmt: skip


def _cut(model: Header, whole: int, wanted: int, part: int) -> tuple[Shard, ...]:
    """At most `wanted` shards of about one size, each of `part` bytes at least but for the last."""
    cuts, places = [0], stretches(model)
    for k in range(1, wanted):
        at = _allowed(places, max(k * whole // wanted, cuts[-1] + part))
        if at is not None and at > cuts[-1]:
            cuts.append(at)
    return tuple(Shard(a, b) for a, b in zip(cuts, [*cuts[1:], whole], strict=True))


def _allowed(places: Sequence[Stretch], at: int) -> int | None:
    """The nearest byte from `at` on where a cut may lie, before the end of the model."""
    for stretch in places:
        if at <= stretch.start:
            return stretch.start
        if at < stretch.stop and stretch.is_float:
            item = DTYPES[stretch.tensor.dtype].itemsize
            floats = stretch.first + -(-(at - stretch.start) // item)
            cut = stretch.start + (-(-floats // CUT) * CUT - stretch.first) * item
            if cut < stretch.stop:
                return cut
    return None


def _reason(whole: int, shards: int, most: int, site: Site, depth: int, each: float) -> str:
    size = f"a model of {whole / 1e6:.1f} MB"
    if shards == 1:
        why = (
            f"less than two parts of {site.part >> 20} MiB"
            if site.part and most < 2
            else "one folder is what there is"
        )
        first = f"{size} in one shard: {why}"
    elif shards < site.folders:
        first = f"{size} in {shards} shards: no part may be smaller than {site.part >> 20} MiB"
    else:
        first = f"{size} in {shards} shards: one for each folder that {site.name} runs at once"
    if depth == 1:
        return f"{first}; {site.threads} threads, for reading waits for nothing"
    return f"{first}; {depth} reads of {each / 1e6:.1f} MB in flight cover {site.latency * 1e3:.0f} ms each"
