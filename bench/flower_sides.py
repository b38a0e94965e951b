"""One measured side of `flower`: the app bench/apps/flower, by Flower's own server and nodes, or by ours.

    python -m bench.flower_sides SIDE DEVICES ROUNDS MEGABYTES ADD  ─▶  one line of JSON

superlink   flower-superlink, a flower-supernode for each device, `flwr run`
hub         fleetfold hub with its broker, `fleetfold join` for each device, `fleetfold flower run --hub`
simulation  run_simulation, two actors        local   fleetfold flower run --devices N --workers 2
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench.onsite import at, begun, end, enrolled, free_port, memory_mb
from fleetfold.bundle import save

APP = Path(__file__).parent / "apps" / "flower"
BIN = Path(sys.executable).parent
WARM_UP = 1
"""Rounds that are not counted: there processes start."""
PATIENCE = 300.0


def superlink(stack: ExitStack, work: Path, devices: int, config: str) -> dict[str, float]:
    """A real SuperLink and its SuperNodes, as they come, but for what would ask the network."""
    port, home = free_port(), work / "flower"
    home.mkdir()
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    )
    environment = {**os.environ, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}

    def start(name: str, *words: str) -> "subprocess.Popen[bytes]":
        log = stack.enter_context((work / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]], env=environment, cwd=work, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        stack.callback(ended_all, process)
        return process

    link = start("link", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
    until(lambda: listens(port), "the SuperLink")
    for n in range(devices):
        about = f"partition-id={n} num-partitions={devices}"
        where = ["--superlink", address, "--port", str(free_port())]
        start(f"node{n}", "flower-supernode", "--insecure", *where, "--node-config", about)
    app = work / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))  # `flwr run` may write into it
    command = [str(BIN / "flwr"), "run", str(app), "here", "--stream", "--run-config", config]
    said = ended(command, environment, work, work / "figures.json")
    return {"server_mb": memory_mb(link.pid, "VmHWM"), "said": len(said)}


def hub(stack: ExitStack, work: Path, devices: int, config: str) -> dict[str, float]:
    """A hub, and devices that join it over MQTT, all on this machine."""
    environment = at(work)
    bundles = enrolled(work, devices)
    server = begun(stack, work)
    for n, bundle in enumerate(bundles):
        save(bundle, work / f"{n}.bundle")
        log = stack.enter_context((work / f"device{n}.log").open("wb"))
        place = ["--home", str(work / f"device{n}"), "--app", str(APP)]
        words = ["join", str(work / f"{n}.bundle"), *place, "--index", str(n), "--count", str(devices)]
        process = subprocess.Popen(
            [str(BIN / "fleetfold"), *words, "--threads", "1"], env=environment, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(end, process)
    command = [str(BIN / "fleetfold"), "flower", "run", str(APP), "--hub", "--run-config", config]
    ended(command, environment, work, work / "figures.json")
    return {"server_mb": memory_mb(server.pid, "VmHWM")}


def local(stack: ExitStack, work: Path, devices: int, config: str) -> dict[str, float]:
    """Simulated devices in two workers."""
    command = [str(BIN / "fleetfold"), "flower", "run", str(APP), "--devices", str(devices)]
    ended([*command, "--workers", "2", "--run-config", config], at(work), work, work / "figures.json")
    return {}


def simulation(stack: ExitStack, work: Path, devices: int, config: str) -> dict[str, float]:
    """Flower's simulation engine: one core an actor, two actors, the server in this process."""
    sys.path.insert(0, str(APP))
    os.environ["PYTHONPATH"] = str(APP)  # the actors'
    from addone.client_app import app as client
    from addone.server_app import app as server
    from flwr.app import Context
    from flwr.common.config import parse_config_args
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    told = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        about = (context.run_id, context.node_id, context.node_config, context.state)
        server(grid, Context(*about, parse_config_args([config])))

    told.main()(main)
    backend = {
        "init_args": {"num_cpus": 2, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(told, client, num_supernodes=devices, backend_config=backend)
    return {}


SIDES: dict[str, Callable[[ExitStack, Path, int, str], dict[str, float]]] = {
    "superlink": superlink, "hub": hub, "simulation": simulation, "local": local,
}  # fmt: skip


def measure(side: str, devices: int, rounds: int, megabytes: float, add: int) -> dict[str, float]:
    """{seconds: median of a round, app_mb: what the ServerApp's process took above importing the app,
    server_mb: peak of the SuperLink or the hub}"""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        figures = work / "figures.json"
        config = f'rounds={rounds} devices={devices} megabytes={megabytes} add={add} figures="{figures}"'
        found = SIDES[side](stack, work, devices, config)
        told: dict[str, Any] = json.loads(figures.read_text())
    ends = told["moments"]
    seconds = [after - before for before, after in pairwise(ends)]
    app_mb = (told["peak_kb"] - told["before_kb"]) / 1024
    return {**found, "seconds": median(seconds[WARM_UP:]), "app_mb": app_mb}


def ended(command: list[str], environment: dict[str, str], work: Path, figures: Path) -> str:
    """The command, which ends well and leaves the figures. → what it said. Leaves if not."""
    done = subprocess.run(
        command,
        env=environment,
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = done.stdout + done.stderr
    if done.returncode or not figures.exists():
        logs = "".join(f"\n--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(work.glob("*.log")))
        sys.exit(f"{' '.join(command)} failed:\n{said[-3000:]}{logs}")
    return said


def ended_all(process: "subprocess.Popen[bytes]") -> None:
    """End it and what it has started: a SuperNode that is killed leaves its SuperExec behind."""
    end(process)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def until(true: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > give_up:
            sys.exit(f"{what} did not start")
        time.sleep(0.1)


def listens(port: int) -> bool:
    import socket

    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    side, devices, rounds, megabytes, add = sys.argv[1:6]
    print(json.dumps(measure(side, int(devices), int(rounds), float(megabytes), int(add))))
