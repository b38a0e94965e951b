"""What the hub knows of who is there, without reading its registry through."""

from fleetfold.adapters.memory import MemoryRecords
from fleetfold.coordinator.registrar import COUNTED, Registrar
from fleetfold.ledger import Ledger
from fleetfold.messages import Presence

FLEET = [f"d{n:03}" for n in range(400)]


def test_who_comes_and_goes_is_counted_at_once_and_who_was_enrolled_a_while_later() -> None:
    ledger = Ledger(MemoryRecords())
    ledger.enlist(FLEET)
    registrar = Registrar(ledger)
    assert registrar.count(1_000.0) == (0, 400)
    registrar.take([Presence(device=name) for name in ("d001", "d002", "stranger")], [], 1_000.0)
    assert registrar.count(1_000.0) == (2, 400)
    registrar.take([Presence(device="d002", online=False)], ["d003"], 1_000.1)
    assert registrar.count(1_000.1) == (1, 400)
    ledger.enlist(["d400"])
    assert registrar.count(1_000.2) == (1, 400)
    assert registrar.count(1_000.0 + 400 * COUNTED) == (1, 401)
    registrar.all_gone()
    assert registrar.count(1_002.1) == (0, 401)


def test_a_clock_that_is_set_back_does_not_stop_the_counting() -> None:
    ledger = Ledger(MemoryRecords())
    ledger.enlist(FLEET)
    registrar = Registrar(ledger)
    registrar.count(1_000.0)
    ledger.enlist(["d400"])
    assert registrar.count(10.0) == (0, 401)
