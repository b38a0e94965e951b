"""What a device does."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits import task

app = ClientApp()


def mine(context: Context):
    return task.share(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(message: Message, context: Context) -> Message:
    (x, y), _ = mine(context)
    model = message.content["arrays"].to_numpy_ndarrays()
    config = context.run_config
    model = task.train(model, x, y, config["local-epochs"], config["learning-rate"])
    metrics = MetricRecord({"loss": task.loss(model, x, y), "num-examples": len(x)})
    return Message(RecordDict({"arrays": ArrayRecord(model), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    _, (x, y) = mine(context)
    model = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"accuracy": task.accuracy(model, x, y), "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
