"""The device's side: every parameter plus `add`, from one example; with 0 what came goes back."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    arrays, add = message.content["arrays"], np.float32(context.run_config["add"])
    if add:
        arrays = ArrayRecord([array + add for array in arrays.to_numpy_ndarrays()])
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}
    return Message(content=RecordDict(content), reply_to=message)
