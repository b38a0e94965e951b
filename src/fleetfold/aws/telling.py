"""What functions say to CloudWatch: structured lines, and metrics of each round that has ended (EMF), by the
names of `tell.numbers`.
"""

import os
from collections.abc import Mapping

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from fleetfold.tell.numbers import BY_NAME, MORE, SIX, Unit, of
from fleetfold.view import Row

NAMESPACE = "fleetfold"
UNITS: Mapping[Unit, MetricUnit] = {
    "": MetricUnit.NoUnit,
    "count": MetricUnit.Count,
    "seconds": MetricUnit.Seconds,
    "bytes": MetricUnit.Bytes,
    "USD": MetricUnit.NoUnit,
}
TOLD = frozenset(number.name for number in (*SIX, *MORE))
"""Which go there: each is paid for by the month. Of the model itself, nobody but devices scores it on AWS."""
FLEET = os.environ.get("FLEETFOLD_FLEET", "fleetfold")
logger = Logger(service="fleetfold")


def ignored(reason: str) -> None:
    logger.info("ignored", extra={"reason": reason})


def troubled(sentence: str) -> None:
    logger.error("tried again", extra={"reason": sentence})


def measured(run: str, row: Row) -> None:
    """One line that says how a round went, and its metrics in another; of an evaluation what it found."""
    about = {"run": run, "round": row.round, "kind": row.kind, "phase": row.phase}
    logger.info("round ended", extra={**about, "reason": row.reason})
    found = metrics(row)
    if found:
        told = EphemeralMetrics(namespace=NAMESPACE)
        told.service = ""  # else it is a dimension too, and the dashboard looks for these two
        told.add_dimension("fleet", FLEET)
        told.add_dimension("run", run)
        told.add_metadata("round", row.round)
        for name, value in found.items():
            told.add_metric(name, UNITS[BY_NAME[name].unit], value)
        told.flush_metrics()


def metrics(row: Row) -> dict[str, float]:
    """A round's numbers by their names."""
    return {name: value for name, value in of(row).items() if name in TOLD}
