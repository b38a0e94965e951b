"""A small app of Flower's, without PyTorch: each device adds its number, the server averages and says so."""

from pathlib import Path

PROJECT = """
[project]
name = "small"
version = "1"

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "small.server:app"
clientapp = "small.client:app"

[tool.flwr.app.config]
num-server-rounds = 3
strategy = "FedAdam"
seen = ""
model.width = 4

[tool.flwr.federations]
default = "here"

[tool.flwr.federations.here]
options.num-supernodes = 4
"""
SERVER = """
import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import ServerApp, strategy

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    first = ArrayRecord([np.zeros(config["model.width"], np.float32)])
    test = lambda round, arrays: MetricRecord({"accuracy": round / 10})
    kind = getattr(strategy, config["strategy"])
    result = kind().start(grid, first, num_rounds=config["num-server-rounds"], evaluate_fn=test)
    print("ends with", [array.tolist() for array in result.arrays.to_numpy_ndarrays()])
"""
CLIENT = """
import random

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    place, seen = context.node_config["partition-id"], context.run_config["seen"]
    if seen:
        with open(seen, "a") as file:
            file.write(f"{message.content['config']['server-round']} {place}\\n")
    arrays = [array.numpy() + place + random.random() for array in message.content["arrays"].values()]
    metrics = MetricRecord({"num-examples": place + 1, "train_loss": 1.0})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 1, "eval_acc": 0.5, "eval_loss": 0.25})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""


def write(folder: Path) -> Path:
    """The app's folder, made there."""
    app = folder / "app"
    (app / "small").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    for name, text in {"__init__": "", "server": SERVER, "client": CLIENT}.items():
        (app / "small" / f"{name}.py").write_text(text)
    return app
