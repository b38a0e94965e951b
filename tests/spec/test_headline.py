"""What a round is called, and which of its numbers people see first."""

from typing import Any

import pytest

from fleetfold.messages import Kind
from fleetfold.round.state import Phase, Policy, Round
from fleetfold.view import Row, headline, title, trained


def ended(metrics: dict[str, dict[str, float | None]]) -> Round:
    policy = Policy(target=1, quorum=1, deadline=1.0, lease=1.0)
    return Round(
        run="r", number=1, base=0, cohort="c", invited=1, policy=policy, opened_at=0.0, phase=Phase.DONE,
        metrics=metrics,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"trained": {"loss": 0.5, "accuracy": 0.9}}, (0.5, 0.9, "trained")),
        ({"trained": {"train_loss": 0.5, "num-examples": 7.0}}, (0.5, None, "trained")),
        ({"devices": {"eval_acc": 0.8, "eval_loss": 0.3}}, (0.3, 0.8, "devices")),
        ({"devices": {"eval_loss": 9.0, "loss": 0.3, "val_Accuracy": 0.8}}, (0.3, 0.8, "devices")),
        ({"devices": {"loss": None, "other": 1.0}, "trained": {"loss": 0.5}}, (0.5, None, "trained")),
        ({"test": {"acc": 0.7}, "trained": {"loss": 0.5}}, (None, 0.7, "test")),
        ({"trained": {"bytes": 1.0}}, (None, None, "")),
    ],
)
def test_the_loss_and_the_accuracy_are_known_by_their_names(metrics: Any, shown: Any) -> None:
    assert headline(ended(metrics)) == shown


def row(number: int, kind: Kind, label: str = "", turn: int = 0, phase: str = "done") -> Row:
    return Row(
        round=number, kind=kind, label=label, turn=turn, phase=phase, reason="", cohort=1, arrived=1,
        refused=0, late=0, credited=0, loss=None, accuracy=None, scored_by="", epsilon=None, metrics={},
        seconds=1.0, fold_seconds=0.0, bytes_up=0, bytes_down=0,
    )  # fmt: skip


def test_an_exchange_is_called_as_its_app_calls_it() -> None:
    assert title(row(3, "train")) == "3"
    assert title(row(3, "evaluate")) == "3 eval"
    assert title(row(7, "message", "train", 4)) == "4"
    assert title(row(8, "message", "evaluate", 4)) == "4 eval"
    assert title(row(9, "message", "query")) == "#9 query"
    assert title(row(9, "message", "query.battery", 2)) == "2 query"


def test_several_exchanges_to_train_may_be_one_round_of_the_app() -> None:
    exchanges = [row(n, "message", "train", n // 2) for n in (2, 3, 4)]
    assert trained([*exchanges, row(5, "message", "evaluate", 2), row(6, "message", "train", 3, "open")]) == 2
    assert trained([row(1, "train"), row(1, "evaluate"), row(2, "train")]) == 2
