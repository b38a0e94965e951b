"""The fleet's broker: Debian's Mosquitto, a child of the hub that dies with it.

start ─▶ configuration, rights and revocations, all from the records ─▶ mosquitto
enroll, revoke (of any process) ─▶ record ─▶ tell: ┌ revocations: such a certificate ends at TLS (not
                                                   │ over WebSockets, where Mosquitto does not look)
                                                   └ rights, by the clerk: who is connected is cut off,
                                                     and has none should it come again
"""

import fcntl
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TextIO

import msgspec

from fleetfold.adapters.lock import is_locked
from fleetfold.bundle import private
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.hub import rights
from fleetfold.hub.authority import Site, issuer_hash, load, locked, revocations, site
from fleetfold.hub.clerk import Clerk
from fleetfold.hub.enrol import Credential, absence, credential, credentials
from fleetfold.messages import LIMIT
from fleetfold.ports import Records

PATIENCE = 20.0
"""Seconds that a broker may take to start, or to end."""
ENDING = 5.0
"""Seconds that the broker of a hub which was killed may take to end."""
PACKET = LIMIT + 8 * 1024
"""Bytes of one packet: a message, its topic and its properties."""
QUEUED, QUEUED_BYTES = 20_000, 64 * 1024 * 1024
"""What the broker keeps for one client that does not keep up: the hub may have 10,000 reports to read."""
SESSION = "14d"
"""How long the broker keeps messages for a client that is away."""
TOLD = ("error", "warning", "notice")
"""What the broker logs."""
LOG = 16 * 1024 * 1024
"""Bytes of its log; then it begins anew, and the one before is kept beside it."""
OPENSSL = """openssl_conf = all
[all]
ssl_conf = tls
[tls]
system_default = every
[every]
MinProtocol = TLSv1.2
CipherString = DEFAULT:@SECLEVEL=2
Options = -SessionTicket
NumTickets = 0
"""
"""Debian's own settings, and that no session is taken up again: that would pass by the revocations."""
PLUGIN = "mosquitto_dynamic_security.so"
PLUGINS = ("/usr/lib/*-linux-*", "/usr/lib64", "/usr/lib", "/usr/local/lib", "/opt/homebrew/lib")


class Broker:
    """The broker of the hub in `folder`. Start it from a thread that lives as long as the hub does: the
    kernel ends the child with that thread."""

    def __init__(self, folder: Path, records: Records, told: Sequence[str] = TOLD) -> None:
        self._folder, self._records, self._told = folder, records, told
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises BadConfig, or Unavailable if it ends at once."""
        place, folder = site(self._folder), self._folder
        program, plugin = _installed()
        with locked(folder), _sole(folder) as lock:
            for port in filter(None, (place.mqtt, place.websockets)):
                _check_free(place.listen, port)
            known = credentials(self._records)
            shutil.rmtree(folder / "revoked", ignore_errors=True)
            revoked = _shut_out(folder, known)
            private(folder / "rights.json", msgspec.json.encode(rights.document(place.fleet, known)))
            private(
                folder / "mosquitto.conf", configuration(folder, place, plugin, revoked, self._told).encode()
            )
            private(folder / "openssl.cnf", OPENSSL.encode())
            self._trim()
            with (folder / "mosquitto.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*_dies_with_us(), program, "-c", str(folder / "mosquitto.conf")],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock.fileno(),),
                    env={**os.environ, "OPENSSL_CONF": str(folder / "openssl.cnf")},
                )  # fmt: skip
            lock.write(str(self._process.pid))
            lock.flush()
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # it needs one for each device
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, (files, files))
            self._await(place)

    def alive(self) -> bool:
        self._trim()
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def _await(self, place: Site) -> None:
        """Until it answers: it listens before it can."""
        assert self._process is not None
        give_up, why = time.monotonic() + PATIENCE, ""
        while self._process.poll() is None and time.monotonic() < give_up:
            try:
                Clerk(self._folder, place).leave()
                return
            except Unavailable as error:
                why = error.sentence
                time.sleep(0.01)
        self.stop()
        log = self._folder / "mosquitto.log"
        said = [*log.read_text(errors="replace").splitlines()[-1:], why, "it said nothing"]
        raise Unavailable(f"the broker did not start: {next(filter(None, said))}", next=f"tail {log}")

    def _trim(self) -> None:
        log = self._folder / "mosquitto.log"
        if log.exists() and log.stat().st_size > LOG:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)


def tell(folder: Path, records: Records, device: str) -> bool:
    """Have the broker, whosever child it is, know the device as the records do now; whoever has an older
    credential of it is cut off. → whether one runs: if not, it reads the records when it starts. Raises
    Unavailable: the record stands, tell it again."""
    with locked(folder):
        if not is_locked(folder / "broker.lock"):
            return False
        place, current = site(folder), credential(records, device)
        _shut_out(folder, credentials(records))
        if current is None:
            return True
        try:
            clerk = Clerk(folder, place)
            clerk.tell(rights.commands(place.fleet, current))
            if current.void:
                clerk.say(absence(current))
            clerk.leave()
        except Unavailable as error:
            raise Unavailable(
                f"it is recorded, but the broker that runs was not told: {error.sentence}",
                next="the same command again; or start the hub anew",
            ) from error
    return True


def configuration(folder: Path, place: Site, plugin: str, revoked: Path, told: Sequence[str] = TOLD) -> str:
    """Of Mosquitto. A client is named by its certificate alone, as user and as client: nobody takes
    another's place, and a device that comes again takes its own."""
    lines = [
        "per_listener_settings false",
        "allow_anonymous false",
        f"plugin {plugin}",
        f"plugin_opt_config_file {folder / 'rights.json'}",
        "persistence false",  # what is retained, the hub says again
        f"persistent_client_expiration {SESSION}",
        f"max_packet_size {PACKET}",
        f"max_queued_messages {QUEUED}",
        f"max_queued_bytes {QUEUED_BYTES}",
        "max_inflight_messages 200",
        "set_tcp_nodelay true",
        "log_dest stderr",
        *(f"log_type {kind}" for kind in told),
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]
    if os.geteuid() == 0:
        lines.append("user root")  # any other could not read the keys; better is a hub that is not root
    for port, protocol in ((place.mqtt, "mqtt"), (place.websockets, "websockets")):
        if port:
            lines += [
                f"listener {port} {place.listen}".rstrip(),
                f"protocol {protocol}",
                f"cafile {folder / 'ca.pem'}",
                f"crlfile {revoked}",
                f"capath {revoked.parent}",  # where those to come are looked for
                f"certfile {folder / 'server.pem'}",
                f"keyfile {folder / 'server.key'}",
                "tls_version tlsv1.2",
                "require_certificate true",
                "use_subject_as_username true",
                "use_username_as_clientid true",
            ]
    return "\n".join(lines) + "\n"


def _shut_out(folder: Path, known: Sequence[Credential]) -> Path:
    """Write the next list of revocations: its name is that of its issuer and a number, from 0 without gaps.
    OpenSSL looks for the next one at each handshake and keeps all that it has read, so that no signal is
    needed; Mosquitto 2.0.11 with WebSockets does not survive the one that there is."""
    authority, lists = load(folder), folder / "revoked"
    void = sorted(id for credential in known for id in credential.void)
    path = lists / f"{issuer_hash(authority)}.r{len(list(lists.glob('*.r*')))}"
    private(path, revocations(authority, void).encode())
    return path


# The child and who may have it


@contextmanager
def _sole(folder: Path) -> Iterator[TextIO]:
    """The lock that a broker holds as long as it lives, whoever started it. Raises BadConfig if one does."""
    give_up = time.monotonic() + ENDING
    while is_locked(folder / "broker.lock"):
        if time.monotonic() > give_up:
            pid = (folder / "broker.lock").read_text()
            raise BadConfig(f"a broker of {folder} runs already, as process {pid}", next=f"kill {pid}")
        time.sleep(0.02)
    with (folder / "broker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _installed() -> tuple[str, str]:
    """Mosquitto and its plugin. Raises BadConfig."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise BadConfig("Mosquitto, the broker, is not installed", next="apt install mosquitto")
    found = [path for folder in PLUGINS for path in glob(f"{folder}/{PLUGIN}")]
    if not found:
        raise BadConfig(f"Mosquitto is installed without {PLUGIN}", next="apt install mosquitto")
    return program, found[0]


def _check_free(listen: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((listen, port))
        except OSError as error:
            raise BadConfig(
                f"the broker cannot have port {port}: {error.strerror}", next=f"ss -ltnp 'sport = :{port}'"
            ) from None


def _dies_with_us() -> list[str]:
    """What comes before a command that is to end with the thread that started it, where there is such."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
