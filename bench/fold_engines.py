"""One engine over one folder of updates, in a process of its own: fold_engines.py ENGINE FOLDER.

Prints seconds and the peak of memory above what it was before the work began. Imports what the engine
needs and no more: Flower's runs in an environment where fleetfold is not.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any


def limit(folder: Path) -> Callable[[], object]:
    """Only reading: every byte once, two threads, into aligned buffers that are used again."""
    import mmap

    paths = sorted(folder.iterdir())
    files = [os.open(path, os.O_RDONLY) for path in paths] if len(paths) <= 256 else None
    size = paths[0].stat().st_size
    step = min(512 << 10, size)

    def read(part: int) -> None:
        buffer = memoryview(mmap.mmap(-1, step))
        if files is None:
            for path in paths[part::2]:  # no process may have so many open
                file = os.open(path, os.O_RDONLY)
                for offset in range(0, size, step):
                    os.preadv(file, [buffer], offset)
                os.close(file)
            return
        for offset in range(part * step, size, 2 * step):
            for file in files:
                os.preadv(file, [buffer], offset)

    def run() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(read, range(2)))

    return run


def fleetfold(folder: Path, threads: int = 2, kernel: str = "") -> Callable[[], object]:
    """This fold: from the arrival records to the written file of the next model."""
    from itertools import chain

    import fleetfold.fold.kernel as kernels
    from fleetfold.coordinator.sources import opened
    from fleetfold.fold.fold import fold_shard
    from fleetfold.fold.recipe import Recipe
    from fleetfold.fold.tensors import write_header

    objects, round, arrivals, model = _round(folder)
    objects.delete("out.safetensors")  # a round's model is a new file: replacing one costs more
    weights = [float(arrival.examples) for arrival in arrivals]
    which = kernels.NUMPY if kernel else kernels.KERNEL

    def run() -> None:
        with opened(objects, round.run, round.base, arrivals, weights, model) as (sources, bases):
            chunks = fold_shard(sources, model, None, Recipe(bases=bases), threads=threads, kernel=which)
            objects.put("out.safetensors", chain([write_header(model.layout, b"{}")], chunks))

    return run


def hashed(folder: Path) -> Callable[[], object]:
    """All that ends a round: the same, with the sha256 that devices check their download by."""
    from fleetfold import layout
    from fleetfold.coordinator.folding import fold_round
    from fleetfold.settings import Settings

    objects, round, arrivals, model = _round(folder)
    objects.delete(layout.model("b", 1))
    return lambda: fold_round(objects, round, arrivals, Settings(), model, None)


def _round(folder: Path) -> Any:
    from fleetfold import layout
    from fleetfold.adapters.objects import FileObjects
    from fleetfold.coordinator.sources import header_of
    from fleetfold.fold.gate import Expected, admit
    from fleetfold.ledger import Arrival
    from fleetfold.ports import read
    from fleetfold.round.state import Policy, Round

    home = folder.parents[4]
    objects = FileObjects(home)
    model = header_of(objects, layout.model("b", 0))
    arrivals = []
    for seat, path in enumerate(sorted(folder.iterdir())):
        key, size = str(path.relative_to(home)), path.stat().st_size
        expected = Expected(run="b", round=1, kind="train", device=f"d{seat}", model=model)
        found = admit(lambda offset, n, key=key: read(objects, key, offset, n), size, expected)  # type: ignore[misc]
        arrivals.append(
            Arrival(
                device=f"d{seat}", seat=seat, state="admitted", key=key, size=size, begin=found.begin,
                examples=found.header.examples, form=found.header.form,
            )
        )  # fmt: skip
    round = Round(
        run="b", number=1, base=0, cohort="", invited=len(arrivals), opened_at=0.0,
        policy=Policy(target=1, quorum=1, deadline=1.0),
    )  # fmt: skip
    return objects, round, arrivals, model


def naive(folder: Path) -> Callable[[], object]:
    """A whole update, add it, the next."""
    from fleetfold.fold.tensors import read

    paths = sorted(folder.iterdir())

    def run() -> object:
        total = len(paths) * (len(paths) + 1) / 2
        mean: dict[str, object] = {}
        for k, path in enumerate(paths):
            tensors, _ = read(path.read_bytes())
            for name, values in tensors.items():
                term = values * ((k + 1) / total)
                mean[name] = mean[name] + term if name in mean else term  # type: ignore[operator]
        return mean

    return run


def state_dicts(folder: Path, *, weighted: bool = False) -> Callable[[], object]:
    """The forerunners' way as they describe it: a list of all state dicts, then key by key; an update's
    weight is how often it stands in the list."""
    from fleetfold.fold.tensors import read

    paths = sorted(folder.iterdir())

    def run() -> object:
        everything = [read(path.read_bytes())[0] for path in paths]
        if weighted:
            everything = [update for k, update in enumerate(everything) for _ in range(k + 1)]
        mean = {}
        for name in everything[0]:
            total = everything[0][name].copy()
            for update in everything[1:]:
                total += update[name]
            mean[name] = total / len(everything)
        return mean

    return run


def flower(folder: Path) -> Callable[[], object]:
    """`FedAvg.aggregate_train` of replies that are in memory already, as a Flower server has them."""
    import logging

    import numpy as np
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg

    logging.disable(logging.CRITICAL)
    with suppress(ImportError):  # from 1.38 on, messages ask the process who it is
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    replies = []
    for k, path in enumerate(sorted(folder.iterdir())):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        table = json.loads(data[8 : 8 + length])
        table.pop("__metadata__", None)
        arrays = {
            name: Array(np.frombuffer(data, np.float32, (b - a) // 4, 8 + length + a))
            for name, (a, b) in ((n, e["data_offsets"]) for n, e in table.items())
        }
        record = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": k + 1})}
        asked = Message(RecordDict(), dst_node_id=k + 1, message_type="train")
        replies.append(Message(RecordDict(record), reply_to=asked))
    strategy = FedAvg()
    return lambda: strategy.aggregate_train(1, replies)


def peak_mb(*, forget: bool = False) -> float:
    """The process's own peak; `forget` what it was so far, and what the parent's was before it."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


ENGINES: dict[str, Callable[[Path], Callable[[], object]]] = {
    "limit": limit,
    "fleetfold": fleetfold,
    "fleetfold, 1 thread": lambda folder: fleetfold(folder, threads=1),
    "fleetfold, numpy": lambda folder: fleetfold(folder, kernel="numpy"),
    "fleetfold, with sha256": hashed,
    "numpy naive": naive,
    "list of state dicts": state_dicts,
    "list, once per example": lambda folder: state_dicts(folder, weighted=True),
    "flower": flower,
}

if __name__ == "__main__":
    run = ENGINES[sys.argv[1]](Path(sys.argv[2]))
    before = peak_mb(forget=True)
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb() - before}))
