"""What the server does: FedAvg, and the model at the end in a file."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    result = FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord(task.first_model()),
        num_rounds=context.run_config["num-server-rounds"],
    )
    np.savez("model.npz", *result.arrays.to_numpy_ndarrays())
