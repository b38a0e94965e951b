"""Data sets as they come: npz, CSV, the MNIST idx files, the CIFAR-10 python batches.

Each is read into columns, {name: array with one row per example}; a file that is broken raises BadConfig
with its name. The CIFAR batches are pickles: they are read by an unpickler that runs nothing of theirs.
"""

import csv
import gzip
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfold.errors import BadConfig

Columns = dict[str, NDArray[Any]]


def load(path: Path) -> Columns:
    """The data set in a file or folder, told by what it is. Raises BadConfig."""
    if path.is_dir():
        if any(path.glob("data_batch_*")):
            return cifar10(path)
        if any(path.glob("*images-idx3-ubyte*")):
            return mnist(path)
        raise BadConfig(f"{path}: a folder with neither CIFAR-10's data_batch_1 … 5 nor MNIST's *-idx3-ubyte")
    if not path.is_file():
        raise BadConfig(f"{path}: there is no such file or folder")
    match path.suffix:
        case ".npz":
            return npz(path)
        case ".csv":
            return from_csv(path)
    raise BadConfig(f"{path}: not a data set that is known here: .npz, .csv, MNIST's or CIFAR-10's folder")


def npz(path: Path) -> Columns:
    with (
        _reading(path, "an npz file of arrays"),
        path.open("rb") as file,
        np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays,
    ):
        columns = {name: arrays[name] for name in arrays.files}
        for name, array in columns.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"it holds {name}, which is no array")
    return _same_length(path, columns)


def from_csv(path: Path) -> Columns:
    """A header line, then numbers or words. A column of whole numbers is int64, of numbers float64."""
    with _reading(path, "a CSV file"), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadConfig(f"{path}: its header names {', '.join(sorted(twice))} more than once")
    for line, row in rows:
        if len(row) != len(names):
            raise BadConfig(f"{path}: line {line} has {len(row)} fields, the header {len(names)}")
    return _same_length(path, {name: _typed([row[i] for _, row in rows]) for i, name in enumerate(names)})


def mnist(folder: Path, part: str = "train") -> Columns:
    """x: uint8 [n, 28, 28], y: uint8 [n]. part: "train" or "t10k". Plain or gzipped idx files."""
    images, labels = _one(folder, f"{part}-images-idx3-ubyte"), _one(folder, f"{part}-labels-idx1-ubyte")
    return _same_length(folder, {"x": _idx(images, 3), "y": _idx(labels, 1)})


def cifar10(folder: Path, part: str = "train") -> Columns:
    """x: uint8 [n, 3, 32, 32], y: int64 [n]. part: "train" (data_batch_1 … 5) or "test"."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    batches = [_batch(folder / name) for name in names]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in ("x", "y")}


def _one(folder: Path, stem: str) -> Path:
    for name in (stem, stem + ".gz", stem.replace("-idx", ".idx"), stem.replace("-idx", ".idx") + ".gz"):
        if (folder / name).is_file():
            return folder / name
    raise BadConfig(f"{folder}: there is no {stem} or {stem}.gz")


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The idx format of MNIST: a magic number that says type and dimensions, sizes, bytes."""
    with _reading(path, f"an idx file of {dimensions} dimensions"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", data)
        if magic != 0x0800 + dimensions:
            raise ValueError(f"magic number {magic:#06x}, expected {0x0800 + dimensions:#06x}")
        return np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)


class _Pickled:
    """Stands where a pickle asks for a numpy array or dtype: keeps what it is given and does nothing.
    (numpy's own would take it: a forged state of a dtype crashes the process.)"""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArraysOnly(pickle.Unpickler):
    """Knows what a pickled array is made of; whatever else a pickle asks for is refused by name."""

    _PARTS = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode("latin1")
        if (module, name) not in self._PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _Pickled


def _batch(path: Path) -> Columns:
    """One pickled dict: b"data", uint8 [n, 3072], and b"labels", a list of n whole numbers."""
    if not path.is_file():
        raise BadConfig(f"{path.parent}: there is no {path.name}; CIFAR-10's python version has it")
    with _reading(path, "a CIFAR-10 python batch"):
        found = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(found, dict) or not {b"data", b"labels"} <= found.keys():
            raise ValueError("no b'data' and b'labels' in it")
        _, shape, dtype, fortran, data = found[b"data"].state
        if dtype.given[0] not in (b"u1", "u1"):
            raise ValueError("its b'data' are not bytes")
        pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
        columns = {"x": pixels.reshape(-1, 3, 32, 32), "y": np.array(found[b"labels"], np.int64)}
    return _same_length(path, columns)


_BROKEN = (
    ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError, csv.Error, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What the readers of the standard library and numpy raise on a file of another format, or a damaged one."""


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Whatever a broken file makes a reader raise becomes one sentence with the file's name."""
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, OSError) and error.strerror:
            raise BadConfig(f"{path}: {error.strerror}") from None
        raise BadConfig(f"{path}: not {what}: {str(error) or type(error).__name__}") from None


def _same_length(path: Path, columns: Columns) -> Columns:
    lengths = {name: len(array) if array.ndim else 0 for name, array in columns.items()}
    if not lengths or len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise BadConfig(f"{path}: its arrays are not rows of the same examples: {lengths}")
    return columns


def _typed(values: list[str]) -> NDArray[Any]:
    for kind in (np.int64, np.float64):
        try:
            return np.array([kind(value) for value in values])
        except (ValueError, OverflowError):
            continue
    return np.array(values)
