"""`fleetfold enroll` and `revoke` where the fleet is on AWS."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

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


def enroll_polling(names: Sequence[str], bundles: Sequence[Path], stack: str) -> None:
    """The same for devices that have no connection, and look for mail."""
    account, enrol = _account(stack)
    from fleetfold.adapters.stores import LONGEST_BY_ROLE
    from fleetfold.aws.stack import load
    from fleetfold.wiring.aws import objects

    known = load(home(), stack)
    store = objects(known.bucket, known.region).signer
    for name, path in zip(names, bundles, strict=True):
        save(enrol.enroll_polling(account.records, store, account.place, name, time.time()), path)
        print(f"{path}: {name} of fleet {account.place.fleet} on AWS; it looks for its mail")
    hours = LONGEST_BY_ROLE / 3600
    print(
        f"  the first address is good for as long as your credentials let it, 7 days at most; later ones for "
        f"{hours:.0f} h: a device that is silent for longer has to be enrolled anew"
    )
    print(f"  next: on the device, fleetfold join {bundles[0]}")


def revoke(names: Sequence[str], stack: str) -> None:
    account, enrol = _account(stack)
    for name in names:
        how = enrol.revoke(account.iot, account.data, account.records, account.place, name, time.time())
        print(f"{name}: revoked, {how}")


def claim(
    *,
    out: Annotated[Path, Parameter(help="the file to write, for all of the new devices")] = Path(
        "claim.bundle"
    ),
    revoke: Annotated[bool, Parameter(help="have none of this fleet count any more", negative="")] = False,
    stack: Annotated[str, Parameter(help="which stack, if this machine knows several")] = "",
) -> None:
    """Make a claim: one file by which many devices join, each under a name of its own that is still free.

    Whoever has it may become a device of the fleet: keep it like a key, and revoke it when all are in.

    **Examples**

    - `fleetfold aws claim` and on each device `fleetfold join claim.bundle --device press-7 --app my-app`
    - `fleetfold aws claim --revoke`
    """
    account, _ = _account(stack)
    from fleetfold.aws import claims
    from fleetfold.aws.stack import load

    policy, template = claims.names(load(home(), stack))
    if revoke:
        count = claims.revoke(account.iot, policy)
        print(f"{count} claim{'' if count == 1 else 's'} of fleet {account.place.fleet}: void")
        return
    save(claims.claim(account, policy, template), out)
    print(f"{out}: whoever has it may become a device of fleet {account.place.fleet}")
    print(f"  next: on each device, fleetfold join {out} --device NAME")


def _account(stack: str) -> tuple[Any, Any]:
    installed()
    from fleetfold.aws import enrol
    from fleetfold.aws.stack import load

    return enrol.account(load(home(), stack)), enrol
