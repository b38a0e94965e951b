"""fleetfold export: a run's model as a file of its own, or its numbers for another program."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fleetfold import layout
from fleetfold.agent.torch_file import save_torch
from fleetfold.aws.pricing import priced
from fleetfold.cli.files import saved
from fleetfold.cli.places import existing
from fleetfold.cli.progress import fetched
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import read, write
from fleetfold.round.run import Run
from fleetfold.tell import exports
from fleetfold.view import Row, rows
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

TENSORBOARD = Path("tensorboard")


def export(
    run: str = "latest",
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(help="the file to write: .safetensors, or .pt with PyTorch; with --to see there"),
    ] = None,
    version: Annotated[
        int | None, Parameter(help="the model after so many rounds; default: the newest")
    ] = None,
    to: Annotated[
        Literal["csv", "jsonl", "tensorboard", "mlflow", "otlp"] | None,
        Parameter(help="its numbers instead of its model, for that program"),
    ] = None,
    store: Annotated[
        str, Parameter(help="with --to mlflow: the tracking URI; with otlp: the collector's URL")
    ] = "",
) -> None:
    """Write a run's model to a file: .safetensors, or .pt (a PyTorch state_dict). With --to, its numbers: a
    row a round as csv or jsonl, to --out or the screen; for TensorBoard into a folder (--out, default
    `tensorboard`); into MLflow's tracking store; or its rounds as traces to an OpenTelemetry collector.

    The same export again is the same: nothing is told twice.

    **Examples**

    - `fleetfold export latest --out model.safetensors`
    - `fleetfold export digits-1 --version 5 --out after-5.pt`
    - `fleetfold export digits-1 --to csv --out digits-1.csv`
    - `fleetfold export digits-1 --to tensorboard` and then `tensorboard --logdir tensorboard`
    - `fleetfold export digits-1 --to mlflow --store http://127.0.0.1:5000`
    - `fleetfold export digits-1 --to otlp --store http://127.0.0.1:4318`
    """
    place = existing(run)
    ledger = wiring.ledger(place)
    found = ledger.run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold runs")
    if to is None:
        _model(place, found[0], out, version)
        return
    if version is not None:
        raise BadConfig("--version is for a model; --to takes the numbers of all rounds")
    if store and to not in ("mlflow", "otlp"):
        raise BadConfig(f"--store is for mlflow and otlp; --to {to} writes to --out")
    told = rows(ledger, wiring.objects(place), place.run, time.time(), priced(place, ledger))
    if to in ("csv", "jsonl"):
        csv = to == "csv"
        text = exports.to_csv(place.run, told).encode() if csv else exports.json_lines(place.run, told)
        if out is None:
            sys.stdout.buffer.write(text)
            return
        saved(out, text)
        print(f"{out}: {len(exports.ended(told))} rounds of {place.run}")
    elif to == "tensorboard":
        path = _event_file(out or TENSORBOARD, place.run, told)
        print(f"{path}\n  next: tensorboard --logdir {out or TENSORBOARD}")
    elif to == "mlflow":
        from fleetfold.tell import to_mlflow

        where = to_mlflow.export(found[0], told, store)
        print(f"{where}: {len(exports.ended(told))} rounds of {place.run}")
    else:
        print(_traces(place, store))


def _model(place: Place, run: Run, out: Path | None, version: int | None) -> None:
    if out is None:
        raise BadConfig("where to?", next=f"fleetfold export {run.name} --out model.safetensors")
    number = run.version if version is None else version
    try:
        data = fetched(wiring.objects(place), layout.model(place.run, number), f"model {number}")
    except KeyError:
        raise BadConfig(
            f"run {place.run} has no model {number}; its newest is {run.version}",
            next=f"fleetfold show {place.run}",
        ) from None
    tensors, _ = read(data)
    try:
        match out.suffix:
            case ".safetensors":
                out.write_bytes(write(tensors))
            case ".pt" | ".pth":
                save_torch(tensors, out)
            case _:
                raise BadConfig(f"--out {out}: the name must end in .safetensors or .pt")
    except OSError as error:
        raise BadConfig(f"--out {out}: {error.strerror}") from None
    parameters = sum(array.size for array in tensors.values())
    private = _privacy(place, number)
    print(f"{out}: model {number} of {place.run}, {len(tensors)} tensors, {parameters:,} values{private}")


def _event_file(folder: Path, run: str, told: Sequence[Row]) -> Path:
    path = folder / run / exports.event_name(run, told)
    saved(path, exports.event_file(told))
    return path


def _privacy(place: wiring.Place, version: int) -> str:
    """What the run had spent when it released that model; nothing where it hides nobody."""
    for round in wiring.ledger(place).rounds(place.run):
        told = round.metrics.get("privacy")
        if told and round.base + 1 == version:
            return f", ε {told['epsilon']:.3f} at δ = {told['delta']:.3g}"
    return ""


def _traces(place: Place, collector: str) -> str:
    from fleetfold.tell import traces

    if not collector and not traces.wanted():
        raise BadConfig(
            "where is the collector?",
            next=f"fleetfold export {place.run} --to otlp --store http://127.0.0.1:4318",
        )
    rounds, spans = traces.send_all(traces.exporter(collector), wiring.ledger(place), place.run)
    return f"{rounds} rounds of {place.run}: {spans} spans"
