"""fleetfold split: one data set into the shares of many devices, each a file of its own."""

import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from fleetfold.cli.progress import progress
from fleetfold.datasets.files import Columns, load
from fleetfold.datasets.partition import Indices, by_column, dirichlet, iid, shards
from fleetfold.errors import BadConfig, typed


def split(
    source: Path,
    /,
    *,
    out: Annotated[Path, Parameter(help="folder to write device-000.npz … into; must not hold any yet")],
    devices: Annotated[int, Parameter(help="how many (not with column:NAME)")] = 10,
    by: Annotated[str, Parameter(help="iid, dirichlet:ALPHA, shards:EACH, column:NAME")] = "iid",
    labels: Annotated[str, Parameter(help="the column with the labels")] = "y",
    test: Annotated[float, Parameter(help="share held out into test.npz")] = 0.0,
    seed: int = 0,
) -> None:
    """Split a data set (.npz, .csv, MNIST's idx files, CIFAR-10's python batches) among devices.

    Then `fleetfold run APP --data FOLDER --devices N` gives each device its own file, as `device.data`.

    **Examples**

    - `fleetfold split data.npz --out shares --devices 20 --by dirichlet:0.5 --test 0.2`
    - `fleetfold split mnist/ --out shares --devices 100 --by shards:2`
    - `fleetfold split patients.csv --out shares --by column:hospital`
    """
    with progress(f"reading {source}"):
        columns = load(source.expanduser())
    if not 0 <= test < 1:
        raise BadConfig(f"--test {test}: a share, from 0 up to 1")
    if devices < 1:
        raise BadConfig(f"--devices {devices}: at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadConfig(f"--out {out} is there already and not empty", next=f"rm -r {out}, or another folder")
    if seed < 0:
        raise BadConfig(f"--seed {seed}: from 0 up")
    n = len(next(iter(columns.values())))
    held, order = round(n * test), np.random.default_rng(seed).permutation(n)
    if held == n:
        raise BadConfig(f"--test {test}: nothing of {n} examples would be left to train on")
    held_out, rest = order[:held], np.sort(order[held:])
    kept = {name: array[rest] for name, array in columns.items()}
    shares, names = _shares(kept, by, labels, devices, seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with progress(f"writing to {out}", unit="devices") as told:
            for index, share in enumerate(shares):
                _save(out / f"device-{index:03}.npz", kept, share)
                told(index + 1, len(shares))
        if len(held_out):
            _save(out / "test.npz", columns, held_out)
        if names:
            (out / "names.json").write_text(json.dumps(names, indent=2))
    except OSError as error:
        raise BadConfig(f"--out {out}: {error.strerror or error}") from None
    sizes = [len(share) for share in shares]
    print(
        f"{out}: {len(sizes)} devices with {min(sizes)} to {max(sizes)} of {sum(sizes)} examples"
        + (f", {len(held_out)} held out in test.npz" if len(held_out) else "")
        + f"\n  next: {typed(f'fleetfold run APP --data {out} --devices {len(sizes)}')}"
    )


def _save(path: Path, columns: Columns, rows: NDArray[Any]) -> None:
    """What np.savez writes, for columns of any name: it would take one called `file` for its own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array[rows], allow_pickle=False)


def _shares(
    columns: Columns, by: str, labels: str, devices: int, seed: int
) -> tuple[list[Indices], dict[str, str]]:
    """The indices of each device, and for a column the value that each stands for."""
    rule, _, argument = by.partition(":")
    try:
        match rule:
            case "iid":
                return iid(len(next(iter(columns.values()))), devices, seed), {}
            case "dirichlet":
                return dirichlet(_column(columns, labels), devices, float(argument or 0.5), seed), {}
            case "shards":
                return shards(_column(columns, labels), devices, int(argument or 2), seed), {}
            case "column":
                found = by_column(_column(columns, argument))
                names = {f"device-{i:03}": value for i, value in enumerate(found)}
                return list(found.values()), names
    except ValueError:
        raise BadConfig(f"--by {by}: {argument!r} is not a number") from None
    raise BadConfig(f"--by {by}: not one of iid, dirichlet:ALPHA, shards:EACH, column:NAME")


def _column(columns: Columns, name: str) -> NDArray[Any]:
    if name not in columns:
        raise BadConfig(
            f"there is no column {name!r}; there are {', '.join(columns)}",
            next="name it with --labels NAME or --by column:NAME",
        )
    if columns[name].ndim != 1:
        raise BadConfig(f"column {name!r} has {columns[name].ndim} dimensions, not one value per example")
    return columns[name]
