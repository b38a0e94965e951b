"""Runs by name or `latest`, as they lie below FLEETFOLD_HOME; and paths for people."""

from pathlib import Path

from fleetfold.wiring.places import all_runs, existing

__all__ = ["all_runs", "existing", "shown"]


def shown(path: Path) -> str:
    """The path as seen from the current folder, where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
