"""How a data set is shared out among devices. Each rule returns, for each device, the indices it holds:
every example to exactly one device, the same for the same seed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfold.errors import BadConfig

Indices = NDArray[np.int64]
Labels = NDArray[Any]


def iid(n: int, devices: int, seed: int) -> list[Indices]:
    """Shuffled and dealt out evenly. n: examples."""
    _enough(n, devices)
    return [np.sort(part) for part in np.array_split(_rng(seed).permutation(n), devices)]


def dirichlet(labels: Labels, devices: int, alpha: float, seed: int, least: int = 1) -> list[Indices]:
    """Each label's examples are shared out by proportions drawn from Dirichlet(alpha).

    Small alpha: devices that see few labels; large: nearly even. Hsu, Qi and Brown, "Measuring the
    Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019. A device left
    with fewer than `least` examples takes from the one that has most.
    """
    _enough(len(labels), devices, least)
    if not 0 < alpha < float("inf"):
        raise BadConfig(f"dirichlet:{alpha}: alpha must be a number above 0")
    rng = _rng(seed)
    held: list[list[int]] = [[] for _ in range(devices)]
    for alike in by_column(labels).values():
        members = rng.permutation(alike)
        shares = rng.dirichlet(np.full(devices, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(members)).round().astype(int)
        for device, part in enumerate(np.split(members, cuts)):
            held[device].extend(part.tolist())
    for poor in held:
        while len(poor) < least:
            poor.append(max(held, key=len).pop())
    return [np.sort(np.array(part, np.int64)) for part in held]


def shards(labels: Labels, devices: int, each: int, seed: int) -> list[Indices]:
    """Sorted by label, cut into devices × each shards, `each` shards to a device.

    McMahan et al., 2017, with each = 2: most devices see two labels.
    """
    if each < 1:
        raise BadConfig(f"shards:{each}: each device needs at least 1")
    _enough(len(labels), devices, each)
    parts = np.array_split(np.argsort(labels, kind="stable"), devices * each)
    order = _rng(seed).permutation(len(parts)).reshape(devices, each)
    return [np.sort(np.concatenate([parts[i] for i in mine])) for mine in order]


def by_column(values: Labels) -> dict[str, Indices]:
    """One device for each distinct value (a writer, a hospital, a sensor), by that value's name."""
    found, which = np.unique(values, return_inverse=True)  # unlike ==, finds what is not a number too
    return {str(value): np.flatnonzero(which == i) for i, value in enumerate(found)}


def _enough(examples: int, devices: int, each: int = 1) -> None:
    if devices < 1 or examples < devices * each:
        raise BadConfig(f"{examples} examples cannot be shared out {devices * each} ways")


def _rng(seed: int) -> np.random.Generator:
    if seed < 0:
        raise BadConfig(f"seed {seed}: from 0 up")
    return np.random.default_rng(seed)
