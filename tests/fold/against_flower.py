"""The same replies through Flower's strategies and through our folds: largest absolute differences.

    PYTHONPATH=src VENV_WITH_FLWR/bin/python tests/fold/against_flower.py

A script, no test: it needs flwr (tried with 1.41), numpy and msgspec. Fails where `difference` is above
1e-6. Beside it, how far either is from the same formulas in 64 bits. An optimizer divides by √v + tau, so a
mean rounded in 32 bits comes out up to rate / tau = 100 times as wrong: its formula is compared on
Flower's own mean and from one model each round, and `own way` lets each go on from its own.
"""

import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleetfold.fold.robust import (
    CELL,
    ROBUST,
    SELECTIONS,
    distances,
    rounded,
)
from fleetfold.fold.server_opt import OPTIMIZERS, Adam, Momentum, Optimizer, first_state, step

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import strategy as flower
except ImportError:
    sys.exit("flwr is not installed here: run this with the python of a venv that has it")

Block = NDArray[Any]

LIMIT = 1e-6
ROUNDS = 8
SHAPES = {"conv": (3, 3, 8, 16), "dense": (300, 120), "bias": (120,), "scale": ()}
ELEMENTS = sum(int(np.prod(shape)) for shape in SHAPES.values())


def identify() -> None:
    """Messages can only be made by a process that says whose task it is (private, from 1.38 on)."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def record(row: Block) -> Any:
    """One flat model or update as Flower's arrays."""
    arrays, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        arrays[name] = Array(row[start : start + size].reshape(shape))
        start += size
    return ArrayRecord(arrays)


def flat(arrays: Any) -> Block:
    return np.concatenate([arrays[name].numpy().ravel() for name in SHAPES])


def replies(block: Block, weights: Block) -> list[Any]:
    asked = [Message(RecordDict(), node, "train") for node in range(1, len(block) + 1)]
    contents = [
        RecordDict({"arrays": record(row), "metrics": MetricRecord({"num-examples": int(weight)})})
        for row, weight in zip(block, weights, strict=True)
    ]
    return [Message(content, reply_to=message) for content, message in zip(contents, asked, strict=True)]


def updates(seed: int, n: int, model: Block, liars: int = 0) -> tuple[Block, Block]:
    """([n, elements] of fp32 after local training, [n] examples), the last `liars` of them far away."""
    chance = np.random.default_rng(seed)
    # An update's delta: a shared direction and its own noise, of the size that training makes.
    block = model + 0.03 * chance.normal(size=ELEMENTS) + 0.01 * chance.normal(size=(n, ELEMENTS))
    block[n - liars :] = 5 * chance.normal(size=(liars, ELEMENTS))
    return block.astype(np.float32), chance.integers(10, 500, n)


def first_model() -> Block:
    return np.random.default_rng(99).normal(size=ELEMENTS).astype(np.float32) * np.float32(0.3)


def by_mean(block: Block, weights: Block) -> Block:
    """The weighted mean as the fold's: in 64 bits, in order, rounded once."""
    total = np.zeros(block.shape[1])
    for row, share in zip(block, weights / weights.sum(), strict=True):
        total += row * share
    return total.astype(block.dtype)


class Nodes:
    """As much of a Grid as choosing the nodes of a round takes."""

    def get_node_ids(self) -> list[int]:
        return [1, 2]


class Row(Struct):
    """Largest absolute differences: between the two, from 64 bits, and after rounds on their own."""

    name: str
    difference: float
    flower: float
    ours: float
    own_way: float | None = None


def compare_folds(n: int, liars: int) -> list[Row]:
    block, weights = updates(n, n, first_model(), liars)
    wide, shares = block.astype(np.float64), weights / weights.sum()
    rows = []

    def compare(name: str, strategy: Any, ours: Block, exact: Block) -> None:
        theirs = flat(strategy.aggregate_train(1, replies(block, weights))[0])
        rows.append(Row(f"{name}, n={n}", gap(ours, theirs), gap(theirs, exact), gap(ours, exact)))

    compare("FedMedian", flower.FedMedian(), ROBUST["median"](0.0)(block, shares), np.median(wide, axis=0))
    for cut in (0.1, 0.2, 0.4):
        drop = int(cut * n)
        exact = np.sort(wide, axis=0)[drop : n - drop].mean(axis=0)
        ours = ROBUST["trimmed_mean"](cut)(block, shares)
        compare(f"FedTrimmedAvg beta={cut}", flower.FedTrimmedAvg(beta=cut), ours, exact)
    cells = [distances(block[:, i : i + CELL]) for i in range(0, ELEMENTS, CELL)]
    table = rounded(sum(cells[1:], cells[0]))
    for word, kind, keeps in (
        ("krum", flower.Krum, (1,)),
        ("multi_krum", flower.MultiKrum, (1, 3, n - liars)),
    ):
        for keep in keeps:
            told = {"num_nodes_to_select": keep} if word == "multi_krum" else {}
            chosen = list(SELECTIONS[word](table, liars, keep))
            exact = np.average(wide[chosen], axis=0, weights=weights[chosen])
            ours = by_mean(block[chosen], weights[chosen])
            strategy = kind(num_malicious_nodes=liars, **told)
            compare(f"{kind.__name__} f={liars} keep={keep}", strategy, ours, exact)
    return rows


THEIRS = {
    "momentum": flower.FedAvgM,
    "adagrad": flower.FedAdagrad,
    "adam": flower.FedAdam,
    "yogi": flower.FedYogi,
}
OURS = {"rate": ("server_learning_rate", "eta"), "momentum": ("server_momentum",), "beta1": ("beta_1",),
        "beta2": ("beta_2",), "tau": ("tau",)}  # fmt: skip


def theirs_of(kind: Callable[..., Any], optimizer: Optimizer) -> Any:
    """Flower's strategy, told every setting of ours."""
    takes = inspect.signature(kind).parameters
    told = {n: getattr(optimizer, s) for s in optimizer.__struct_fields__ for n in OURS[s] if n in takes}
    return kind(min_train_nodes=2, **told)


def their_round(strategy: Any, number: int, model: Any, block: Block, weights: Block) -> Any:
    list(strategy.configure_train(number, model, ConfigRecord(), Nodes()))
    if isinstance(strategy, flower.FedAvgM):
        strategy.current_arrays = model  # it would keep its own
    return strategy.aggregate_train(number, replies(block, weights))[0]


def compare_optimizer(kind: Callable[..., Any], optimizer: Optimizer, n: int) -> Row:
    """Several rounds. Each side carries its own state; the model is the same at the start of a round."""
    strategy, model = theirs_of(kind, optimizer), first_model()
    state, exact_state = first_state(optimizer, model), first_state(optimizer, model.astype(np.float64))
    row = Row("", 0.0, 0.0, 0.0, own_way(kind, optimizer, n))
    for number in range(1, ROUNDS + 1):
        block, weights = updates(number, n, model)
        arrays = their_round(strategy, number, record(model), block, weights)
        mean = flat(flower.FedAvg().aggregate_train(number, replies(block, weights))[0])
        exact, exact_state = step(
            optimizer, model.astype(np.float64), mean.astype(np.float64), exact_state, number
        )
        model, state = step(optimizer, model, mean, state, number)
        theirs = flat(arrays)
        row.difference = max(row.difference, gap(model, theirs))
        row.flower, row.ours = max(row.flower, gap(theirs, exact)), max(row.ours, gap(model, exact))
    settings = " ".join(f"{name}={getattr(optimizer, name):g}" for name in optimizer.__struct_fields__)
    row.name = f"{kind.__name__} {settings} → {theirs.dtype}"
    return row


def own_way(kind: Callable[..., Any], optimizer: Optimizer, n: int) -> float:
    """The largest difference where each side averages itself, and goes on from its own model, for rounds
    in which its devices add the same deltas to it."""
    strategy, ours = theirs_of(kind, optimizer), first_model()
    arrays, state, largest = record(ours), first_state(optimizer, ours), 0.0
    for number in range(1, ROUNDS + 1):
        block, weights = updates(number, n, flat(arrays))
        arrays = their_round(strategy, number, arrays, block, weights)
        block, _ = updates(number, n, ours)
        ours, state = step(optimizer, ours, by_mean(block, weights), state, number)
        largest = max(largest, gap(ours, flat(arrays)))
    return largest


def defaults(kind: Callable[..., Any], optimizer: Optimizer) -> list[str]:
    """Where our default is another than Flower's."""
    takes = inspect.signature(kind).parameters
    return [
        f"{kind.__name__}: {name} = {takes[name].default}, ours {setting} = {getattr(optimizer, setting)}"
        for setting in optimizer.__struct_fields__
        for name in OURS[setting]
        if name in takes and takes[name].default != getattr(optimizer, setting)
    ]


def gap(a: Block, b: Block) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    identify()
    rows = [row for n, liars in ((5, 1), (10, 2), (21, 9)) for row in compare_folds(n, liars)]
    for word, kind in THEIRS.items():
        rows.append(compare_optimizer(kind, OPTIMIZERS[word](), 6))
    rows.append(compare_optimizer(flower.FedAvgM, Momentum(rate=0.5, momentum=0.5), 6))
    rows.append(compare_optimizer(flower.FedAdam, Adam(rate=0.02, beta1=0.5, beta2=0.9), 6))
    print(f"{ELEMENTS} elements of fp32, {ROUNDS} rounds of the optimizers")
    print(f"{'':60}{'difference':>12}{'flower-64':>12}{'ours-64':>12}{'own way':>12}")
    for row in rows:
        own = "" if row.own_way is None else f"{row.own_way:12.1e}"
        print(f"{row.name:60}{row.difference:12.1e}{row.flower:12.1e}{row.ours:12.1e}{own}")
    for word, kind in THEIRS.items():
        for line in defaults(kind, OPTIMIZERS[word]()):
            print("default differs:", line)
    if above := [row.name for row in rows if not row.difference <= LIMIT]:
        sys.exit(f"above {LIMIT:g}: {', '.join(above)}")


if __name__ == "__main__":
    main()
