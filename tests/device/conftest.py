"""One device, its home and the simulated hub, for each test."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device.agent import Agent
from tests.device.link import NAME, PLACE
from tests.device.simulator import Hub


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(certificate, key) of a device, by an authority of nobody's."""
    folder = tmp_path_factory.mktemp("identity")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", f"/CN={NAME}/serialNumber=00112233aabbccdd", "-keyout", "key", "-out", "crt"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return (folder / "crt").read_text(), (folder / "key").read_text()


@pytest.fixture
def agent(tmp_path: Path, identity: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setenv(PLACE, str(tmp_path / "hub"))
    monkeypatch.setenv("FLEETFOLD_AGENT_HOME", str(tmp_path / "home"))
    made = Agent(Hub(tmp_path / "hub"), tmp_path / "home", identity)
    yield made
    made.kill()
