"""The contract can be spoken in bash: examples/shell-device beside devices of ours, and under trial."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.hub.conftest import free_port
from tests.hub.test_check import APP, check, rules

ROOT = Path(__file__).parents[2]
DEVICE = ROOT / "examples/shell-device/device.sh"
TOOLS = ("mosquitto_sub", "mosquitto_pub", "curl", "jq", "openssl")
MODEL = '        import numpy as np\n        return {"w": np.arange(6, dtype=np.float32), "n": np.array([1])}'


@pytest.fixture(autouse=True)
def tools() -> None:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    assert not missing, (
        f"these tests need {', '.join(missing)}: apt install mosquitto-clients curl jq openssl"
    )


def fleetfold(home: Path, *words: str, timeout: float = 120.0) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "fleetfold", *words], env={**os.environ, "FLEETFOLD_HOME": str(home)},
        cwd=home, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@contextmanager
def running(home: Path, name: str, *words: str) -> Iterator[None]:
    with (home / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            words, cwd=home, env={**os.environ, "FLEETFOLD_HOME": str(home)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.fleet
def test_a_device_in_bash_takes_part_in_every_round(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/app.py").write_text(APP.replace("        raise NotImplementedError", MODEL))
    ports = ("--mqtt-port", str(free_port()), "--door-port", str(free_port()))
    fleetfold(tmp_path, "hub", "init", "--host", "localhost", *ports)
    fleetfold(tmp_path, "enroll", "shed-1", "dev-1", "dev-2")
    ours = (sys.executable, "-m", "fleetfold")
    with ExitStack() as stack:
        stack.enter_context(running(tmp_path, "hub", *ours, "hub"))
        for name in ("dev-1", "dev-2"):
            joins = (*ours, "join", f"{name}.bundle", "--app", "app", "--home", name)
            stack.enter_context(running(tmp_path, name, *joins))
        stack.enter_context(running(tmp_path, "shed-1", "bash", str(DEVICE), "shed-1.bundle", "shed-1"))
        fleetfold(tmp_path, "run", "app", "--hub", "--rounds", "3", "--quorum", "3", "--cohort", "3")
        for number in ("1", "2", "3"):
            said = fleetfold(tmp_path, "show", "latest", "--round", number, "--json")
            lines = {line["device"]: line["state"] for line in map(json.loads, said.splitlines())}
            assert lines == {"shed-1": "admitted", "dev-1": "admitted", "dev-2": "admitted"}


@pytest.mark.fleet
def test_a_device_in_bash_keeps_every_rule_of_the_contract() -> None:
    result = check("--", "bash", str(DEVICE), "{bundle}", "{home}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [id for id, seen in rules(result).items() if seen["held"] is False] == []


def test_it_is_a_device_in_fewer_than_120_lines_of_bash_alone() -> None:
    text = DEVICE.read_text()
    assert len(text.splitlines()) < 120
    assert not re.search(r"python|perl|ruby|node\b", text)
    assert subprocess.run(["bash", "-n", str(DEVICE)], check=False).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(DEVICE)], check=False).returncode == 0
