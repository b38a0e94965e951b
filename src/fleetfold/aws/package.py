"""The zip that Lambda runs: this very fleetfold, and the libraries of its functions, for their platform.

    pip install --target, for x86_64 and the runtime's Python ─▶ tests, stubs, headers out ┐
    fleetfold as it is installed here, and its kernel if Lambda's C library has it ────────┼─▶ zip, the same
    --with FILE.py: a module of the user's own ────────────────────────────────────────────┘   bytes each time

The versions are those that are installed here. boto3 is the runtime's own. No torch, no paho.
"""

import hashlib
import py_compile
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from msgspec import Struct

import fleetfold
from fleetfold.errors import BadConfig, Unavailable

NEEDED = ("numpy", "msgspec", "safetensors", "obstore", "aws-lambda-powertools")
"""What the functions import, beside boto3."""
ZIPPED, UNZIPPED = 50_000_000, 250_000_000
"""Bytes that Lambda takes, at most."""
GLIBC = (2, 34)
"""The C library of Amazon Linux 2023, under Lambda's Python 3.12 and later."""
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC[1], 16, -1)] + ["manylinux2014_x86_64"]
PYTHONS = ("3.12", "3.13", "3.14")
"""Versions that Lambda has, with that C library, and fleetfold runs on."""
PYTHON = "3.13"
"""The version of the functions, where this machine has none of those."""
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""This machine's, which emulators on it run whatever Lambda has."""
_X86_64, _MACHINE = 62, 18  # ELF: the number of the machine, and where it stands
_LEFT_OUT = re.compile(
    r"(^|/)(tests?|__pycache__|bin|include|f2py|_pyinstaller|examples)/|^numpy/distutils/"
    r"|\.(pyi|pyx|pxd|a|h|c|lib|typed)$|\.dist-info/(?!METADATA$|licenses/|LICENSE)"
)
_EPOCH = (2020, 1, 1, 0, 0, 0)
_FILE, _PROGRAM = 0o644, 0o755


class Package(Struct, frozen=True):
    """A zip as it lies at `path`. `digest`: sha256 of what is in it, in hex; sizes in bytes; `compiled`: with
    bytecode, so that a cold start compiles nothing; `why_slow`: why the fold's kernel is not in it, if so."""

    path: Path
    python: str
    digest: str
    zipped: int
    unzipped: int
    compiled: bool
    why_slow: str = ""

    @property
    def key(self) -> str:
        return f"code/{self.digest}.zip"


def here() -> str:
    """This Python's version where Lambda has it, so that what was tried here is what runs there."""
    return OWN if OWN in PYTHONS else PYTHON


def package(folder: Path, *, python: str = "", modules: Sequence[Path] = ()) -> Package:
    """Make the zip in `folder`; one that was made of the same before is taken as it is. `modules`: files of
    the user's that the functions can import. Raises BadConfig, and Unavailable without the package index."""
    python = python or here()
    if python not in (*PYTHONS, OWN):
        raise BadConfig(f"Lambda's Python is one of {', '.join(PYTHONS)}, not {python}")
    versions = _versions()
    libraries = folder / f"libraries-{_name(versions, python)}"
    if not libraries.is_dir():
        _install(libraries, versions, python)
    kernel, why_slow = usable_kernel()
    entries = dict(_libraries(libraries)) | dict(_own(kernel)) | dict(_modules(modules))
    compiled = python == OWN
    digest = _digest(entries, python)
    path = folder / f"{digest}.zip"
    if not path.is_file():
        _write(path, entries, compiled)
    return _checked(path, python, digest, compiled, why_slow)


def usable_kernel() -> tuple[Path | None, str]:
    """The fold's kernel if Lambda can load it; else why not."""
    found = Path(fleetfold.__file__).parent / "fold" / "_kernel.so"
    try:
        built = found.read_bytes()
    except OSError:
        return None, "it was not built here, for want of a C compiler"
    return (None, why) if (why := unfit(built)) else (found, "")


def unfit(built: bytes) -> str:
    """Why Lambda cannot load a shared object; "" if it can."""
    if built[:4] != b"\x7fELF" or built[_MACHINE] != _X86_64:
        return "it was not built for Linux on x86_64"
    needed = {(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d+)\.(\d+)", built)}
    if needed and max(needed) > GLIBC:
        return f"it needs GLIBC {max(needed)[0]}.{max(needed)[1]}, and Lambda has {GLIBC[0]}.{GLIBC[1]}"
    return ""


def _versions() -> list[str]:
    try:
        return [f"{name}=={version(name)}" for name in NEEDED]
    except PackageNotFoundError as error:
        raise BadConfig(f"{error.name} is not installed here", next="pip install 'fleetfold[aws]'") from None


def _name(versions: Sequence[str], python: str) -> str:
    return hashlib.sha256("\n".join([python, *versions]).encode()).hexdigest()[:16]


def _install(folder: Path, versions: Sequence[str], python: str) -> None:
    """Whole or not at all."""
    if find_spec("pip") is None:
        raise BadConfig("this Python has no pip, which fetches the functions' libraries",
                        next=f"{sys.executable} -m ensurepip")  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
            "--no-warn-conflicts", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}",
            *(f"--platform={name}" for name in PLATFORMS), "--target", f"{fresh}/all", *versions,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            why = (said or done.stderr.splitlines() or ["no word"])[-1].removeprefix("ERROR: ")
            raise Unavailable(
                f"pip cannot fetch the libraries for Python {python} on Lambda: {why}",
                next=f"{sys.executable} -m pip download --no-deps {versions[0]}",
            )
        Path(fresh, "all").rename(folder)


Entries = Iterator[tuple[str, bytes]]


def _libraries(folder: Path) -> Entries:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _LEFT_OUT.search(name):
            yield name, path.read_bytes()


def _own(kernel: Path | None) -> Entries:
    root = Path(fleetfold.__file__).parent
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root.parent).as_posix()
        if path == kernel or (path.is_file() and path.suffix != ".so" and not _LEFT_OUT.search(name)):
            yield name, path.read_bytes()


def _modules(files: Sequence[Path]) -> Entries:
    for path in files:
        if path.suffix != ".py" or not path.stem.isidentifier():
            raise BadConfig(f"--with {path}: it takes a module, NAME.py")
        try:
            yield path.name, path.read_bytes()
        except OSError as error:
            raise BadConfig(f"--with {path}: {error.strerror}") from None


def _digest(entries: dict[str, bytes], python: str) -> str:
    """Of names and contents, not of the zip: bytecode and zlib may differ from one machine to the next."""
    whole = hashlib.sha256(python.encode())
    for name in sorted(entries):
        whole.update(f"\n{name} {hashlib.sha256(entries[name]).hexdigest()}".encode())
    return whole.hexdigest()


def _write(path: Path, entries: dict[str, bytes], compiled: bool) -> None:
    """Whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder, "zip")
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
            for name in sorted(entries):
                _add(made, name, entries[name])
                if compiled and name.endswith(".py"):
                    _add(made, _cached(name), _bytecode(Path(folder), name, entries[name]))
        fresh.rename(path)


def _add(made: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = (_PROGRAM if ".so" in name else _FILE) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    made.writestr(entry, data)


def _cached(name: str) -> str:
    parent, _, file = name.rpartition("/")
    tag = f"{file.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
    return f"{parent}/__pycache__/{tag}" if parent else f"__pycache__/{tag}"


def _bytecode(folder: Path, name: str, source: bytes) -> bytes:
    """Of a module that nobody changes: it is not compared with its source when it is loaded."""
    plain, cached = folder / "module.py", folder / "module.pyc"
    plain.write_bytes(source)
    py_compile.compile(
        str(plain), str(cached), dfile=f"/var/task/{name}", doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    return cached.read_bytes()


def _checked(path: Path, python: str, digest: str, compiled: bool, why_slow: str) -> Package:
    with zipfile.ZipFile(path) as made:
        unzipped = sum(entry.file_size for entry in made.infolist())
    zipped = path.stat().st_size
    if zipped > ZIPPED or unzipped > UNZIPPED:
        raise BadConfig(
            f"the functions' zip has {zipped / 1e6:.0f} MB, {unzipped / 1e6:.0f} MB unzipped; Lambda takes "
            f"{ZIPPED / 1e6:.0f} and {UNZIPPED / 1e6:.0f}",
            next="fleetfold aws deploy, with fewer or smaller --with",
        )
    return Package(path, python, digest, zipped, unzipped, compiled, why_slow)
