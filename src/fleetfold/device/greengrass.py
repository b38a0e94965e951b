"""The agent as a component of a Greengrass core: what it is and on which terms, the deployment says.

nucleus ─▶ configuration {"fleet", "terms"}, thing's name ─▶ HOME/bundle.json, settings.json ─▶ join

There is no key in that bundle: the nucleus has the connection, and models come by signed addresses.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fleetfold import bundle
from fleetfold.adapters.greengrass_link import nucleus
from fleetfold.bundle import Bundle
from fleetfold.device import commands, terms
from fleetfold.device.terms import Home
from fleetfold.errors import BadConfig, told
from fleetfold.wiring.device import GREENGRASS

PLACE = "the component's configuration"


def main(arguments: Sequence[str]) -> None:
    """WORK THING APP: the component's folder, the core's own name, the app that came with the component."""
    try:
        work, thing, app = arguments
        home = prepare(Path(work), thing, Path(app), configuration(nucleus))
    except Exception as error:  # noqa: BLE001 - whatever it is, a sentence is what the component's log needs
        sentence, next, code = told(error)
        print(f"error: {sentence}" + (f"\n  next: {next}" if next else ""), file=sys.stderr)
        sys.exit(code)
    commands.main(["join", "--home", str(home.path), "--link", GREENGRASS])


def configuration(open: Callable[[], Any]) -> Mapping[str, Any]:
    """The component's, as its newest deployment has it. Raises Unavailable."""
    client = open()
    try:
        value: Mapping[str, Any] = client.get_configuration(key_path=[]).value
        return value
    finally:
        client.close()


def prepare(work: Path, thing: str, app: Path, given: Mapping[str, Any]) -> Home:
    """The device's home, on the terms of the configuration and no older ones. Raises BadConfig."""
    fleet, chosen = given.get("fleet"), given.get("terms") or {}
    if not isinstance(fleet, str) or not isinstance(chosen, Mapping):
        raise BadConfig(f"{PLACE} has no fleet, or no terms", next="fleetfold aws greengrass deploy")
    kept = {name: value for name, value in chosen.items() if value not in ("", None)}
    if "app" not in kept and app.is_dir():
        kept["app"] = str(app)
    terms.resolve({PLACE: kept})
    home = Home(work / "home")
    home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    terms.take_in(home, Bundle(fleet=fleet, device=thing, brokers=(), authority="", certificate=""))
    bundle.private(home.settings, msgspec.json.format(msgspec.json.encode(kept)) + b"\n")
    return home


if __name__ == "__main__":
    main(sys.argv[1:])
