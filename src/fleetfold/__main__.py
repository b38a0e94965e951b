"""`fleetfold …`: a device's commands need the four dependencies of an agent; all others the extra `local`."""

import sys
from importlib.util import find_spec

DEVICE = ("join", "agent")
"""Commands of a device: they start without the rest."""


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in DEVICE:
        from fleetfold.device.commands import main as device

        device(sys.argv[1:])
        return
    missing = [name for name in ("cyclopts", "rich", "obstore") if find_spec(name) is None]
    if missing:
        sys.exit(
            f"error: this command needs {', '.join(missing)}; a device has `fleetfold join` and `fleetfold "
            "agent status`\n  next: pip install 'fleetfold[local]'"
        )
    from fleetfold.cli.main import main as cli

    cli()


if __name__ == "__main__":
    main()
