"""Where Flower is installed, every version pinned; its own pins clash with ours, so it is apart.

.venv-flower          the newest flwr that resolves with what there is
.venv-flower-oldest   the oldest that we claim; its `flwr new` still writes Flower's example apps, offline

    python -m tests.flower.environments [newest] [oldest]

constraints-NAME.txt is what `pip freeze` said of each when all was seen to work together; its first line says
what is asked for beside fleetfold itself, which is installed from here, to be edited.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = Path(os.environ.get("FLEETFOLD_VENV_FLOWER") or ROOT)
FOLDERS = {"newest": ".venv-flower", "oldest": ".venv-flower-oldest"}
OURS = "[flower,hub]"
"""What of fleetfold is installed: the hub's part too, for what runs over MQTT."""
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Flower and Ray as they are where there is no network: asking nobody, waiting for nobody."""


def program(name: str, program: str = "python") -> Path:
    """A program of that environment, which is made if it is not there or other versions are wanted now."""
    folder, pins = FOLDER / FOLDERS[name], HERE / f"constraints-{name}.txt"
    text = pins.read_text()
    ready = folder / "ready"
    digest = hashlib.sha256((text + (ROOT / "pyproject.toml").read_text() + kernel()).encode()).hexdigest()
    if not (ready.exists() and ready.read_text() == digest):
        _make(folder, pins, text.splitlines()[0].removeprefix("# ").split())
        ready.write_text(digest)
    return folder / "bin" / program


def kernel() -> str:
    return (ROOT / "src/fleetfold/fold/_kernel.c").read_text()


def _make(folder: Path, pins: Path, wanted: list[str]) -> None:
    since = time.monotonic()
    _say(f"installing {' '.join(wanted)} into {folder}, two minutes the first time")
    if not (folder / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--constraint", str(pins), *wanted, "--editable", f"{ROOT}{OURS}"],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _say(f"installed {folder.name} in {time.monotonic() - since:.0f} s")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    for each in sys.argv[1:] or FOLDERS:
        program(each)
