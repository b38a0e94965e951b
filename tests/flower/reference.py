"""What Flower's own simulation makes of the digits app: every strategy, in one session of Ray.

    python -m tests.flower.reference FOLDER CASE…  ─▶  FOLDER/CASE.npz

The server's side writes down which case it is before it begins it, since a simulation has one run config.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

APP = Path(__file__).parent / "apps/digits"
DEVICES = 7
CONFIG = {"num-server-rounds": 3, "devices": DEVICES, "seed": 7}
sys.path.insert(0, str(APP))


class Told(ClientApp):
    """The digits app, with the run config of the case that it is."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __call__(self, message: Message, context: Context) -> Message:
        sys.path[:0] = [] if str(APP) in sys.path else [str(APP)]
        from digitsapp.client_app import app

        return app(message, told(context, json.loads(self.path.read_text())))


def told(context: Context, config: dict[str, Any]) -> Context:
    """The same context with this run config; the state is one object."""
    about = (context.run_id, context.node_id, context.node_config, context.state)
    return Context(*about, config)


def simulate(folder: Path, cases: list[str]) -> None:
    """Run each case. What one raises is its own matter: its file is missing then, and is said."""
    from digitsapp.server_app import app as digits

    case_file = folder / "case.json"
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        for case in cases:
            config = {**CONFIG, "strategy": case, "result": str(folder / f"{case}.npz")}
            case_file.write_text(json.dumps(config))
            since = time.monotonic()
            try:
                digits(grid, told(context, config))
            except Exception as error:  # noqa: BLE001 the next case may do
                print(f"{case}: {type(error).__name__}: {error}", file=sys.stderr)
            print(f"{case} {time.monotonic() - since:.1f} s", flush=True)

    backend = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, Told(case_file), num_supernodes=DEVICES, backend_config=backend)


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.WARNING)
    simulate(Path(sys.argv[1]), sys.argv[2:])
