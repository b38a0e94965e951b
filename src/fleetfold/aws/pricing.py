"""What a round on AWS has cost, for whoever shows a run: by a model and public prices (aws/cost.py)."""

from fleetfold.ledger import Ledger
from fleetfold.view import Priced
from fleetfold.wiring.local import Place, where


def priced(place: Place, ledger: Ledger) -> Priced | None:
    """What tells the cost of a round of that run, if it is one that is paid for by the round."""
    if where(place) != "cloud":
        return None
    from fleetfold.aws.cost import pricing

    return pricing(ledger)
