"""AWS IoT Core's fleet provisioning, from its documentation, as a client of a plain Mosquitto: an emulator.

It signs, registers, refuses a name that is taken, and can lose its own answers. It does not show: policies,
who hears an answer (here all do), tokens that expire after an hour, hooks.
"""

import json
import secrets
import shutil
import subprocess
from getpass import getuser
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleetfold.adapters.connection import Connection
from fleetfold.adapters.doors import context
from fleetfold.bundle import Claim
from tests.hub.conftest import free_port
from tests.hub.pki_transfer import Authority
from tests.hub.wire import QUICK, soon

TEMPLATE = "main-join"


class Core:
    """Mosquitto with mutual TLS and no more rules, and the service beside it. `things`: name → certificate;
    `lose`: words of answers that are not given, each once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._authority = Authority()
        self.port, self.things = free_port(), dict[str, str]()
        self.lose, self.asked = set[str](), list[str]()
        self._tokens = dict[str, str]()
        pair = self._authority.server("localhost", "127.0.0.1")
        files = {"ca.pem": self._authority.pem, "server.pem": pair.certificate, "server.key": pair.key}
        for name, text in files.items():
            (folder / name).write_text(text)
        (folder / "mosquitto.conf").write_text(
            f"user {getuser()}\nlistener {self.port} 127.0.0.1\n"
            "allow_anonymous true\nrequire_certificate true\n"
            f"cafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key\n"
        )
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        assert program, "these tests need the real broker: apt install mosquitto"
        self._broker = subprocess.Popen(
            [program, "-c", str(folder / "mosquitto.conf")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        own = self.claim()
        self._connection = Connection("aws", own.brokers, context(own), pauses=QUICK)
        self._connection.filters = (
            "$aws/certificates/create-from-csr/json", f"$aws/provisioning-templates/{TEMPLATE}/provision/json"
        )  # fmt: skip
        self._connection.heard = self._heard
        self._connection.start()
        soon(lambda: self._connection.connected)

    def close(self) -> None:
        self._connection.close()
        self._broker.terminate()
        self._broker.wait()

    def claim(self) -> Claim:
        given = self._authority.bundle("claim", f"mqtts://localhost:{self.port}")
        return Claim(
            fleet="main", template=TEMPLATE, brokers=given.brokers, authority=given.authority,
            certificate=given.certificate, key=given.key,
        )  # fmt: skip

    def _heard(self, message: Any, receipt: str) -> None:
        self._connection.acknowledge(receipt)
        said = json.loads(message.payload)
        word = "create" if "create-from-csr" in message.topic else "register"
        self.asked.append(word)
        answer = self._create(said) if word == "create" else self._provision(said)
        if word in self.lose:
            self.lose.remove(word)
            return
        how = "rejected" if "errorCode" in answer else "accepted"
        self._connection.post(f"{message.topic}/{how}", json.dumps(answer).encode(), False)

    def _create(self, said: dict[str, Any]) -> dict[str, Any]:
        request = x509.load_pem_x509_csr(said["certificateSigningRequest"].encode())
        token = secrets.token_hex(8)
        self._tokens[token] = self._sign(request)
        return {
            "certificateId": token, "certificatePem": self._tokens[token], "certificateOwnershipToken": token
        }  # fmt: skip

    def _provision(self, said: dict[str, Any]) -> dict[str, Any]:
        name = said["parameters"]["Device"]
        if name in self.things:
            return {
                "statusCode": 409, "errorCode": "ResourceConflict", "errorMessage": "thing exists already"
            }  # fmt: skip
        self.things[name] = self._tokens[said["certificateOwnershipToken"]]
        return {"deviceConfiguration": {}, "thingName": name}

    def _sign(self, request: x509.CertificateSigningRequest) -> str:
        made = self._authority._begun(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "AWS IoT Certificate")]),
            request,  # type: ignore[arg-type]
        )
        signed = made.sign(self._authority._key, hashes.SHA256())
        return signed.public_bytes(Encoding.PEM).decode()
