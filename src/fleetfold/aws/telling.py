"""What functions say to CloudWatch: structured lines, and metrics of each round that has ended (EMF).

accuracy loss devices_used responses_ok responses_failed refused late run_seconds fold_seconds
bytes_up bytes_down
"""

import os
from collections.abc import Mapping

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from fleetfold.view import Row

NAMESPACE = "fleetfold"
UNITS: Mapping[str, MetricUnit] = {
    "accuracy": MetricUnit.NoUnit,
    "loss": MetricUnit.NoUnit,
    "devices_used": MetricUnit.Count,
    "responses_ok": MetricUnit.Count,
    "responses_failed": MetricUnit.Count,
    "run_seconds": MetricUnit.Seconds,
    "bytes_up": MetricUnit.Bytes,
    "bytes_down": MetricUnit.Bytes,
    "fold_seconds": MetricUnit.Seconds,
    "late": MetricUnit.Count,
    "refused": MetricUnit.Count,
}
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
            told.add_metric(name, UNITS[name], value)
        told.flush_metrics()


def metrics(row: Row) -> dict[str, float]:
    """A round's numbers by their names. `responses_failed`: of who was invited and did not bring an update in
    time; `refused`: of those, whose did not pass."""
    scores = {"accuracy": row.accuracy, "loss": row.loss}
    found = {name: value for name, value in scores.items() if value is not None}
    if row.kind == "train":
        found |= {
            "devices_used": row.arrived + row.credited, "responses_ok": row.arrived,
            "responses_failed": row.cohort - row.arrived, "run_seconds": row.seconds,
            "bytes_up": row.bytes_up, "bytes_down": row.bytes_down, "fold_seconds": row.fold_seconds,
            "late": row.late, "refused": row.refused,
        }  # fmt: skip
    return found
