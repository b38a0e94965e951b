"""Small data sets in the formats of MNIST and CIFAR-10: in every image the row of its label is bright."""

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


def images(n: int, *shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, *shape] and labels [n], every label equally often."""
    chance = np.random.default_rng(seed)
    y = chance.permutation(np.arange(n) % 10).astype(np.uint8)
    x = chance.integers(0, 100, (n, *shape), dtype=np.uint8)
    x[np.arange(n), ..., 2 * y, :] += 150
    return x, y


def write_mnist(folder: Path, n: int = 60, *, gz: bool = False) -> Path:
    """n images to train on, n / 2 to test on."""
    folder.mkdir(exist_ok=True)
    for part, count, seed in (("train", n, 0), ("t10k", n // 2, 1)):
        x, y = images(count, 28, 28, seed=seed)
        for name, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            if gz:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


def write_cifar10(folder: Path, n: int = 60) -> Path:
    """n images to train on, in five batches, n / 5 to test on."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        x, y = images(n // 5, 3, 32, 32, seed=seed)
        (folder / name).write_bytes(python2_pickle({"data": x.reshape(-1, 3072), "labels": y.tolist()}))
    return folder


def idx(array: np.ndarray) -> bytes:
    """uint8 of any dimensions: what it is, its sizes, its bytes."""
    return struct.pack(f">{1 + array.ndim}i", 0x0800 + array.ndim, *array.shape) + bytes(array)


def python2_pickle(value: Any) -> bytes:
    """As Python 2 and the numpy of 2009 wrote it, and as CIFAR-10 comes to this day."""
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


class _Python2(pickle._Pickler):
    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    def save_truth(self, value: bool) -> None:
        self.save_long(int(value))

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[bool] = save_truth
