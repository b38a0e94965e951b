"""Data sets as they come: npz, CSV, the MNIST idx files, the CIFAR-10 python batches.

Each is read into columns, {name: array with one row per example}. The CIFAR batches are pickles; they
are read by an unpickler that can make numpy arrays and nothing else.
"""

import csv
import gzip
import io
import pickle
import struct
import zipfile
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
    try:
        match path.suffix:
            case ".npz":
                return _same_length(path, npz(path))
            case ".csv":
                return _same_length(path, from_csv(path))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadConfig(f"{path}: {error}") from None
    raise BadConfig(f"{path}: not a data set that is known here: .npz, .csv, MNIST's or CIFAR-10's folder")


def npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def from_csv(path: Path) -> Columns:
    """A header line, then numbers or words. A column of whole numbers is int64, of numbers float64."""
    with path.open(newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise BadConfig(f"{path}: line {number} has {len(row)} fields, the header {len(names)}")
    return {name: _typed([row[i] for row in rows]) for i, name in enumerate(names)}


def mnist(folder: Path, part: str = "train") -> Columns:
    """x: uint8 [n, 28, 28], y: uint8 [n]. part: "train" or "t10k". Plain or gzipped idx files."""
    return {
        "x": _idx(_one(folder, f"{part}-images-idx3-ubyte"), 3),
        "y": _idx(_one(folder, f"{part}-labels-idx1-ubyte"), 1),
    }


def cifar10(folder: Path, part: str = "train") -> Columns:
    """x: uint8 [n, 3, 32, 32], y: int64 [n]. part: "train" (data_batch_1 … 5) or "test"."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    batches = [_batch(folder / name) for name in names]
    x = np.concatenate([np.asarray(b[b"data"], np.uint8) for b in batches]).reshape(-1, 3, 32, 32)
    return {"x": x, "y": np.concatenate([np.asarray(b[b"labels"], np.int64) for b in batches])}


def _one(folder: Path, stem: str) -> Path:
    for name in (stem, stem + ".gz", stem.replace("-idx", ".idx"), stem.replace("-idx", ".idx") + ".gz"):
        if (folder / name).is_file():
            return folder / name
    raise BadConfig(f"{folder}: there is no {stem} or {stem}.gz")


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The idx format of MNIST: a magic number that says type and dimensions, sizes, bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + dimensions}i", data)
        if magic != 0x0800 + dimensions:
            raise ValueError(f"magic number {magic:#06x}, expected {0x0800 + dimensions:#06x}")
        return np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)
    except (OSError, ValueError, struct.error, EOFError) as error:
        raise BadConfig(f"{path}: not an idx file of {dimensions} dimensions: {error}") from None


class _ArraysOnly(pickle.Unpickler):
    """Makes numpy arrays; whatever else a pickle asks for is refused by name."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _batch(path: Path) -> dict[bytes, Any]:
    try:
        found = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(found, dict) or not {b"data", b"labels"} <= found.keys():
            raise ValueError("no b'data' and b'labels' in it")
        return found
    except FileNotFoundError:
        raise BadConfig(f"{path.parent}: there is no {path.name}; CIFAR-10's python version has it") from None
    except (OSError, ValueError, EOFError, pickle.UnpicklingError, AttributeError, IndexError) as error:
        raise BadConfig(f"{path}: not a CIFAR-10 python batch: {error}") from None


def _same_length(path: Path, columns: Columns) -> Columns:
    lengths = {name: len(array) if array.ndim else 0 for name, array in columns.items()}
    if not lengths or len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise BadConfig(f"{path}: its arrays are not rows of the same examples: {lengths}")
    return columns


def _typed(values: list[str]) -> NDArray[Any]:
    for kind in (np.int64, np.float64):
        try:
            return np.array([kind(value) for value in values])
        except ValueError:
            continue
    return np.array(values)
