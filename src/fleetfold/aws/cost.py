"""What a round costs on AWS, in dollars and in seconds: a model, and no measurement of ours on AWS.

    Work: what devices move  ─┐                        ┌─▶ items: count × price (prices.toml)
    Shape: how it is folded  ─┼─▶ plan_fold ─▶ counts ─┤
    Pace: how fast it is     ─┘                        └─▶ steps: seconds, from the last update to the model

Counts follow from the code. Paces are fitted to measurements that others have published (published.csv, from
real Lambda and S3), and said to be assumed where nobody has. All of them stand in `Pace`.
"""

import csv
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from math import ceil

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters import stores
from fleetfold.aws import template, watching
from fleetfold.coordinator import cutting, sources
from fleetfold.errors import BadConfig
from fleetfold.fold.plan import LAMBDA, Plan, Shard, plan_fold
from fleetfold.fold.tensors import Header, bytes_of, parse_header, write_header
from fleetfold.fold.wire import CODECS, Wire
from fleetfold.ledger import Arrival, Folding, Ledger
from fleetfold.messages import Form
from fleetfold.round.state import Round
from fleetfold.settings import Share, count
from fleetfold.view import Priced

MIB = 1 << 20
GIB = 1 << 30
MONTH = 43_800.0
"""Minutes."""


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    usd: float
    per: int
    what: str
    checked: str


class Prices(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one region, on one date."""

    region: str
    date: str
    price: Mapping[str, Price]

    def each(self, name: str) -> float:
        """USD for one."""
        return self.price[name].usd / self.price[name].per


def prices(text: str | None = None) -> Prices:
    """Those of the package, or of a file of the same form. Raises BadConfig."""
    try:
        found = msgspec.convert(tomllib.loads(text if text is not None else _own("prices.toml")), Prices)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BadConfig(f"prices: {error}") from None
    if missing := _own_prices() - found.price.keys():
        raise BadConfig(f"prices: {', '.join(sorted(missing))} is missing")
    return found


@lru_cache(maxsize=1)
def _own_prices() -> frozenset[str]:
    return frozenset(tomllib.loads(_own("prices.toml"))["price"])


def _own(name: str) -> str:
    return (files("fleetfold.aws") / name).read_text()


class Pace(Struct, frozen=True, kw_only=True):
    """How fast functions and S3 are. Fitted: to the rows of published.csv, all of which they give within
    20 %. Assumed: nobody has measured it in this form, and neither have we."""

    vcpu: float = 1769.0  # MB of memory that come with one; AWS's documentation
    at_once: int = 10  # functions that a fresh account runs at once: the published 16 took two turns
    # One read after another, in Python. Fitted.
    request: float = 0.0145  # seconds of a vCPU for each
    alone: float = 67.0 * MIB  # bytes a second, if one function reads
    crowd: float = 1.25  # times as long, if several do
    adds: float = 5200.0 * MIB  # bytes a second that one vCPU adds up
    throttled: float = 1.68  # power of the share of a vCPU that is left of it
    writes: float = 26.0 * MIB  # bytes a second
    start: float = 0.1  # seconds of a vCPU until a warm function works
    # Many reads in flight, in compiled code. Bandwidth is that of the site (plan.LAMBDA): no more than one
    # read after another has shown, though a Rust program of 512 MB read and wrote 2 × 15 GB in 106 s
    # (rustysl.com, "Beyond S3 archive streaming"). Of that program's 0.98 GB/s a vCPU, half is assumed.
    moves: float = 490e6  # bytes a second that one vCPU gets from the network
    # Between the functions. Assumed.
    notice: float = 1.0  # seconds from an object to the function that is told of it, by a queue
    transition: float = 0.05  # seconds of one of the state machine's
    join: float = 0.5  # seconds that S3 takes to make one object of its parts
    cold: float = 1.5  # seconds that a function takes more when it is new


PACE = Pace()
FOLDS = {"full": 5.9e9, "fp32": 5.9e9, "bf16": 2.2e9, "fp16": 2.2e9, "int8": 1.0e9, "topk": 0.5e9}
"""Bytes a second of update that one vCPU folds: half of what a core does here (docs/fold.md). Assumed."""


class Work(Struct, frozen=True, kw_only=True):
    """What a round moves. Bytes are of tensors."""

    model: int
    update: int  # of one
    codec: str = "full"
    invited: int = 20
    arrived: int = 20
    fetched: int = 20  # models, each whole
    fleet: int = 20  # devices that are connected
    minutes: float = 10.0  # from one round to the next


class Shape(Struct, frozen=True, kw_only=True):
    """How a round is folded: in so many shards, by functions of so many MB."""

    shards: int = 1
    memory: int = 256
    arm: bool = False


class Item(Struct, frozen=True):
    """`part`: fold, round, devices, or month: what is paid while nothing runs."""

    part: str
    what: str
    price: str
    count: float
    usd: float


class Step(Struct, frozen=True):
    """`how`: fitted, assumed."""

    what: str
    seconds: float
    how: str


class Bill(Struct, frozen=True, kw_only=True):
    """Of one round; `month`: of one month in which nothing is trained."""

    work: Work
    shape: Shape
    items: tuple[Item, ...]
    steps: tuple[Step, ...]
    month: tuple[Item, ...]
    reason: str

    @property
    def usd(self) -> float:
        return sum(item.usd for item in self.items)

    @property
    def seconds(self) -> float:
        """From the last update that counts to the new model, warm. What devices take is not in it."""
        return sum(step.seconds for step in self.steps)

    def of(self, part: str) -> float:
        """USD of that part of the round."""
        return sum(item.usd for item in self.items if item.part == part)

    @property
    def folding(self) -> float:
        """Seconds of the fold alone: what the published rows measure."""
        return sum(step.seconds for step in self.steps if step.what in FOLDING)


PARTS = (
    ("fold", "to fold"), ("round", "for the round's other steps"), ("devices", "for what devices move"),
)  # fmt: skip
FUNCTIONS, READING = "Lambda, folding", "read and add"
FOLDING = ("start", READING, "write", "finish", "digest")
BY_FOLDERS = FOLDING[:3]


def work(model: Header, *, codec: str = "full", topk: Share = 0.01, devices: int = 20, fleet: int = 0,
         minutes: float = 10.0) -> Work:  # fmt: skip
    """A round in which all that are invited answer. Raises BadConfig."""
    if codec not in CODECS:
        raise BadConfig(f"--codec {codec!r} is not one of {', '.join(CODECS)}")
    wire = Wire(model, Form(codec))
    sent = count(topk, wire.elements) if codec == "topk" else 0
    update = sum(bytes_of(code, shape) for code, shape in wire.layout(sent).values())
    return Work(
        model=model.size - model.begin, update=update, codec=codec, invited=devices, arrived=devices,
        fetched=devices, fleet=max(fleet, devices), minutes=minutes,
    )  # fmt: skip


def plain(size: int) -> Header:
    """A model of that many bytes of fp32, for one that is only imagined."""
    one = {"model": ("F32", (max(1, size // 4),))}
    head = write_header(one, b"{}")
    return parse_header(head, len(head) + bytes_of(*one["model"]))


# A round of ours

_Count = tuple[str, str, str, float]  # part, what, price, how many


def bill(model: Header, work: Work, shape: Shape, prices: Prices, pace: Pace = PACE) -> Bill:
    """What one round costs, folded in that shape."""
    plan = _plan(model, work.arrived, work.update, shape.shards)
    return _billed(plan, work, replace(shape, shards=len(plan.shards)), prices, pace)


@lru_cache(maxsize=512)
def _planned(size: int, updates: int, update: int, shards: int) -> Plan:
    return plan_fold(plain(size), updates, update, replace(LAMBDA, folders=shards))


def _plan(model: Header, updates: int, update: int, shards: int) -> Plan:
    alike = {tensor.dtype for tensor in model.tensors} == {"F32"}
    if alike:  # where its tensors begin and end makes no difference to what is read
        return _planned(model.size - model.begin, updates, update, shards)
    return plan_fold(model, updates, update, replace(LAMBDA, folders=shards))


def _billed(plan: Plan, work: Work, shape: Shape, prices: Prices, pace: Pace) -> Bill:
    steps = tuple(_steps(plan, work, shape, pace))

    def charged(counts: Iterator[_Count]) -> tuple[Item, ...]:
        return tuple(Item(part, what, p, n, n * prices.each(p)) for part, what, p, n in counts if n)

    return Bill(
        work=work, shape=shape, steps=steps, items=charged(_counts(plan, work, shape, steps)),
        month=charged(_idle(work)), reason=plan.reason,
    )  # fmt: skip


def _steps(plan: Plan, work: Work, shape: Shape, pace: Pace) -> Iterator[Step]:
    vcpu = min(1.0, shape.memory / pace.vcpu)
    largest = _largest(plan.shards)
    share = largest / max(1, work.model)
    read = (work.arrived * work.update + (work.model if work.codec in DIFFERENCES else 0)) * share
    waits = LAMBDA.latency * (1 + _reads(plan, work) / len(plan.shards) / plan.depth)
    network = read / LAMBDA.bandwidth + waits
    computed = read / vcpu * (1 / pace.moves + 1 / FOLDS[work.codec])
    yield Step("notice", pace.notice, "assumed")
    yield Step("states", pace.transition * STATES_TO_MODEL, "assumed")
    yield Step("start", pace.start / vcpu, "fitted")
    yield Step(READING, max(network, computed), "fitted")
    yield Step("write", largest / pace.writes, "fitted")
    if len(plan.shards) > 1:
        yield Step("finish", pace.start / vcpu + pace.join, "assumed")
        yield Step("digest", work.model / min(LAMBDA.bandwidth, vcpu * pace.moves), "fitted")


STATES = 12
"""Transitions of a round without its shards (aws.machine): Open, Stands, Cut, Fold how, Fold, Publish,
Stands, Trained, Enough, Patience, Turn, Long enough."""
STATES_TO_MODEL = 6
"""Of them, from the last update to the model."""
MEMORY_OF_OTHERS, MEMORY_OF_FOLDERS = (
    int(template.template()["Parameters"][name]["Default"]) for name in ("Memory", "FoldMemory")
)
"""MB of the functions as they are deployed, if nothing else is said."""
PARTED = layout.PART
DIFFERENCES = ("int8", "topk")
"""Codecs of which an update is the difference to the model that it was trained from."""
POLLS = 5 * 3
"""Requests a minute by which Lambda looks into a queue in which nothing is: five at once, of 20 s each."""
QUEUES = len(template.BATCH)
METRICS = len(watching.DRAWN)
"""Numbers of each run, paid for by the hour in which they are written."""


def _largest(shards: Sequence[Shard]) -> int:
    return max((shard.stop - shard.start for shard in shards), default=0)


def _reads(plan: Plan, work: Work) -> int:
    """Requests that read. Where the fold is cut, one for each span of each update in each shard, or for what
    of it lies in one of the parts that a large update is delivered in; of top-k many small ones. Of
    differences the model is read as well, that they are of."""
    shards = len(plan.shards)
    pieces = max(1, (plan.requests - shards) // max(1, work.arrived))  # of one update, by all folders
    own = 1 if work.codec in DIFFERENCES else 0
    if work.update < sources.LOOSE and work.arrived <= sources.FLOWING:
        return (work.arrived + own) * shards
    spans = {"int8": 2, "topk": 3}.get(work.codec, 1)
    crossed = ceil(work.update / PARTED) - 1  # ends of parts, each in one of the shards
    loose = ceil(work.update / sources.LOOSE) if work.codec == "topk" else 0
    if work.arrived > sources.FLOWING:
        return work.arrived * (pieces * spans + 2 * shards) + own * (pieces + shards)
    return work.arrived * (shards * spans + crossed + loose) + own * shards


def _writes(plan: Plan, work: Work) -> int:
    """Requests that write the model: its parts, and three to begin, list and complete their upload."""
    if len(plan.shards) == 1:
        return 1 if work.model < stores.WHOLE else ceil(work.model / stores.PART) + 2
    longest = max(int(cutting.LONGEST * LAMBDA.part), ceil(work.model / cutting.MANY))
    return 3 + sum(ceil((shard.stop - shard.start) / longest) for shard in plan.shards)


def _counts(plan: Plan, work: Work, shape: Shape, steps: Sequence[Step]) -> Iterator[_Count]:
    n, shards = work.arrived, len(plan.shards)
    cut = shards > 1
    gb = "lambda_gb_second_arm" if shape.arm else "lambda_gb_second"
    took = {step.what: step.seconds for step in steps}
    spent = shards * sum(took[what] for what in BY_FOLDERS) + took.get("finish", 0) + took.get("digest", 0)
    yield "fold", FUNCTIONS, gb, spent * shape.memory / 1024
    yield "fold", "Lambda, invocations to fold", "lambda_request", shards
    yield "fold", "S3, reading updates", "s3_get", _reads(plan, work)
    if cut:
        yield "fold", "S3, reading the model for its digest", "s3_get", ceil(work.model / cutting.PIECE)
    yield "fold", "S3, writing the model", "s3_put", _writes(plan, work)

    # Arrivals and sayings come one by one, and are gathered for a second: a function is given so many calls.
    batches, reports = (max(1, min(n, ceil(60 * work.minutes / template.WINDOW))) for _ in range(2))
    calls = 3 + batches + reports
    others = 1.2 + 0.3 * batches + 0.2 * reports + 0.002 * n  # seconds, assumed
    yield "round", "Lambda, everything else", gb, others * MEMORY_OF_OTHERS / 1024
    yield "round", "Lambda, other invocations", "lambda_request", calls
    yield "round", "Step Functions", "states_transition", STATES + (shards if cut else 0)
    yield "round", "Scheduler", "schedule", 1
    record = 1 + ceil(5 * work.invited / 1024)  # kB of the round's, with a few bytes for each seat
    yield "round", "DynamoDB, writes", "dynamodb_write", (10 + batches) * record + n + 4 * work.invited
    yield "round", "DynamoDB, reads", "dynamodb_read", (20 + 4 * batches) * record + 4 * n + work.invited
    yield "round", "SQS", "sqs_request", 2 * n + 2 * (batches + reports)
    parts = ceil(work.update / PARTED)  # to look at a large update, all of them are listed and opened
    yield "round", "S3, other reads", "s3_get", n * (2 if parts == 1 else 3 + 3 * parts) + 10
    yield "round", "S3, other writes and lists", "s3_put", 3 + (2 * n if parts > 1 else 0)
    yield "round", "CloudWatch, numbers of the run", "metric_month", METRICS * work.minutes / MONTH
    yield "round", "CloudWatch, logs", "logs_gb", (calls + shards) * 2048 / GIB
    days = template.UNCHANGED_DAYS / 30
    yield "round", "S3, a month of the model", "s3_gb_month", work.model / GIB
    yield "round", "S3, retired updates until they go", "s3_gb_month", n * work.update * days / GIB

    yield "devices", "S3, updates of devices", "s3_put", n * ceil(work.update / PARTED)
    yield "devices", "S3, models for devices", "s3_get", work.fetched
    # A task and its withdrawal: in, retained, out, acknowledged. A report, and presence: in, acknowledged.
    yield "devices", "IoT, messages", "iot_message", 8 * work.invited + 3 * n
    yield "devices", "IoT, rules and actions", "iot_rule", 3 * n
    yield "devices", "IoT, connections", "iot_minute", work.fleet * work.minutes
    yield "devices", "models out to the internet", "out_gb", work.fetched * work.model / GIB


def _idle(work: Work) -> Iterator[_Count]:
    yield "month", "IoT, connections", "iot_minute", work.fleet * MONTH
    yield "month", "SQS, looking into empty queues", "sqs_request", QUEUES * POLLS * MONTH
    yield "month", "CloudWatch, alarms", "alarm_month", len(watching.alarms())
    yield "month", "CloudWatch, dashboard", "dashboard_month", 1
    yield "month", "DynamoDB, records", "dynamodb_gb_month", 1e-5 * work.fleet
    yield "month", "DynamoDB, recovery", "dynamodb_recovery", 1e-5 * work.fleet


def cost_of(
    round: Round, arrivals: Mapping[str, Arrival], model: int, folding: tuple[Folding, int] | None,
    prices: Prices, *, memory: int = MEMORY_OF_FOLDERS,
) -> float:  # fmt: skip
    """USD of a round that has ended: what the ledger knows of it, the rest by the model. `model`: bytes of
    the one that was sent; `folding`: how its updates were folded; `memory`: MB of the functions that did."""
    came = [arrival for arrival in arrivals.values() if arrival.size]
    folded = max(1, len(round.arrived) + len(round.credits))
    codecs = [arrival.form.codec for arrival in came]
    work = Work(
        model=model, update=sum(a.size for a in came) // max(1, len(came)),
        codec=max(sorted(set(codecs)), key=codecs.count) if codecs else "full",
        invited=round.invited, arrived=max(folded, len(came)), fleet=round.invited,
        fetched=sum(a.took.download is not None for a in came),
        minutes=max(0.0, round.ended_at - round.opened_at) / 60,
    )  # fmt: skip
    shards = folding[0].shards if folding is not None else 0
    shape = Shape(shards=max(1, shards), memory=memory)
    return bill(plain(model), work, shape, prices).usd


def pricing(ledger: Ledger) -> Priced:
    """What tells the cost of a round in that ledger."""
    asked = prices()
    return lambda round, arrivals, model: cost_of(
        round, arrivals, model, ledger.folding(layout.round(round.run, round.number, round.kind)), asked
    )


# What to choose

SHARDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
MEMORY = (256, 384, 512, 1024, 1769)
"""MB. Below 256 nothing is known of how fast a function reads, and the fold takes up to 200."""


class Chosen(Struct, frozen=True):
    """`others`: what else would have done, or nearly."""

    bill: Bill
    reason: str


def choose(
    model: Header, works: Sequence[Work], prices: Prices, *, budget: float | None = None,
    deadline: float | None = None, shards: int | None = None, memory: int | None = None, arm: bool = False,
    pace: Pace = PACE,
) -> Chosen:  # fmt: skip
    """The shape, and of `works` (the same round by different codecs, the dearest first) the first that does.

    budget: USD of one round; deadline: seconds from the last update to the model. With a deadline the
    cheapest that keeps it, with a budget alone the quickest within it, without either the least product of
    both. Raises BadConfig if none does.
    """
    nearest: Bill | None = None
    for k, work in enumerate(works):
        bills = list(_shapes(model, work, prices, pace, shards, memory, arm))
        fit = [
            b for b in bills
            if (budget is None or b.usd <= budget) and (deadline is None or b.seconds <= deadline)
        ]  # fmt: skip
        if fit:
            if deadline is not None:
                best = min(fit, key=lambda b: (b.usd, b.seconds))
                why = f"the cheapest within {deadline:g} s"
            elif budget is not None:
                best = min(fit, key=lambda b: (b.seconds, b.usd))
                why = f"the quickest for ${budget:.3g} a round"
            else:
                best = min(fit, key=lambda b: (b.of("fold") * b.seconds, b.usd))
                why = "the least dollars × seconds"
            if k:
                why += f"; by {works[k - 1].codec} none is"
            return Chosen(best, f"{_shown(best.shape)}, {work.codec}: {why}")
        by = (lambda b: b.seconds) if deadline is not None else (lambda b: b.usd)
        nearest = min([*bills, *([nearest] if nearest else [])], key=by)
    assert nearest is not None
    wanted = " and ".join(
        ([f"${budget:.3g} a round"] if budget is not None else [])
        + ([f"{deadline:g} s"] if deadline is not None else [])
    )
    raise BadConfig(
        f"no shape keeps {wanted}: the nearest, {_shown(nearest.shape)}, {nearest.work.codec}, takes "
        f"{nearest.seconds:.3g} s and ${nearest.usd:.3g} a round"
    )


def _shapes(
    model: Header, work: Work, prices: Prices, pace: Pace, shards: int | None, memory: int | None, arm: bool
) -> Iterator[Bill]:
    seen = set()
    for folders in (shards,) if shards else SHARDS:
        plan = _plan(model, work.arrived, work.update, folders)
        if len(plan.shards) in seen:
            continue
        seen.add(len(plan.shards))
        for each in (memory,) if memory else MEMORY:
            shape = Shape(shards=len(plan.shards), memory=each, arm=arm)
            yield _billed(plan, work, shape, prices, pace)


def _shown(shape: Shape) -> str:
    many = f"{shape.shards} shards" if shape.shards > 1 else "one shard"
    return f"{many}, {shape.memory} MB{' arm64' if shape.arm else ''}"


# What others have measured


class Measured(Struct, frozen=True, kw_only=True):
    """A row of published.csv: 20 updates of `update_mb` MiB, a shard each function."""

    topology: str
    model: str
    update_mb: float
    functions: int
    memory_mb: int
    wall_s: float
    read_s: float | None
    compute_s: float | None
    cold_wall_s: float
    usd_1000: float


UPDATES = 20
"""Of each published round."""


def published() -> list[Measured]:
    lines = [line for line in _own("published.csv").splitlines() if not line.startswith("#")]
    return [
        msgspec.convert({k: v or None for k, v in row.items()}, Measured, strict=False)
        for row in csv.DictReader(lines)
    ]


class Sequential(Struct, frozen=True):
    """A fold as the published one is: whole shards, one read after another, all in memory."""

    wall: float  # seconds, warm
    billed: float  # seconds of each function that the published bills have in them: without its write
    usd: float


def sequential(row: Measured, prices: Prices, pace: Pace = PACE) -> Sequential:
    """What the model says of a published row, by its size, functions and memory alone.

    The published bills are, to within 1 % in each row whose reading is told: (reading + adding) × memory of
    each function, 20 GETs and one PUT each, and its invocation. Writing is in the wall time alone.
    """
    vcpu = min(1.0, row.memory_mb / pace.vcpu)
    shard = row.update_mb * MIB / row.functions
    slower = pace.crowd if row.functions > 1 else 1.0
    read = UPDATES * (pace.request / vcpu + shard / pace.alone) * slower
    add = UPDATES * shard / (pace.adds * vcpu**pace.throttled)
    waves = ceil(row.functions / pace.at_once)
    billed = read + add
    return Sequential(
        wall=pace.start / vcpu + waves * billed + shard / pace.writes, billed=billed,
        usd=billed_usd(row, billed, prices),
    )  # fmt: skip


def billed_usd(row: Measured, seconds: float, prices: Prices) -> float:
    """A published bill for one round, of functions that read and add for so long."""
    return row.functions * (
        seconds * row.memory_mb / 1024 * prices.each("lambda_gb_second")
        + UPDATES * prices.each("s3_get") + prices.each("s3_put") + prices.each("lambda_request")
    )  # fmt: skip


def best(rows: Iterable[Measured], update_mb: float) -> list[Measured]:
    """Of the rows of that size those that no other beats in both dollars and seconds, the cheapest first."""
    alike = sorted((r for r in rows if r.update_mb == update_mb), key=lambda r: (r.usd_1000, r.wall_s))
    found: list[Measured] = []
    for row in alike:
        if not found or row.wall_s < found[-1].wall_s:
            found.append(row)
    return found
