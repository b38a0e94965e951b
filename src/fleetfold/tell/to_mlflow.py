"""A run's numbers into an MLflow tracking store: a database, a server, or a folder, by MLflow's own client.

A run of ours is one of theirs, found again by its tags: what was told before is not told twice, so that an
export may die in between, or be made while the run goes on.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from fleetfold.errors import BadConfig, Unavailable
from fleetfold.round.run import Run, RunState
from fleetfold.settings import NAMES, show
from fleetfold.tell.exports import ended, series, step
from fleetfold.view import Row

STORE = "sqlite:///mlflow.db"
"""MLflow's own default."""
AT_ONCE = 1000
"""Numbers that MLflow takes at a time."""
PARAMETER = 500
"""Characters of a setting that every version of MLflow takes."""
STATES = {RunState.RUNNING: "RUNNING", RunState.DONE: "FINISHED", RunState.FAILED: "FAILED"}


def export(run: Run, rows: Sequence[Row], store: str = "") -> str:
    """Tell `store` of the run, in the experiment of its app. "": MLFLOW_TRACKING_URI, or STORE. → where.
    Raises BadConfig without MLflow, Unavailable where the store does not answer."""
    if find_spec("mlflow") is None:
        raise BadConfig("MLflow is not installed here", next="pip install 'fleetfold[mlflow]'")
    store = store or os.environ.get("MLFLOW_TRACKING_URI", "") or STORE
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        _tell(MlflowClient(tracking_uri=store), run, ended(rows))
    except MlflowException as error:
        raise Unavailable(f"MLflow at {store}: {str(error).splitlines()[0][:300]}") from None
    return store


def _tell(client: Any, run: Run, rows: Sequence[Row]) -> None:
    from mlflow.entities import Metric, Param

    id = _found(client, run) or _made(client, run)
    data = client.get_run(id).data
    known = {name: {each.step for each in client.get_metric_history(id, name)} for name in data.metrics}
    fresh = [
        Metric(name, value, int(row.ended_at * 1000), step(row))
        for row in rows
        for name, value in series(row).items()
        if step(row) not in known.get(name, ())
    ]
    for first in range(0, len(fresh), AT_ONCE):
        client.log_batch(id, metrics=fresh[first : first + AT_ONCE])
    settings = {name: show(name, getattr(run.settings, name))[:PARAMETER] for name in NAMES}
    unsaid = [Param(name, value) for name, value in settings.items() if value and name not in data.params]
    client.log_batch(id, params=unsaid)  # what was said of a setting stays, though --rounds may have changed
    if run.state is not RunState.RUNNING:
        client.set_terminated(id, STATES[run.state], int(run.ended_at * 1000))


def _identity(run: Run) -> dict[str, str]:
    return {"fleetfold.run": run.name, "fleetfold.started_at": f"{run.started_at:.6f}"}


def _experiment(client: Any, run: Run) -> str:
    name = run.name.rpartition("-")[0] or run.name
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _found(client: Any, run: Run) -> str:
    """The id of the run in MLflow; "" if it has none yet."""
    named = " and ".join(f"tags.`{name}` = '{value}'" for name, value in _identity(run).items())
    found = client.search_runs([_experiment(client, run)], filter_string=named, max_results=1)
    return str(found[0].info.run_id) if found else ""


def _made(client: Any, run: Run) -> str:
    made = client.create_run(
        _experiment(client, run), start_time=int(run.started_at * 1000), tags=_identity(run),
        run_name=run.name,
    )  # fmt: skip
    return str(made.info.run_id)
