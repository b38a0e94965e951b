"""/metrics: what Prometheus is told of the runs below FLEETFOLD_HOME, and of a hub's fleet."""

from pathlib import Path

from fleetfold.aws.pricing import priced
from fleetfold.ledger import Ledger
from fleetfold.ports import Objects
from fleetfold.round.fleet import Device
from fleetfold.tell.prometheus import Exposed
from fleetfold.view import Priced
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place
from fleetfold.wiring.places import all_runs


def exposed(home: Path) -> Exposed:
    def opened(name: str) -> tuple[Ledger, Objects, Priced | None]:
        place = Place(home, name)
        ledger = wiring.ledger(place)
        return ledger, wiring.objects(place), priced(place, ledger)

    def fleet() -> list[Device]:
        there = (wiring.hub_folder(home) / "hub.db").exists()
        return Ledger(wiring.hub_records(home)).fleet() if there else []

    return Exposed(lambda: [place.run for place in all_runs()], opened, fleet)
