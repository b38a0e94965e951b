"""The component's artifact: the wheels of an agent, and the user's app if it is to travel with it.

fleetfold, as it is installed here ───┐
pip download, for the core's machine ─┼─▶ fleetfold.zip: wheels/, app/     the same in, the same bytes out
the user's app, own wheels ───────────┘
"""

import hashlib
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import fleetfold
from fleetfold.aws.greengrass.recipe import APP
from fleetfold.errors import BadConfig

NEEDED = ("numpy>=1.26", "msgspec>=0.19", "safetensors>=0.4.5", "paho-mqtt>=2.1", "awsiotsdk>=1.22")
"""What an agent in a component needs beside fleetfold itself."""
MANYLINUX = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_27", "manylinux_2_28")
"""Whose wheels a core with a C library of 2.28 or newer can use: Debian 10, Yocto 3.0, Amazon Linux 2023."""
_FIRST = (1980, 1, 1, 0, 0, 0)
_SKIPPED = (".pyc", ".so")


def wheels(folder: Path, machine: str, python: str) -> None:
    """Have the wheels for cores of that `machine` (aarch64, x86_64) and Python (3.11) in `folder`. What lies
    there already is taken first. Raises BadConfig."""
    own_wheel(folder)
    places = [word for kind in MANYLINUX for word in ("--platform", f"{kind}_{machine}")]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest",
        str(folder), "--find-links", str(folder), "--only-binary", ":all:", "--python-version", python,
        *places, *NEEDED,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word"]
        raise BadConfig(
            f"pip finds no wheels for Python {python} on {machine}: {said[-1]}",
            next=f"put wheels of your own into {folder}, and run this again",
        )


def own_wheel(folder: Path) -> Path:
    """The fleetfold that runs here as a wheel for any machine: without the fold's kernel, which no device
    needs."""
    source, version = Path(fleetfold.__file__).parent, fleetfold.__version__
    files = {f"fleetfold/{path}": data for path, data in _files(source)}
    info = f"fleetfold-{version}.dist-info"
    files[f"{info}/METADATA"] = _metadata(version).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: fleetfold\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nfleetfold = fleetfold.__main__:main\n"
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    made = folder / f"fleetfold-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    _write(made, files.items())
    return made


def archive(out: Path, wheels: Path, app: Path | None) -> str:
    """Write the artifact. → the sha256 of it, in hex. Raises BadConfig."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise BadConfig(f"{wheels} has no wheels", next="fleetfold aws greengrass build")
    entries = [(f"wheels/{path.name}", path.read_bytes()) for path in found]
    if app is not None:
        entries += [(f"{APP}/{path}", data) for path, data in (_files(app) if app.is_dir() else _alone(app))]
    _write(out, entries)
    return hashlib.sha256(out.read_bytes()).hexdigest()


def _alone(app: Path) -> Iterator[tuple[str, bytes]]:
    """An app of one file, as the folder that it would be."""
    yield "app.py", app.read_bytes()


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix not in _SKIPPED:
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _write(out: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """Whole or not at all, and without a date of today in it."""
    fresh = out.with_name(f".{out.name}.new")
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
            for path, data in entries:
                about = zipfile.ZipInfo(path, _FIRST)
                about.compress_type = zipfile.ZIP_STORED if path.endswith(".whl") else zipfile.ZIP_DEFLATED
                about.external_attr = 0o644 << 16
                file.writestr(about, data)
        fresh.replace(out)
    except OSError as error:
        raise BadConfig(f"cannot write {out}: {error.strerror}") from None


def _metadata(version: str) -> str:
    try:
        return distribution("fleetfold").read_text("METADATA") or _plain(version)
    except PackageNotFoundError:
        return _plain(version)


def _plain(version: str) -> str:
    needs: Mapping[str, None] = dict.fromkeys(NEEDED[:-1])
    return f"Metadata-Version: 2.1\nName: fleetfold\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {need}\n" for need in needs
    )


def _digest(data: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
