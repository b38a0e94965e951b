"""What people are shown of a round, from its arrivals."""

from fleetfold.ledger import Arrival
from fleetfold.messages import Evaluation, Metrics
from fleetfold.view import Spread, spread


def arrival(
    device: str, metrics: Metrics, evaluated: Metrics | None = None, state: str = "admitted"
) -> Arrival:
    evaluation = None if evaluated is None else Evaluation(examples=1, metrics=evaluated)
    return Arrival(device=device, seat=0, state=state, metrics=metrics, evaluation=evaluation)  # type: ignore[arg-type]


def test_the_spread_is_of_quartiles_of_who_counted() -> None:
    told = [arrival(f"d{k}", {"loss": float(k)}) for k in range(9)]
    refused = arrival("bad", {"loss": 1e9}, state="refused")
    assert spread([*told, refused], "loss") == Spread(0.0, 2.0, 4.0, 6.0, 8.0, 9)


def test_what_devices_say_of_the_model_that_they_were_given_comes_before_what_they_say_of_training() -> None:
    told = [arrival("a", {"loss": 5.0}, {"loss": 1.0}), arrival("b", {"loss": 6.0}, {"loss": 2.0})]
    found = spread(told, "loss")
    assert found is not None
    assert (found.least, found.most) == (1.0, 2.0)


def test_a_device_that_tells_no_number_is_not_in_the_spread() -> None:
    told = [arrival("a", {"loss": None}), arrival("b", {}), arrival("c", {"loss": float("nan")})]
    assert spread(told, "loss") is None
    found = spread([*told, arrival("d", {"loss": 3.0})], "loss")
    assert found == Spread(3.0, 3.0, 3.0, 3.0, 3.0, 1)
