"""The numbers of a round, by the names that they have everywhere.

Row ─▶ of(row) ─▶ /metrics · CloudWatch · metrics.jsonl · TensorBoard · MLflow · CSV · report · compare
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

from fleetfold.view import Row, named

Unit = Literal["", "count", "seconds", "bytes", "USD"]


class Number(Struct, frozen=True):
    """One of them. `adds`: over rounds, its sum says something; else only its newest value does."""

    name: str
    title: str
    unit: Unit
    adds: bool
    of: Callable[[Row], float | None]


REPORTERS = ("devices", "trained")
"""What devices reported of the model that they were given, or else of what they made of it."""


def _reported(name: str) -> Callable[[Row], float | None]:
    def found(row: Row) -> float | None:
        told = (named(row.metrics.get(by, {}), name) for by in REPORTERS)
        return next((value for value in told if value is not None), None)

    return found


SIX = (
    Number("reported_accuracy", "accuracy reported by devices", "", False, _reported("accuracy")),
    Number("reported_loss", "loss reported by devices", "", False, _reported("loss")),
    Number("devices_used", "devices used", "count", True, lambda row: row.arrived + row.credited),
    Number("responses_ok", "successful responses", "count", True, lambda row: row.arrived),
    Number("responses_failed", "failed responses", "count", True, lambda row: row.cohort - row.arrived),
    Number("run_seconds", "run time", "seconds", True, lambda row: row.seconds),
)
"""What people watched before there was fleetfold. `devices_used`: whose updates are in the model, with late
ones that are credited; `responses_failed`: of those invited, who brought nothing in time that counts."""
MORE = (
    Number("bytes_up", "bytes up", "bytes", True, lambda row: row.bytes_up),
    Number("bytes_down", "bytes down", "bytes", True, lambda row: row.bytes_down),
    Number("fold_seconds", "fold seconds", "seconds", True, lambda row: row.fold_seconds),
    Number("late", "late updates", "count", True, lambda row: row.late),
    Number("refused", "refused updates", "count", True, lambda row: row.refused),
    Number("cost", "cost", "USD", True, lambda row: row.cost),
)
MODEL = (
    Number("accuracy", "accuracy of the model", "", False, lambda row: row.accuracy),
    Number("loss", "loss of the model", "", False, lambda row: row.loss),
    Number("epsilon", "privacy spent, ε", "", False, lambda row: row.epsilon),
)
"""Of the model itself, by whoever could score it best (`Row.scored_by`), and what it has cost of privacy."""
NUMBERS = (*SIX, *MORE, *MODEL)
BY_NAME: Mapping[str, Number] = {number.name: number for number in NUMBERS}


def of(row: Row) -> dict[str, float]:
    """The numbers that a row has, by their names; all are finite. A round that only evaluates has scores
    alone: what it takes is not of the training."""
    scores_only = row.kind == "evaluate"
    found = {
        number.name: value
        for number in NUMBERS
        if not (scores_only and number.adds) and (value := number.of(row)) is not None
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}
