"""The environments of what runs beside us, each with pip alone and every version pinned; their pins clash, so
they are apart, and apart from ours.

.venv-aws/localstack   LocalStack 4.9.2, the last that runs on Python 3.11 without Docker or a token
         /lambda       AWS's runtime client, and boto3 as the real runtime brings it
         /sam          sam validate --lint              /checkov   checkov

constraints-NAME.txt is what `pip freeze` said of each when all was seen to work together; its first line
says what is asked for.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("FLEETFOLD_VENV_AWS") or HERE.parents[2] / ".venv-aws")
NAMES = ("localstack", "lambda", "sam", "checkov")
STACK = ("localstack", "lambda")
"""Those that the emulators need; the others check templates."""


def program(name: str, program: str = "python") -> Path:
    """A program of that environment, which is made if it is not there or other versions are wanted now."""
    folder, pins = ROOT / name, HERE / f"constraints-{name}.txt"
    text = pins.read_text()
    ready, digest = folder / "ready", hashlib.sha256(text.encode()).hexdigest()
    if not (ready.exists() and ready.read_text() == digest):
        _make(name, folder, pins, text.splitlines()[0].removeprefix("# ").split())
        ready.write_text(digest)
    return folder / "bin" / program


def _make(name: str, folder: Path, pins: Path, wanted: list[str]) -> None:
    since = time.monotonic()
    _say(f"installing {' '.join(wanted)} into {folder}, a minute or two the first time")
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", *quiet]
    subprocess.run([*pip, "--constraint", str(pins), *wanted], check=True, stderr=subprocess.DEVNULL)
    _say(f"installed {folder.name} in {time.monotonic() - since:.0f} s")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        program(each)
