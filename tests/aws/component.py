"""A small runner of a component, in place of a nucleus: unpacks the artifact, fills in the variables of the
recipe's commands and runs them. Its IPC is a folder, by an `awsiot` of ours that is installed instead of the
real one. What no nucleus means here: authorization, spooling, a deployment, who the component runs as."""

import importlib.metadata
import json
import os
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

CLIENT = """
import json, os, threading, time
from base64 import b64decode, b64encode
from pathlib import Path
from types import SimpleNamespace as New

PLACE = Path(os.environ["NUCLEUS"])

class GreengrassCoreIPCClientV2:
    def __init__(self):
        self._streams, self._open = {}, True
        threading.Thread(target=self._listen, daemon=True).start()

    def get_configuration(self, *, key_path):
        return New(value=json.loads((PLACE / "configuration.json").read_text()))

    def subscribe_to_iot_core(self, *, topic_name, qos, on_stream_event, **streams):
        self._streams[topic_name] = on_stream_event

    def publish_to_iot_core(self, *, topic_name, qos, payload, retain, correlation_data=None):
        with (PLACE / "said.jsonl").open("a") as file:
            file.write(json.dumps([topic_name, b64encode(payload).decode()]) + "\\n")

    def close(self):
        self._open = False

    def _listen(self):
        seen = {}
        while self._open:
            for path in sorted((PLACE / "topics").iterdir()):
                topic, data = path.name.replace("%", "/"), path.read_bytes()
                if topic in self._streams and seen.get(topic) != data:
                    seen[topic] = data
                    message = New(topic_name=topic, payload=data, message_expiry_interval_seconds=None)
                    self._streams[topic](New(message=message))
            time.sleep(0.02)
"""


class Component:
    """`home`: of the component, with its work folder; the nucleus's side is in `nucleus`."""

    def __init__(self, home: Path, recipe: dict[str, Any], archive: Path, thing: str) -> None:
        self.work, self.nucleus = home / "work", home / "nucleus"
        self.work.mkdir(parents=True)
        (self.nucleus / "topics").mkdir(parents=True)
        unpacked = home / "artifacts"
        with zipfile.ZipFile(archive) as file:
            file.extractall(unpacked / archive.stem)
        (manifest,) = recipe["Manifests"]
        self._lifecycle = manifest["Lifecycle"]
        self._names = {
            "{work:path}": str(self.work), "{artifacts:decompressedPath}": str(unpacked),
            "{iot:thingName}": thing,
        }  # fmt: skip
        self.configure(recipe["ComponentConfiguration"]["DefaultConfiguration"])
        self.log = home / "log"

    def configure(self, configuration: dict[str, Any]) -> None:
        (self.nucleus / "configuration.json").write_text(json.dumps(configuration))

    def retain(self, topic: str, payload: bytes) -> None:
        staged = self.nucleus / "staged"
        staged.write_bytes(payload)
        staged.rename(self.nucleus / "topics" / topic.replace("/", "%"))

    def said(self, word: str) -> list[bytes]:
        from base64 import b64decode

        place = self.nucleus / "said.jsonl"
        lines = place.read_text().splitlines() if place.exists() else []
        return [b64decode(data) for topic, data in map(json.loads, lines) if topic.endswith(f"/{word}")]

    def install(self) -> None:
        done = self._begin("install")
        assert done.wait(300) == 0, self.log.read_text()

    def run(self, **environment: str) -> "subprocess.Popen[bytes]":
        return self._begin("run", **environment)

    def _begin(self, step: str, **environment: str) -> "subprocess.Popen[bytes]":
        script = self._lifecycle[step]["Script"]
        for name, value in self._names.items():
            script = script.replace(name, value)
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FLEETFOLD", "AWS"))}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["sh", "-c", script], env={**plain, "NUCLEUS": str(self.nucleus), **environment},
                stdout=log, stderr=log, cwd=self.work,
            )  # fmt: skip


def packed_again(name: str, folder: Path) -> None:
    """A wheel of what is installed here, so that nothing has to be fetched."""
    found = importlib.metadata.distribution(name)
    about = found.read_text("WHEEL") or ""
    tag = next(line.removeprefix("Tag: ") for line in about.splitlines() if line.startswith("Tag: "))
    place = folder / f"{name.replace('-', '_')}-{found.version}-{tag}.whl"
    with zipfile.ZipFile(place, "w") as file:
        for path in found.files or []:
            where = Path(str(found.locate_file(path)))
            if where.exists() and not str(path).startswith("..") and where.suffix != ".pyc":
                file.write(where, str(path))


def double_of_sdk(folder: Path) -> None:
    """A wheel of that name with the double in it."""
    info = "awsiotsdk-1.99.0.dist-info"
    files = {
        "awsiot/__init__.py": "", "awsiot/greengrasscoreipc/__init__.py": "",
        "awsiot/greengrasscoreipc/clientv2.py": CLIENT,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: awsiotsdk\nVersion: 1.99.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    record = "".join(f"{path},,\n" for path in files)
    with zipfile.ZipFile(folder / "awsiotsdk-1.99.0-py3-none-any.whl", "w") as file:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            file.writestr(path, text)


def until(true: Any, component: Component, seconds: float = 90.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, component.log.read_text()
        time.sleep(0.05)
