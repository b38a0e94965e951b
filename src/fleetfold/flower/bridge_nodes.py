"""The SuperNodes of a bridge, as they are to be started: commands, keys, folders. Nothing runs here.

HOME/bridges/{name}/  plan.json standing.json   bridge.lock keeper.lock address   spool/
                      bin/flwr-clientapp        what SuperNodes start instead of Flower's
                      nodes/{device}/           its log; its FLWR_HOME
KEYS/{device}[.pub]   by which the SuperLink knows its SuperNode
"""

import hashlib
import os
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from msgspec import Struct

from fleetfold.bundle import private as written
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.flower.bridge_lines import DEVICE, FOLDER, SPOOL
from fleetfold.flower.private import QUIET

PLAN, LOCK, KEEPER = "plan.json", "bridge.lock", "keeper.lock"
PORT = "{port}"
"""In a command: a port of this machine that is free when it is started."""
GRACE = 120.0
"""Seconds for which SuperNodes go on without a bridge: so long there may be none."""
POLL = "0.25"
"""Seconds between two looks of a SuperNode's executor (it would take 1)."""
TIMEOUT = 10.0


class Link(Struct, frozen=True, kw_only=True):
    """The SuperLink: its Fleet API. `root`: file of the certificate that it is known by, "": the system's."""

    address: str
    root: str = ""
    insecure: bool = False

    @property
    def name(self) -> str:
        """Of the bridge's folder: short, for people, and another one for another address."""
        plain = "".join(c if c.isalnum() else "-" for c in self.address)[:40].strip("-")
        return f"{plain}-{hashlib.sha256(self.address.encode()).hexdigest()[:6]}"

    @property
    def place(self) -> tuple[str, int]:
        """Host and port. Raises BadConfig."""
        host, _, port = self.address.rpartition(":")
        if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise BadConfig(
                f"--superlink {self.address}: not HOST:PORT", next="fleetfold flower bridge --help"
            )
        return host.strip("[]"), int(port)


class Node(Struct, frozen=True, kw_only=True):
    """A SuperNode as it is started. `environment`: more than the keeper's own."""

    device: str
    command: tuple[str, ...]
    environment: dict[str, str]
    log: str


class Plan(Struct, frozen=True, kw_only=True):
    """What the keeper keeps running, as long as there is a bridge or `grace` seconds have not passed."""

    nodes: tuple[Node, ...]
    grace: float = GRACE

    @property
    def commands(self) -> list[tuple[str, tuple[str, ...]]]:
        """What two plans have in common whose SuperNodes are the same."""
        return [(node.device, node.command) for node in self.nodes]


def reach(link: Link) -> None:
    """Raises BadConfig or Unavailable that says why no SuperNode could get in: found out here, before any is
    started."""
    trust = None
    if not link.insecure:
        try:
            trust = ssl.create_default_context(cafile=link.root or None)
        except (OSError, ssl.SSLError) as error:
            raise BadConfig(
                f"--root-certificates {link.root}: {error.strerror or error}",
                next="openssl x509 -in FILE -text",
            ) from None
    try:
        with socket.create_connection(link.place, TIMEOUT) as plain:
            if trust:
                trust.wrap_socket(plain, server_hostname=link.place[0]).close()
    except ssl.SSLCertVerificationError as error:
        raise BadConfig(
            f"the SuperLink at {link.address} has a certificate that {link.root or 'this system'} does not "
            f"vouch for: {error.verify_message}",
            next="fleetfold flower bridge … --root-certificates CA.crt of that SuperLink",
        ) from None
    except ssl.SSLError as error:
        raise BadConfig(
            f"the SuperLink at {link.address} speaks no TLS: {error.reason}",
            next="fleetfold flower bridge … --insecure, if it is one for trials",
        ) from None
    except OSError as error:
        raise Unavailable(
            f"no SuperLink answers at {link.address}: {error.strerror or error}",
            next=f"flower-superlink --port {link.place[1]} …",
        ) from None


def program() -> str:
    """`flower-supernode`: beside this Python, for its app is to be of the same Flower; or on the path. Raises
    BadConfig."""
    found = shutil.which("flower-supernode", path=_path())
    if found is None:
        raise BadConfig(
            "there is no flower-supernode here, Flower's own command", next="pip install 'fleetfold[flower]'"
        )
    return found


def _path(*first: Path) -> str:
    own = Path(sys.executable).parent
    return os.pathsep.join([*map(str, first), str(own), os.environ.get("PATH", "")])


def keyed(keys: Path, device: str) -> tuple[Path, bool]:
    """The device's private key in that folder, made where there is none. → (it, whether it is new) Raises
    BadConfig."""
    path = keys / device
    try:
        if path.is_file():
            return path, False
        key = ec.generate_private_key(ec.SECP384R1())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        written(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        path.with_name(f"{device}.pub").write_bytes(public + f" {device}\n".encode())
    except OSError as error:
        raise BadConfig(f"--keys {keys}: {error.strerror}") from None
    return path, True


def plan(
    folder: Path, link: Link, devices: Sequence[str], config: Mapping[str, str], keys: Path | None,
    grace: float = GRACE,
) -> Plan:  # fmt: skip
    """How the SuperNodes of those devices are started; `config`: more of a device's node config. Makes
    folders, keys and what answers in them. Raises BadConfig."""
    supernode, bin = program(), folder / "bin"
    bin.mkdir(parents=True, exist_ok=True)
    (folder / SPOOL).mkdir(exist_ok=True)
    answers = bin / "flwr-clientapp"
    answers.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fleetfold.flower.bridge_app "$@"\n')
    answers.chmod(0o700)
    own, with_public = _words(supernode)
    nodes = []
    for index, device in enumerate(devices):
        place = folder / "nodes" / device
        (place / "flwr").mkdir(parents=True, exist_ok=True)
        about = f'partition-id={index} num-partitions={len(devices)} device="{device}"'
        command = [supernode, "--superlink", link.address, *own]
        command += (
            ["--insecure"] if link.insecure else ["--root-certificates", link.root] if link.root else []
        )
        command += ["--node-config", f"{about} {config.get(device, '')}".strip()]
        if keys is not None:
            private, _ = keyed(keys, device)
            command += ["--auth-supernode-private-key", str(private)]
            if with_public:
                command += ["--auth-supernode-public-key", f"{private}.pub"]
        more = QUIET | {
            "FLWR_HOME": str(place / "flwr"), "PATH": _path(bin), FOLDER: str(folder), DEVICE: device,
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": os.environ.get("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", POLL),
        }  # fmt: skip
        nodes.append(
            Node(device=device, command=tuple(command), environment=more, log=str(place / "supernode.log"))
        )
    return Plan(nodes=tuple(nodes), grace=grace)


def _words(supernode: str) -> tuple[list[str], bool]:
    """How that SuperNode is told where its own API listens: newer ones have a port, older ones an address.
    And whether it wants the public key, too, as older ones do."""
    try:
        done = subprocess.run(
            [supernode, "--help"], capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, **QUIET, "PATH": _path()},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadConfig(f"{supernode} does not run: {error}") from None
    about = done.stdout.rpartition("--auth-supernode-public-key")[2]
    with_public = len(about) < len(done.stdout) and "deprecated" not in about.partition("--")[0]
    if "--port " in done.stdout:
        return ["--host", "127.0.0.1", "--port", PORT], with_public
    if "--clientappio-api-address" in done.stdout:
        return ["--clientappio-api-address", f"127.0.0.1:{PORT}"], with_public
    said = (done.stderr or done.stdout).strip().splitlines()
    raise BadConfig(
        f"{supernode} is of a Flower that the bridge does not know: {said[-1] if said else 'no help'}",
        next="pip install 'flwr>=1.22'",
    )
