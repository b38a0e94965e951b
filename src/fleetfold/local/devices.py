"""The simulated devices of a run on this machine, and which share of the data each of them holds."""

from pathlib import Path

from fleetfold.agent.trainer import Device
from fleetfold.errors import BadConfig
from fleetfold.settings import Settings


def simulated(settings: Settings) -> list[Device]:
    """The simulated devices of a run, each with its own share of `settings.data` where that is set.

    Raises BadConfig when the folder holds no file or folder for one of the devices.
    """
    names = [f"device-{index:03}" for index in range(settings.devices)]
    shares: dict[str, Path] = {}
    if settings.data:
        folder = Path(settings.data).expanduser()
        if not folder.is_dir():
            raise BadConfig(
                f"data = {settings.data!r}: there is no such folder",
                next="fleetfold split SOURCE --out FOLDER --devices N",
            )
        shares = {path.stem if path.is_file() else path.name: path for path in folder.iterdir()}
        missing = [name for name in names if name not in shares]
        if missing:
            raise BadConfig(
                f"data = {settings.data!r}: nothing there for {missing[0]}",
                next=f"fleetfold split SOURCE --out FOLDER --devices {len(names)}",
            )
    return [
        Device(name=name, index=index, count=len(names), data=shares.get(name))
        for index, name in enumerate(names)
    ]
