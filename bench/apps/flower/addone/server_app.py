"""The server's side: FedAvg. When each round ended, and this process's memory, go to `figures`.

Memory is what this process took at its highest, in kB, before the model was made and at the end.
"""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

TENSORS = 10
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config, moments = context.run_config, []

    def note(number: int, arrays: ArrayRecord) -> MetricRecord:
        moments.append(time.time())
        return MetricRecord({"round": number})

    before = peak()
    everybody = {"min_train_nodes": config["devices"], "min_available_nodes": config["devices"]}
    size = int(config["megabytes"] * 1e6) // 4 // TENSORS
    result = FedAvg(fraction_evaluate=0.0, **everybody).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(size, np.float32) for _ in range(TENSORS)]),
        num_rounds=config["rounds"],
        evaluate_fn=note,
    )
    after = peak()
    for array in result.arrays.to_numpy_ndarrays():
        if not np.allclose(array, config["rounds"] * config["add"], rtol=1e-5):
            raise SystemExit("the model is not what adding in every round gives")
    figures = {"moments": moments, "before_kb": before, "peak_kb": after}
    Path(config["figures"]).write_text(json.dumps(figures))


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
