"""Mosquitto with mutual TLS in IoT Core's place: who may do what is told to its dynamic-security plugin, and
what it logs of who comes and goes is heard.

It emulates IoT Core's broker. It does not show: its limits (publishes a second, filters a subscription,
slashes of a topic), sessions of an hour, port 443 with ALPN, metrics.
"""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

from fleetfold.hub.broker import PLUGIN, PLUGINS
from tests.aws.stack.child import spawn, stop

CORE = "iot-core"
"""The certificate by which the emulator itself connects."""
CONTROL = "$CONTROL/dynamic-security/v1"
PACKET = 128 * 1024 + 8 * 1024
_CAME = re.compile(r"New client connected from (\S+) as (\S+) \(p\d+, c\d+, k\d+(?:, u'([^']*)')?\)")
_WENT = re.compile(
    r"Client (\S+) (disconnected, not authorised|disconnected|closed its connection|has exceeded timeout|"
    r"already connected|(?:has )?been disconnected)"
)
_WHY = {
    "disconnected": "CLIENT_INITIATED_DISCONNECT",
    "closed its connection": "CONNECTION_LOST",
    "exceeded timeout": "MQTT_KEEP_ALIVE_TIMEOUT",
    "already connected": "DUPLICATE_CLIENTID",
    "disconnected, not authorised": "AUTH_ERROR",
    "been disconnected": "SERVER_INITIATED_DISCONNECT",
}


def username(serial: str, name: str) -> str:
    """A certificate's subject as the broker writes it."""
    return f"serialNumber={serial},CN={name}"


class Broker:
    """`came(client, username, address)`, `went(client, why)`: called in a thread for each connection."""

    def __init__(
        self, folder: Path, port: int, came: Callable[[str, str, str], None], went: Callable[[str, str], None]
    ) -> None:
        self.folder, self.port, self._came, self._went = folder, port, came, went
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, core: str) -> None:
        """`core`: the username that may do everything. `ca.pem`, `server.pem` and `server.key` lie in the
        folder."""
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        plugins = [path for place in PLUGINS for path in glob(f"{place}/{PLUGIN}")]
        assert program, "the emulated IoT Core needs Mosquitto: apt install mosquitto"
        assert plugins, "the emulated IoT Core needs Mosquitto's plugin: apt install mosquitto"
        (self.folder / "rights.json").write_text(json.dumps(_rights(core)))
        config = self.folder / "mosquitto.conf"
        config.write_text(self._configuration(plugins[0]))
        self._process = spawn(
            [program, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._follower.join()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _follow(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with (self.folder / "mosquitto.log").open("ab") as log:
            for line in self._process.stdout:
                log.write(f"{time.time():.3f} ".encode() + line)
                log.flush()
                text = line.decode(errors="replace")
                if found := _CAME.search(text):
                    self._came(found[2], found[3] or "", found[1])
                elif found := _WENT.search(text):
                    self._went(found[1], _WHY[found[2].removeprefix("has ")])

    def _configuration(self, plugin: str) -> str:
        lines = [
            "per_listener_settings false",
            "allow_anonymous false",
            f"plugin {plugin}",
            f"plugin_opt_config_file {self.folder / 'rights.json'}",
            "persistence false",
            "user root",
            f"max_packet_size {PACKET}",
            "max_queued_messages 100000",
            "max_inflight_messages 200",
            "set_tcp_nodelay true",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "connection_messages true",
            f"listener {self.port} 127.0.0.1",
            f"cafile {self.folder / 'ca.pem'}",
            f"certfile {self.folder / 'server.pem'}",
            f"keyfile {self.folder / 'server.key'}",
            "require_certificate true",
            "use_subject_as_username true",
        ]
        return "\n".join(lines) + "\n"


def role(serial: str, lists: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rolename": serial, "acls": lists}


def _rights(core: str) -> dict[str, Any]:
    """At the beginning: all for the emulator itself, nothing for anybody else."""
    kinds = ("publishClientSend", "publishClientReceive", "subscribePattern", "unsubscribePattern")
    topics = ("#", "$aws/#", "$CONTROL/#")
    everything = [
        {"acltype": kind, "topic": topic, "priority": 0, "allow": True} for kind in kinds for topic in topics
    ]
    denied = {"publishClientSend": False, "publishClientReceive": False, "subscribe": False}
    return {
        "defaultACLAccess": {**denied, "unsubscribe": True},
        "clients": [{"username": core, "roles": [{"rolename": CORE}]}],
        "groups": [],
        "roles": [role(CORE, everything)],
    }
