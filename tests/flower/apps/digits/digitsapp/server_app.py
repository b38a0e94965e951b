"""The server's side: the strategy that the run's config names, and its final arrays written to `result`."""

import inspect

import numpy as np
from flwr.app import ArrayRecord
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server import ServerApp as LegacyServerApp
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp
from flwr.serverapp import strategy as strategies

from digitsapp import task

STRATEGIES = sorted(set(strategies.__all__) - {"Result", "Strategy"})
"""What the installed flwr has for apps of messages."""
LEGACY = ("server_fn", "SecAgg+")
NOISE = 0.02


def strategy_of(name, devices):
    """That strategy over all devices, with settings that make it do what it is for."""
    everybody = {"min_train_nodes": devices, "min_evaluate_nodes": devices, "min_available_nodes": devices}
    kind = getattr(strategies, name)
    if name.startswith("DifferentialPrivacy"):
        inner = strategies.FedAvg(**everybody)
        if name.endswith("FixedClipping"):
            return kind(inner, noise_multiplier=NOISE, clipping_norm=0.5, num_sampled_clients=devices)
        return kind(inner, noise_multiplier=NOISE, num_sampled_clients=devices, initial_clipping_norm=0.3)
    settings = {
        "FedAvgM": {"server_learning_rate": 0.9, "server_momentum": 0.5},
        "FedAdagrad": {"tau": 1e-2},  # of 1e-3 it makes 1e-5 of the last bit of a mean
        "FedProx": {"proximal_mu": 0.1},
        "QFedAvg": {"client_learning_rate": task.RATE, "q": 0.2},
        "FedTrimmedAvg": {"beta": 0.2},
        "Krum": {"num_malicious_nodes": 1},
        "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
        "Bulyan": {"num_malicious_nodes": 1},
    }.get(name, {})
    known = inspect.signature(kind.__init__).parameters
    if name.startswith("FedXgb"):
        everybody = {"min_available_nodes": devices}
        settings = {key: devices for key in ("min_train_nodes", "min_evaluate_nodes") if key in known}
    return kind(**everybody, **settings)


def keep(context, arrays, metrics):
    """Leave what came out of it where the run's config says."""
    if place := context.run_config["result"]:
        with open(place, "wb") as file:
            np.savez(file, metrics=np.array(metrics, np.float64), **{str(i): a for i, a in enumerate(arrays)})


def by_messages(grid, context, name):
    trees, devices = name.startswith("FedXgb"), context.run_config["devices"]
    first = [np.zeros(0, np.uint8)] if trees else task.first_model(context.run_config["seed"])
    np.random.seed(context.run_config["seed"])  # noise is drawn with numpy's own
    result = strategy_of(name, devices).start(
        grid=grid, initial_arrays=ArrayRecord(first), num_rounds=context.run_config["num-server-rounds"]
    )
    found = result.evaluate_metrics_clientapp
    metrics = [value for number in sorted(found) for _, value in sorted(found[number].items())]
    arrays = result.arrays.to_numpy_ndarrays()
    if trees:  # in another order trees are the same forest
        arrays = [task.predictions(arrays[0].tobytes(), task.held_out()[0])]
    keep(context, arrays, metrics)


def legacy(context):
    """(the strategy, its config, the arrays of each round) of the API before messages."""
    devices, seen = context.run_config["devices"], []

    def note(number, arrays, config):
        seen.append(arrays)
        return task.losses(arrays, *task.held_out())[0], {}

    strategy = LegacyFedAvg(
        min_fit_clients=devices,
        min_evaluate_clients=devices,
        min_available_clients=devices,
        fraction_evaluate=0.0 if context.run_config["strategy"] == "SecAgg+" else 1.0,
        initial_parameters=ndarrays_to_parameters(task.first_model(context.run_config["seed"])),
        evaluate_fn=note,
    )
    return strategy, ServerConfig(num_rounds=context.run_config["num-server-rounds"]), seen


def by_server_fn(grid, context):
    strategy, config, seen = legacy(context)
    parts = ServerAppComponents(strategy=strategy, config=config)
    LegacyServerApp(server_fn=lambda context: parts)(grid, context)
    keep(context, seen[-1], [])


def by_workflow(grid, context):
    strategy, config, seen = legacy(context)
    secret = SecAggPlusWorkflow(num_shares=5, reconstruction_threshold=3, max_weight=1000.0, timeout=600)
    told = LegacyContext(context=context, config=config, strategy=strategy)
    DefaultWorkflow(fit_workflow=secret)(grid, told)
    keep(context, seen[-1], [])


app = ServerApp()


@app.main()
def main(grid, context):
    name = context.run_config["strategy"]
    if name == "server_fn":
        by_server_fn(grid, context)
    elif name == "SecAgg+":
        by_workflow(grid, context)
    else:
        by_messages(grid, context, name)
