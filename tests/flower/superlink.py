"""A SuperLink of Flower's own, over TLS, that knows its SuperNodes by their keys; and who submits runs to it.

with SuperLink(folder) as link:
    link.register(public_key)
    link.run(app, "num-server-rounds=3") → what `flwr run` streamed
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from socket import create_connection
from typing import Self

from tests.flower.environments import OFFLINE
from tests.hub.conftest import free_port
from tests.hub.pki import Authority

PATIENCE = 60.0


class SuperLink:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self.port = folder, free_port()
        self.address = f"127.0.0.1:{self.port}"
        authority = Authority(folder)
        self.root = authority.file
        self._certificate, self._key = authority.issue("superlink", "", server=True)
        bin = Path(sys.executable).parent
        self.environment = {**os.environ, **OFFLINE, "FLWR_HOME": str(folder / "flwr")}
        self.environment["PATH"] = f"{bin}:{os.environ['PATH']}"
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "link"\n\n[superlink.link]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.root}"\n'
        )

    def __enter__(self) -> Self:
        with (self._folder / "superlink.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "flower-superlink", "--host", "127.0.0.1", "--port", str(self.port),
                    "--enable-supernode-auth", "--ssl-ca-certfile", str(self.root),
                    "--ssl-certfile", str(self._certificate), "--ssl-keyfile", str(self._key),
                ],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        give_up = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < give_up, self.log()
            time.sleep(0.1)
        return self

    def __exit__(self, *about: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        return (self._folder / "superlink.log").read_text()

    def register(self, key: Path) -> None:
        """Let in the SuperNode with that public key."""
        self._flwr(["supernode", "register", str(key), "link"], 60)

    def submit(self, app: Path, config: str) -> "subprocess.Popen[str]":
        """`flwr run`, which streams what the app's server says until it has ended."""
        return subprocess.Popen(
            ["flwr", "run", str(app), "link", "--stream", "--run-config", config],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def _flwr(self, words: Sequence[str], seconds: float) -> str:
        done = subprocess.run(
            ["flwr", *words], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _answers(self) -> bool:
        with suppress(OSError), create_connection(("127.0.0.1", self.port), 1):
            return True
        return False
