"""The device's side: a ClientApp for each way in which Flower has them written, by the run's strategy."""

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod

from digitsapp import task


def mine(context):
    return task.share(context.node_config["partition-id"], context.node_config["num-partitions"])


def reply(message, metrics, arrays=None):
    content = RecordDict({"metrics": MetricRecord(metrics)})
    if arrays is not None:
        content["arrays"] = ArrayRecord(arrays)
    return Message(content=content, reply_to=message)


def train(message, context):
    x, y = mine(context)
    mu = message.content["config"].get("proximal-mu", 0.0)
    arrays, loss = task.train(message.content["arrays"].to_numpy_ndarrays(), x, y, mu)
    return reply(message, {"train_loss": loss, "num-examples": len(x)}, arrays)


def evaluate(message, context):
    x, y = mine(context)
    loss, accuracy = task.losses(message.content["arrays"].to_numpy_ndarrays(), x, y)
    return reply(message, {"loss": loss, "accuracy": accuracy, "num-examples": len(x)})


def train_trees(message, context):
    bagging = context.run_config["strategy"] == "FedXgbBagging"
    place, places = context.node_config["partition-id"], context.node_config["num-partitions"]
    if (
        not bagging
    ):  # whose turn it is hangs on the node ids, which are chance: the round says whose data it is
        place = message.content["config"]["server-round"] % places
    x, y = task.share(place, places)
    model = task.grow(message.content["arrays"]["0"].numpy().tobytes(), x, y, only_new=bagging)
    return reply(message, {"num-examples": len(x)}, [np.frombuffer(model, np.uint8)])


def evaluate_trees(message, context):
    x, y = task.held_out()
    chances = task.predictions(message.content["arrays"]["0"].numpy().tobytes(), x)
    return reply(message, {"accuracy": float(((chances > 0.5) == y % 2).mean()), "num-examples": len(x)})


class Legacy(NumPyClient):
    """As clients were written before messages."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def fit(self, parameters, config):
        arrays, loss = task.train(parameters, self.x, self.y)
        np.random.seed(len(self.x))  # SecAgg+ rounds by chance, with numpy's own
        return arrays, len(self.x), {"train_loss": loss}

    def evaluate(self, parameters, config):
        loss, accuracy = task.losses(parameters, self.x, self.y)
        return loss, len(self.x), {"accuracy": accuracy}


def client_fn(context):
    return Legacy(*mine(context)).to_client()


def written(train, evaluate, mods=()):
    app = ClientApp()
    app.train(mods=list(mods))(train)
    app.evaluate()(evaluate)
    return app


PLAIN = written(train, evaluate)
APPS = {
    "DifferentialPrivacyClientSideFixedClipping": written(train, evaluate, [fixedclipping_mod]),
    "DifferentialPrivacyClientSideAdaptiveClipping": written(train, evaluate, [adaptiveclipping_mod]),
    "FedXgbBagging": written(train_trees, evaluate_trees),
    "FedXgbCyclic": written(train_trees, evaluate_trees),
    "server_fn": ClientApp(client_fn=client_fn),
    "SecAgg+": ClientApp(client_fn=client_fn, mods=[secaggplus_mod]),
}


class Digits(ClientApp):
    """Answers as the run's strategy wants it."""

    def __call__(self, message, context):
        return APPS.get(context.run_config["strategy"], PLAIN)(message, context)


app = Digits()
