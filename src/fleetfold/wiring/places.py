"""Runs by name or `latest`, as they lie below FLEETFOLD_HOME."""

from contextlib import suppress
from pathlib import Path

from fleetfold import layout
from fleetfold.errors import BadConfig
from fleetfold.wiring.local import CLOUD, FLEET, Place
from fleetfold.wiring.local import home as here

RECORDS = ("ledger.db", CLOUD)
"""What a run's folder has: its records, or the link to where they are."""


def all_runs() -> list[Place]:
    """Every run, the newest first."""
    home = here()
    found = {path.parent for name in RECORDS for path in (home / "runs").glob(f"*/{name}")}
    return [Place(home, folder.name) for folder in sorted(found, key=lambda folder: -_begun(folder))]


def existing(name: str) -> Place:
    """The run of that name, or the newest for `latest`. Raises BadConfig."""
    home = here()
    if name == "latest":
        runs = all_runs()
        if not runs:
            raise BadConfig(f"there are no runs in {home}", next="fleetfold run APP, or set FLEETFOLD_HOME")
        return runs[0]
    place = Place(home, layout.checked_name(name, "run"))
    if not any((place.folder / name).is_file() for name in RECORDS):
        raise BadConfig(f"there is no run {name!r} in {home}", next="fleetfold runs")
    return place


def _begun(folder: Path) -> float:
    """When the run was opened: its first model is never written again, nor is the link of a hub's run or of
    one on AWS, whose models may be in a store."""
    firsts = (folder / "models" / "000000.safetensors", folder / "app.json", folder / FLEET, folder / CLOUD)
    for first in firsts:
        with suppress(OSError):
            return first.lstat().st_mtime
    return 0.0
