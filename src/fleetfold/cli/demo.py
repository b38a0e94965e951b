"""fleetfold demo: a real model on real data, over ten devices that never share it."""

from importlib.util import find_spec
from pathlib import Path

from fleetfold.agent.app import find_app
from fleetfold.cli.run import started
from fleetfold.cli.settings import Flags, settings_of
from fleetfold.errors import BadConfig


def demo(*, rounds: int = 20, devices: int = 10) -> int:
    """Train a digit classifier over ten simulated devices: 1,797 real scans, split unevenly.

    PyTorch if it is installed, numpy if not. Takes about half a minute; the run is kept like any other.

    **Examples**

    - `fleetfold demo`
    - `fleetfold demo --rounds 5`
    """
    if find_spec("sklearn") is None:
        raise BadConfig(
            "the demo's data come with scikit-learn, which is not installed",
            next="pip install 'fleetfold[demo]'",
        )
    app = find_app(str(examples() / ("digits" if find_spec("torch") else "digits-numpy")))
    flags = Flags(rounds=str(rounds), devices=str(devices))
    settings, _ = settings_of(app, flags)
    print(f"{app.name}: {devices} devices, {rounds} rounds; each device trains on scans that only it has\n")
    return started(app, settings, json=False)


def examples() -> Path:
    """The examples: beside the package when installed, at the top of a checkout."""
    inside = Path(__file__).parents[1] / "examples"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "examples"
