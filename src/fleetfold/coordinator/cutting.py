"""A fold in parts, by functions that know nothing of each other: completing the upload publishes the model.

    prepare ─▶ plan, upload ─┬─▶ fold_part 0 ─▶ parts 1, 2 ─┐
                             ├─▶ fold_part 1 ─▶ parts 3, 4 ─┼─▶ assemble ─▶ the model, its sha256
                             └─▶ fold_part 2 ─▶ part 5 ─────┘

A shard has part numbers of its own, and the same updates give it the same bytes: whoever is killed, repeated
or doubled puts what lay there. The record `…/fold` (`Folding`) names the plan that stands.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import accumulate, chain
from math import ceil

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.folding import Made, ModelHeader, fold_round, freshness, is_cut, weight
from fleetfold.coordinator.hiding import Hide
from fleetfold.coordinator.policy import method
from fleetfold.coordinator.sources import header_of, opened
from fleetfold.errors import Unavailable
from fleetfold.fold.fold import fold_shard
from fleetfold.fold.plan import LAMBDA, Shard, Site, plan_fold
from fleetfold.fold.recipe import ChunkFold, Recipe, Unfit
from fleetfold.fold.tensors import Header, write_header
from fleetfold.ledger import TRIES, Arrival, Folding, Ledger, place
from fleetfold.messages import Kind
from fleetfold.ports import Objects, Reader, Uploads, read_on
from fleetfold.round.state import Round
from fleetfold.settings import Settings, Share

ALONE = replace(LAMBDA, folders=1)
"""Where one function folds everything: what cannot be cut."""
LONGEST = 2.5
"""Parts are at most so many times what S3 takes as the least, for each is held in memory."""
MANY = 9_000
"""Parts of a large model, about; S3 takes 10,000."""
MOST_SHARDS = 1_000
PIECE = 4 << 20
"""Bytes of one read, when the model is read back."""
AT_ONCE = 6
"""Such reads in flight."""
HEAD = 64 << 10
"""Bytes of a plan that are read first, which opening it has brought: most are smaller."""


class Slice(Struct, frozen=True):
    """A shard, and the parts that it is put as: the first one's number, and the bytes of each. Those of shard
    0 begin with the model's header."""

    shard: Shard
    number: int
    parts: tuple[int, ...]


class Piece(Struct, frozen=True, omit_defaults=True):
    """An update as it is folded."""

    arrival: Arrival  # of it, what tells where and how its tensors lie
    weight: float
    factor: float = 1.0


class Plan(Struct, frozen=True, kw_only=True):
    """How the updates of a round are folded in parts: all that a function needs to know. An object."""

    run: str
    round: int
    kind: Kind
    base: int
    model: str  # key of the object that is made
    upload: str
    size: int  # bytes of that object
    about: ModelHeader
    header: Header  # of the base, without its metadata
    fold: str
    byzantine: Share
    pieces: tuple[Piece, ...]  # in the order in which they are folded
    slices: tuple[Slice, ...]
    chunk: int  # elements
    depth: int  # reads in flight


class Told(Struct, frozen=True):
    """What the functions of one plan found unfit: keys of updates, and why. None: they folded."""

    plan: str
    unfit: tuple[str, ...] = ()
    reason: str = ""


class Unfinished(Exception):
    """Parts are missing, or the upload is gone: the shards of the plan that stands now are to be folded."""


def prepare(
    ledger: Ledger, objects: Objects, uploads: Uploads, site: Site, round: Round,
    arrivals: Sequence[Arrival], settings: Settings, *, lost: str = "",
) -> None:  # fmt: skip
    """Have a plan stand for folding these arrivals (`Elsewhere`, with the first four given): once, however
    often and by however many it is asked for. Whoever asks for a set that was made smaller since is late and
    changes nothing. `lost`: the plan that cannot be finished any more, and is replaced."""
    updates, at = set_of(arrivals), place(round)
    for _ in range(TRIES):
        found, version = ledger.folding(at) or (None, 0)
        if found is not None:
            same = found.updates == updates and found.plan != lost
            if same or found.count < len(arrivals):
                return
            if found.upload:  # first of all: nobody may finish it once the new one stands
                uploads.abandon(found.model, found.upload)
        model = layout.model(round.run, round.base + 1)
        new = Folding(plan=updates, updates=updates, count=len(arrivals), model=model)
        plan = None
        if is_cut(settings):
            base = header_of(objects, layout.model(round.run, round.base))
            plan = planned(site, round, arrivals, settings, base)
        if plan is not None:
            plan = replace(plan, upload=uploads.begin(model))
            text = msgspec.json.encode(plan)
            digest = hashlib.sha256(text).hexdigest()
            new = replace(new, plan=digest, shards=len(plan.slices), upload=plan.upload, size=plan.size)
            objects.put(layout.fold_plan(at, digest), [text])
        if ledger.save_folding(at, new, version):
            if found is not None:
                objects.delete(layout.fold_plan(at, found.plan))
            return
        if plan is not None:  # somebody else was first
            uploads.abandon(model, plan.upload)
            objects.delete(layout.fold_plan(at, new.plan))
    raise Unavailable(f"lost {TRIES} compare-and-sets on {layout.fold(at)}")


def planned(
    site: Site, round: Round, arrivals: Sequence[Arrival], settings: Settings, base: Header
) -> Plan | None:
    """The plan of that fold, without its upload; None where the model is too small to be cut."""
    size = sum(a.size - a.begin for a in arrivals) // max(1, len(arrivals))
    how = plan_fold(base, len(arrivals), size, replace(site, folders=min(site.folders, MOST_SHARDS)))
    if len(how.shards) < 2:
        return None
    about = _about(round, arrivals)
    head = len(_header(base, about))
    whole = head + base.size - base.begin
    longest = max(int(LONGEST * site.part), ceil(whole / MANY))
    parts = [_parts(s.stop - s.start + (head if k == 0 else 0), longest) for k, s in enumerate(how.shards)]
    firsts = accumulate(map(len, parts[:-1]), initial=1)
    return Plan(
        run=round.run, round=round.number, kind=round.kind, base=round.base,
        model=layout.model(round.run, round.base + 1), upload="", size=whole, about=about,
        header=replace(base, metadata=b""), fold=settings.fold, byzantine=settings.byzantine,
        pieces=tuple(
            Piece(_plain(a), weight(a, settings), freshness(a, round, settings)) for a in arrivals
        ),
        slices=tuple(map(Slice, how.shards, firsts, parts)),
        chunk=how.chunk, depth=how.depth,
    )  # fmt: skip


def load(objects: Objects, round: str, plan: str) -> Plan:
    """The plan with that digest, of the round with that key (`ledger.place`). Raises KeyError if there is
    none: then it was replaced, and nobody waits for what it asks."""
    with closing(objects.open(layout.fold_plan(round, plan))) as reader:
        text, step = b"", HEAD
        while len(found := read_on(reader, len(text), step)) == step:
            text, step = text + found, PIECE
    return msgspec.json.decode(text + found, type=Plan)


def fold_part(objects: Objects, uploads: Uploads, plan: Plan, number: int) -> None:
    """Fold shard `number` (from 0) and put its parts. Raises Unfit, naming the arrivals' keys.

    Memory is that of two parts and of the reads in flight, however large the shard. Where the upload is gone
    nobody waits for it any more: it is finished, or another plan stands.
    """
    slice = plan.slices[number]
    arrivals = [piece.arrival for piece in plan.pieces]
    weights = [piece.weight for piece in plan.pieces]
    with opened(
        objects, plan.run, plan.base, arrivals, weights, plan.header, lazily=True, shard=slice.shard
    ) as (plain, bases):
        sources = [replace(s, factor=p.factor) for s, p in zip(plain, plan.pieces, strict=True)]
        settings = Settings(fold=plan.fold, byzantine=plan.byzantine)
        recipe = Recipe(method=method(settings, None, len(sources)).chunk, base=plan.base, bases=bases)
        head = [_header(plan.header, plan.about)] if number == 0 else []
        shard = fold_shard(sources, plan.header, slice.shard, recipe, depth=plan.depth, chunk=plan.chunk)
        with suppress(_Gone), closing(shard) as folded:
            _put(uploads, plan, slice, chain(head, folded))


def assemble(
    ledger: Ledger, uploads: Uploads, apart: Site, told: Sequence[Told],
    objects: Objects, round: Round, arrivals: Sequence[Arrival], settings: Settings,
    model: Header, own: ChunkFold | None, hide: Hide | None = None, site: Site = ALONE,
) -> Made:  # fmt: skip
    """The round's model, of the parts that were put (`Folder`, with the first four given); what is not cut is
    folded here, and `site` says how far off the objects are. `apart`: the site of `prepare`; `told`: what
    the functions found.

    Raises Unfit for what they found, and Unfinished where parts are missing.
    """
    updates, at = set_of(arrivals), place(round)
    found = ledger.folding(at)
    if found is None or found[0].updates != updates:
        prepare(ledger, objects, uploads, apart, round, arrivals, settings)
        found = ledger.folding(at)
    if found is None or found[0].updates != updates:
        raise Unfinished(f"{at}: a smaller set of updates is folded")
    folding = found[0]
    if hide is not None or not folding.shards:
        return fold_round(objects, round, arrivals, settings, model, own, hide, site)
    mine = [each for each in told if each.plan == folding.plan and each.unfit]
    if mine:
        names = dict.fromkeys(name for each in mine for name in each.unfit)
        raise Unfit(list(names), mine[0].reason)
    header = _header(model, _about(round, arrivals))
    try:
        if not uploads.finish(folding.model, folding.upload, folding.size):
            raise Unfinished(f"{at}: not all parts are there")
        digest = _digest(objects, folding, header)
    except KeyError:  # by a rule of the bucket, or by somebody's hand
        prepare(ledger, objects, uploads, apart, round, arrivals, settings, lost=folding.plan)
        raise Unfinished(f"{at}: the upload is gone, and was begun again") from None
    return Made(folding.model, digest)


def set_of(arrivals: Sequence[Arrival]) -> str:
    """The digest of a set of updates, in their order."""
    return hashlib.sha256("\n".join(arrival.key for arrival in arrivals).encode()).hexdigest()


class _Gone(Exception):
    pass


def _plain(arrival: Arrival) -> Arrival:
    """What the fold asks of it."""
    return Arrival(
        device="", seat=0, state="admitted", key=arrival.key, size=arrival.size, begin=arrival.begin,
        form=arrival.form, base=arrival.base,
    )  # fmt: skip


def _about(round: Round, arrivals: Sequence[Arrival]) -> ModelHeader:
    examples = sum(arrival.examples for arrival in arrivals)
    return ModelHeader(round.run, round.base + 1, round.number, len(arrivals), examples)


def _header(base: Header, about: ModelHeader) -> bytes:
    return write_header(base.layout, msgspec.json.encode(about))


def _parts(size: int, longest: int) -> tuple[int, ...]:
    """As few parts as there can be, of one size but for a byte."""
    count = max(1, -(-size // max(1, longest)))
    return tuple(size // count + (k < size % count) for k in range(count))


def _put(uploads: Uploads, plan: Plan, slice: Slice, data: Iterable[bytes | memoryview]) -> None:
    """One part is on its way while the next one is made."""

    def put(number: int, part: bytearray) -> None:
        try:
            uploads.put(plan.model, plan.upload, number, part)
        except KeyError:
            raise _Gone from None

    with ThreadPoolExecutor(1) as pool:
        under_way: Future[None] | None = None
        for number, part in enumerate(_filled(data, slice.parts), slice.number):
            if under_way is not None:
                under_way.result()
            under_way = pool.submit(put, number, part)
        if under_way is not None:
            under_way.result()


def _filled(data: Iterable[bytes | memoryview], sizes: Sequence[int]) -> Iterator[bytearray]:
    """The bytes in pieces of these sizes."""
    wanted = iter(sizes)
    size = next(wanted)
    room = bytearray()
    for part in data:
        rest = memoryview(part).cast("B")
        while len(rest) >= size - len(room):
            taken = size - len(room)
            room += rest[:taken]
            yield room
            rest, room, size = rest[taken:], bytearray(), next(wanted, 0)
            if not size:
                return
        room += rest


def _digest(objects: Objects, folding: Folding, header: bytes) -> str:
    """The sha256 of the finished object. Raises KeyError if it begins otherwise: then it is of other updates,
    fewer or more."""
    digest = hashlib.sha256()
    with closing(objects.open(folding.model)) as reader, closing(_ahead(reader, folding.size)) as pieces:
        for offset, data in pieces:
            if offset == 0 and data[: len(header)] != header[: len(data)]:
                raise KeyError(folding.model)
            digest.update(data)
    return digest.hexdigest()


def _ahead(reader: Reader, size: int) -> Generator[tuple[int, bytearray], None, None]:
    """The object in order, many reads in flight."""

    def piece(offset: int) -> bytearray:
        data = bytearray(min(PIECE, size - offset))
        if reader.read(offset, memoryview(data)) != len(data):
            raise KeyError("it is shorter than it was")
        return data

    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting: deque[tuple[int, Future[bytearray]]] = deque()
        for offset in range(0, size, PIECE):
            waiting.append((offset, pool.submit(piece, offset)))
            if len(waiting) == 2 * AT_ONCE:
                at, future = waiting.popleft()
                yield at, future.result()
        for at, future in waiting:
            yield at, future.result()
