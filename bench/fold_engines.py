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
from pathlib import Path


def limit(folder: Path) -> Callable[[], object]:
    """Only reading: every byte once, two threads, into aligned buffers that are used again."""
    import mmap

    files = [os.open(path, os.O_RDONLY) for path in sorted(folder.iterdir())]
    size = os.fstat(files[0]).st_size
    step = min(512 << 10, size)

    def read(part: int) -> None:
        buffer = memoryview(mmap.mmap(-1, step))
        for offset in range(part * step, size, 2 * step) if size > step else (0,):
            for file in files if size > step else files[part::2]:
                os.preadv(file, [buffer], offset)

    def run() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(read, range(2)))

    return run


def fleetfold(folder: Path) -> Callable[[], object]:
    from fleetfold.adapters.objects import FileObjects
    from fleetfold.coordinator.folding import fold_round, header_of
    from fleetfold.ledger import Arrival
    from fleetfold.round.state import Policy, Round
    from fleetfold.settings import Settings

    objects = FileObjects(folder.parent)
    keys = [f"{folder.name}/{path.name}" for path in sorted(folder.iterdir())]
    model = header_of(objects, keys[0])
    arrivals = [
        Arrival(
            device=f"d{k}", seat=k, state="admitted", key=key, examples=k + 1,
            size=(folder / Path(key).name).stat().st_size, begin=begin_of(folder / Path(key).name),
        )
        for k, key in enumerate(keys)
    ]  # fmt: skip
    round = Round(
        run=f"{folder.name}/out", number=1, base=0, cohort="", invited=len(keys), opened_at=0.0,
        policy=Policy(target=1, quorum=1, deadline=1.0),
    )  # fmt: skip
    return lambda: fold_round(objects, round, arrivals, Settings(), model, None)


def begin_of(path: Path) -> int:
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


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


def state_dicts(folder: Path) -> Callable[[], object]:
    """The forerunners' way as they describe it: a list of all state dicts, then key by key."""
    from fleetfold.fold.tensors import read

    paths = sorted(folder.iterdir())

    def run() -> object:
        everything = [read(path.read_bytes())[0] for path in paths]
        return {name: sum(update[name] for update in everything) / len(paths) for name in everything[0]}

    return run


def flower(folder: Path) -> Callable[[], object]:
    """FedAvg's own aggregation of replies that are in memory already, as Flower has them."""
    import numpy as np
    from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict  # noqa: F401
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    records = []
    for k, path in enumerate(sorted(folder.iterdir())):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        table = json.loads(data[8 : 8 + length])
        table.pop("__metadata__", None)
        arrays = {
            name: np.frombuffer(data, np.float32, (b - a) // 4, 8 + length + a).copy()
            for name, (a, b) in ((n, e["data_offsets"]) for n, e in table.items())
        }
        record = ArrayRecord({name: _array(values) for name, values in arrays.items()})
        records.append(RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": k + 1})}))
    return lambda: aggregate_arrayrecords(records, "num-examples")


def _array(values: object) -> object:
    from flwr.app import Array

    return Array(values)


def peak_mb(*, forget: bool = False) -> float:
    """The process's own peak; `forget` what it was so far, and what the parent's was before it."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


ENGINES = {
    "limit": limit, "fleetfold": fleetfold, "numpy naive": naive, "list of state dicts": state_dicts,
    "flower": flower,
}  # fmt: skip

if __name__ == "__main__":
    run = ENGINES[sys.argv[1]](Path(sys.argv[2]))
    before = peak_mb(forget=True)
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb() - before}))
