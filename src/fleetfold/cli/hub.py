"""fleetfold hub init, enroll and revoke: an authority of its own, and who belongs to its fleet."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from fleetfold.adapters.lock import held
from fleetfold.bundle import save
from fleetfold.cli import fleet as on_aws
from fleetfold.cli.places import shown
from fleetfold.errors import BadConfig, typed
from fleetfold.layout import checked_name
from fleetfold.log import Log, Shape
from fleetfold.wiring.local import home, hub_folder, hub_records

hub = App(name="hub", help="Keep a hub on site: a broker, a door for objects and the coordinator in one box.")


def installed() -> None:
    """Raises BadConfig without the libraries of a hub, which are imported only where they are used."""
    missing = [name for name in ("aiohttp", "cryptography") if find_spec(name) is None]
    if missing:
        raise BadConfig(f"a hub needs {' and '.join(missing)}", next="pip install 'fleetfold[hub]'")


@hub.command
def init(
    *,
    fleet: Annotated[str, Parameter(help="the name of its fleet")] = "main",
    host: Annotated[
        list[str] | None,
        Parameter(
            help="a name or address that devices find it under; may be given several times. Default: this "
            "machine's name, localhost and 127.0.0.1",
            negative="",
        ),
    ] = None,
    mqtt_port: Annotated[int, Parameter(help="of the broker")] = 8883,
    door_port: Annotated[int, Parameter(help="of the door for objects, over HTTPS")] = 8443,
    websockets: Annotated[int, Parameter(help="port of the broker for WebSockets; 0: none")] = 0,
    door_url: Annotated[
        str, Parameter(help="where devices find the door, if not at HOST and its port: https://HOST:PORT")
    ] = "",
    objects: Annotated[
        str,
        Parameter(help="keep models and updates in s3://, gs:// or az://; no byte passes the hub"),
    ] = "",
) -> None:
    """Make the hub in `FLEETFOLD_HOME/hub`: its certificate authority, its keys, its ports.

    The keys are for this user alone. Nothing expires: who belongs is up to `fleetfold enroll` and `revoke`.

    **Examples**

    - `fleetfold hub init --host hub.clinic.example`
    - `fleetfold hub init --host 192.168.1.5 --websockets 443`
    - `fleetfold hub init --objects s3://my-bucket/fleet`
    """
    installed()
    from fleetfold.hub.authority import Site, create

    hosts = dict.fromkeys(host or (socket.gethostname(), "localhost", "127.0.0.1"))
    site = Site(
        fleet=fleet,
        hosts=tuple(hosts),
        mqtt=mqtt_port,
        websockets=websockets,
        door=door_port,
        door_url=door_url,
        objects=objects,
    )
    folder = hub_folder(home())
    create(folder, site)
    print(
        f"{shown(folder)}: the hub of fleet {fleet}; its broker will be {', '.join(site.brokers)}\n"
        f"  next: {typed('fleetfold enroll DEVICE')}"
    )


@hub.default
def serve(
    *,
    broker: Annotated[
        str, Parameter(help="use this broker, mqtts://HOST:PORT, instead of starting one")
    ] = "",
    log_format: Annotated[Shape, Parameter(help="what it tells as it goes, a line each")] = "text",
) -> None:
    """Serve the fleet, until Ctrl-C: broker, door, and whatever runs are in the queue.

    It starts Mosquitto by itself, and again if it dies. Kill it whenever you like: the next one goes on.
    A broker of your own has to demand certificates of this hub's authority, and to keep devices apart.

    **Examples**

    - `fleetfold hub init --host 192.168.1.5` and then `fleetfold hub`
    - `fleetfold hub --broker mqtts://broker.factory.example:8883`
    - `fleetfold hub --log-format json`
    """
    installed()
    from fleetfold.hub.serve import Hub

    folder = hub_folder(home())

    log = Log(log_format, sys.stderr, dated=True)
    with held(folder / "process", f"the hub in {shown(folder)}"):
        served = Hub(home(), log, broker)
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not in the handler itself: the lock may be held by whom it interrupts.
            signal.signal(number, lambda *_: threading.Thread(target=served.stop).start())
        served.serve(log)
    log("the hub has left; its devices train on, and the next one goes on from here")


@hub.command
def status(*, json: Annotated[bool, Parameter(help="print JSON", negative="")] = False) -> None:
    """Tell how the hub fares: its broker, its door, its run, and what it had to ignore or refuse.

    **Examples**

    - `fleetfold hub status`
    - `fleetfold hub status --json`
    """
    installed()
    from fleetfold.hub import desk
    from fleetfold.hub.authority import site

    site(hub_folder(home()))
    found = desk.status(hub_records(home()))
    if found is None:
        raise BadConfig("no hub has run here yet", next="fleetfold hub")
    if json:
        print(msgspec.json.encode(found).decode())
        return
    age = time.time() - found.told_at
    runs = f"process {found.pid}" if age < 3 * desk.TELL else f"not running; it told last {age:.0f} s ago"
    broker = "connected" if found.connected else f"not connected: {found.why}"
    lines = [
        ("hub", runs),
        ("broker", f"{found.broker}, {broker}"),
        ("door", found.door),
        ("devices", f"{found.online} online of {found.known}"),
        ("run", found.run or "none; fleetfold run APP --hub"),
        *([("waits", found.saying)] if found.saying else []),
        *((f"ignored {count}", reason) for reason, count in sorted(found.ignored.items())),
        *((f"refused {count}", reason) for reason, count in sorted(found.refused.items())),
    ]
    for name, text in lines:
        print(f"{name:12} {text}")


def enroll(
    *device: str,
    csr: Annotated[
        Path | None, Parameter(help="the device's signing request, in PEM: its key stays its own")
    ] = None,
    out: Annotated[Path | None, Parameter(help="the bundle to write; default: DEVICE.bundle")] = None,
    aws: Annotated[bool, Parameter(help="into the fleet of a stack on AWS", negative="")] = False,
    stack: Annotated[str, Parameter(help="which one, if this machine knows several")] = "",
    poll: Annotated[
        bool, Parameter(help="on AWS: a device that has no MQTT; it looks for its tasks", negative="")
    ] = False,
) -> None:
    """Take DEVICE into the fleet: write the bundle that it joins by. What it had before counts no more.

    It takes effect at once, also while the hub runs. On AWS the device becomes a thing of IoT Core; its key
    never goes there.

    **Examples**

    - `fleetfold enroll camera-7`
    - `fleetfold enroll camera-7 camera-8 camera-9`
    - `fleetfold enroll camera-7 --csr camera-7.csr --out for-camera-7.bundle`
    - `fleetfold enroll camera-7 --aws`
    - `fleetfold enroll meter-1 --aws --poll`
    """
    names = _named(device, "enroll")
    if len(names) > 1 and (csr or out):
        raise BadConfig("--csr and --out are for one device", next="fleetfold enroll DEVICE")
    request = _read(csr) if csr else ""
    bundles = [_writable(out or Path(f"{name}.bundle")) for name in names]  # before anything counts no more
    if poll and csr:
        raise BadConfig("a device that polls has no key", next="fleetfold enroll DEVICE --aws --poll")
    if poll:
        on_aws.enroll_polling(names, bundles, stack)
        return
    if aws or stack:
        on_aws.enroll(names, bundles, stack, request)
        return
    installed()
    from fleetfold.hub.authority import site
    from fleetfold.hub.broker import tell
    from fleetfold.hub.enrol import enroll as enrolled

    folder = hub_folder(home())
    fleet = site(folder).fleet
    records = hub_records(home())
    for name, path in zip(names, bundles, strict=True):
        save(enrolled(records, folder, name, time.time(), request), path)
        tell(folder, records, name)
        secret = "its key stays on the device" if csr else "its key is in it, for the device alone"
        print(f"{path}: {name} of fleet {fleet}; {secret}")
    print(f"  next: on the device, fleetfold join {bundles[0]}")


def revoke(
    *device: str,
    aws: Annotated[bool, Parameter(help="from the fleet of a stack on AWS", negative="")] = False,
    stack: Annotated[str, Parameter(help="which one, if this machine knows several")] = "",
) -> None:
    """Cut DEVICE off: at once if it is connected, and for good, unless it is enrolled anew.

    **Examples**

    - `fleetfold revoke camera-7`
    - `fleetfold revoke camera-7 --aws`
    """
    names = _named(device, "revoke")
    if aws or stack:
        on_aws.revoke(names, stack)
        return
    installed()
    from fleetfold.hub.authority import site
    from fleetfold.hub.broker import tell
    from fleetfold.hub.enrol import revoke as revoked

    folder = hub_folder(home())
    site(folder)
    records = hub_records(home())
    for name in names:
        revoked(records, name, time.time())
        running = tell(folder, records, name)
        print(f"{name}: revoked" + (" and cut off" if running else ""))


def _named(devices: Sequence[str], command: str) -> list[str]:
    if not devices:
        raise BadConfig(f"which device is {command} for?", next=f"fleetfold {command} DEVICE")
    return [checked_name(device, "device") for device in dict.fromkeys(devices)]


def _read(request: Path) -> str:
    try:
        return request.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"--csr {request}: {error}") from None


def _writable(path: Path) -> Path:
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise BadConfig(f"cannot write {path}", next="fleetfold enroll DEVICE --out FILE")
    return path
