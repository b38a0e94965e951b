"""`fleetfold enroll` and `revoke` where the fleet is on AWS."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fleetfold.bundle import save
from fleetfold.errors import BadConfig
from fleetfold.wiring.local import home


def installed() -> None:
    """Raises BadConfig without the libraries of AWS, which are imported only where they are used."""
    missing = [name for name in ("boto3", "cryptography") if find_spec(name) is None]
    if missing:
        raise BadConfig(f"AWS needs {' and '.join(missing)}", next="pip install 'fleetfold[aws]'")


def enroll(names: Sequence[str], bundles: Sequence[Path], stack: str, request: str) -> None:
    """Write the bundle of each device. `request`: the signing request of the only one."""
    account, enrol = _account(stack)
    fleet = account.place.fleet
    for name, path in zip(names, bundles, strict=True):
        save(enrol.enroll(account.iot, account.records, account.place, name, time.time(), request), path)
        secret = "its key stays on the device" if request else "its key is in it, for the device alone"
        print(f"{path}: {name} of fleet {fleet} on AWS; {secret}")
    print(f"  next: on the device, fleetfold join {bundles[0]}")


def revoke(names: Sequence[str], stack: str) -> None:
    account, enrol = _account(stack)
    for name in names:
        how = enrol.revoke(account.iot, account.data, account.records, account.place, name, time.time())
        print(f"{name}: revoked, {how}")


def _account(stack: str) -> tuple[Any, Any]:
    installed()
    from fleetfold.aws import enrol
    from fleetfold.aws.stack import load

    return enrol.account(load(home(), stack)), enrol
