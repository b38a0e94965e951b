"""One row of `overhead`: the same work on Flower's simulation engine, its server in this process.

    python -P bench/flower_sim.py DEVICES ROUNDS WORKERS  ─▶  {"seconds_per_round", "peak_mb"}

Run by an interpreter that has `flwr[simulation]` and need not have fleetfold, so it imports neither
fleetfold nor the rest of the bench. A round lasts from its `configure_train` to the next one's.
"""

import json
import resource
import sys
import time
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

LAYERS = (784, 128, 64, 10)  # as in apps/add_one.py
WARM_UP = 2  # rounds that are not counted, as in fleetfold_run.py


def add_one(message: Message, context: Context) -> Message:
    """The client: every parameter plus one, from one example."""
    arrays = [array + np.float32(1) for array in message.content["arrays"].to_numpy_ndarrays()]
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
    return Message(content=RecordDict(content), reply_to=message)


def first_model() -> Any:
    shapes = [shape for inputs, outputs in pairwise(LAYERS) for shape in ((outputs, inputs), (outputs,))]
    return ArrayRecord([np.zeros(shape, np.float32) for shape in shapes])


def measure(devices: int, rounds: int, workers: int) -> dict[str, float]:
    """Median seconds a round of FedAvg over all devices without evaluation, and this process's peak in MB.

    One core an actor, `workers` actors. Leaves if the model is not what adding one `rounds` times gives, but
    for the rounding of a mean in fp32 (8e-7 was seen).
    """
    moments: list[float] = []
    results: list[Any] = []
    client, server = ClientApp(), ServerApp()
    client.train()(add_one)

    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=devices)
        configure = strategy.configure_train

        def configure_and_note(*arguments: Any, **named: Any) -> Any:
            moments.append(time.perf_counter())
            return configure(*arguments, **named)

        strategy.configure_train = configure_and_note
        results.append(strategy.start(grid=grid, initial_arrays=first_model(), num_rounds=rounds))
        moments.append(time.perf_counter())

    server.main()(serve)
    backend = {
        "init_args": {"num_cpus": workers, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server, client, num_supernodes=devices, backend_config=backend)
    if not all(np.allclose(array, rounds, rtol=1e-5) for array in results[0].arrays.to_numpy_ndarrays()):
        sys.exit("Flower's model is not what adding one in every round gives")
    seconds = [after - before for before, after in pairwise(moments)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds_per_round": median(seconds[WARM_UP:]), "peak_mb": peak}


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:4]))))
