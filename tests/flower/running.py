"""Runs of a Flower app as a person begins them, `fleetfold flower run`: on workers here, or over MQTT."""

import os
import subprocess
import sys
from pathlib import Path

from tests.hub.fleet import Fleet

PROGRAM = str(Path(sys.executable).with_name("fleetfold"))
PATIENCE = 600


def locally(app: Path, home: Path, devices: int, *words: str) -> str:
    """`fleetfold flower run APP --devices N`, in `home`. → what it said"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLEETFOLD_")}
    environment |= {"FLEETFOLD_HOME": str(home / ".fleetfold"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return _said([PROGRAM, "flower", "run", str(app), "--devices", str(devices), *words], environment, home)


def over_mqtt(fleet: Fleet, app: Path, *words: str) -> str:
    """`fleetfold flower run APP --hub`, to the agents of that fleet. → what it said"""
    command = [PROGRAM, "flower", "run", str(app), "--hub", *words]
    return _said(command, fleet.environment | {"NO_COLOR": "1"}, fleet.folder)


def _said(command: list[str], environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)} left with {done.returncode}:\n{said[-6000:]}"
    return said
