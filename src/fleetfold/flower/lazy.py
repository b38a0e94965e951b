"""Flower's Array without its bytes: where they lie, until somebody asks for the numbers.

    Array        dtype, shape, stype, data: the bytes of a .npy file
    LazyArray    the same to whoever looks; `numpy()` maps or reads its own tensor, `data` is made when asked

So a server that has fifty answers of 50 MB has none of them in memory.
"""

import hashlib
import mmap
from contextlib import closing
from functools import lru_cache
from io import BytesIO
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from fleetfold.errors import Unavailable
from fleetfold.flower import private
from fleetfold.fold.tensors import DTYPES, Header, Tensor, elements_of
from fleetfold.ports import Objects

private.quiet()
from flwr.app import Array  # noqa: E402

NPY = "numpy.ndarray"
"""The `stype` of arrays whose data is a .npy file."""
MAPPED = 1 << 20
"""Bytes of a tensor from which on it is mapped rather than read, where it lies in a file."""
MAPPINGS = 200
"""Tensors mapped at a time: each holds a file open. What is asked for beyond that is read."""
CHUNK = 1 << 20
ALIGNMENT = 64


class Stored:
    """A stored object of tensors, read where it is asked for. `digest`: its sha256, where that is known."""

    def __init__(self, objects: Objects, key: str, header: Header, digest: str = "") -> None:
        self._objects, self.key, self.header, self._digest = objects, key, header, digest

    @property
    def size(self) -> int:
        return self.header.size

    def digest(self) -> str:
        """sha256 in hex, read once where it is not known. Raises Unavailable."""
        if not self._digest:
            digest, place, buffer = hashlib.sha256(), 0, memoryview(bytearray(CHUNK))
            with closing(self._open()) as reader:
                while count := reader.read(place, buffer):
                    digest.update(buffer[:count])
                    place += count
            self._digest = digest.hexdigest()
        return self._digest

    def array(self, tensor: Tensor) -> NDArray[Any]:
        """One of its tensors: the caller's own, to be written to as well. Raises Unavailable."""
        dtype, length = DTYPES[tensor.dtype], tensor.stop - tensor.start
        with closing(self._open()) as reader:
            if reader.file is not None and length >= MAPPED and len(_MAPPED) < MAPPINGS:
                base = tensor.start - tensor.start % mmap.ALLOCATIONGRANULARITY
                mapped = mmap.mmap(reader.file, tensor.stop - base, access=mmap.ACCESS_COPY, offset=base)
                _MAPPED.add(mapped)
                found = np.frombuffer(mapped, dtype, elements_of(tensor.shape), tensor.start - base)
                return (found if found.flags.aligned else found.copy()).reshape(tensor.shape)
            buffer = _aligned(length)
            if reader.read(tensor.start, memoryview(buffer.data)) != length:
                raise Unavailable(f"{self.key} is shorter than it was")
            return buffer.view(dtype).reshape(tensor.shape)

    def _open(self) -> Any:
        try:
            return self._objects.open(self.key)
        except KeyError:
            raise Unavailable(f"{self.key} is not there any more") from None


_MAPPED: "WeakSet[mmap.mmap]" = WeakSet()


def _aligned(length: int) -> NDArray[np.uint8]:
    """So many bytes, where the kernel copies fast to."""
    room = np.empty(length + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    return room[begin : begin + length]


USUAL = 256
"""Bytes of a .npy file's header up to which it is remembered."""


def _plain(at: "NDArray[Any] | tuple[Stored, Tensor]") -> tuple[str, tuple[int, ...]]:
    if isinstance(at, np.ndarray):
        return _named(at.dtype), tuple(at.shape)
    return _named(DTYPES[at[1].dtype]), tuple(at[1].shape)


class LazyArray(Array):  # type: ignore[misc]
    """An Array of numpy's whose data is a view, or lies in a stored object. Untouched until `data` is set.
    `plain`: (dtype, shape) of its numbers."""

    plain: tuple[str, tuple[int, ...]]

    def __init__(
        self, at: "NDArray[Any] | tuple[Stored, Tensor]", *, fortran: bool = False, dtype: str | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        """`dtype`, `shape`: what it is to say of itself, where that is not what it is."""
        plain = _plain(at)
        self.__dict__.update(
            _at=at, plain=plain, fortran=fortran, stype=NPY, dtype=plain[0] if dtype is None else dtype,
            shape=plain[1] if shape is None else shape,
        )  # fmt: skip

    @property
    def origin(self) -> tuple[Stored, Tensor] | None:
        """Where it is stored; None if it is not, or not any more as it was."""
        at = self.__dict__["_at"]
        return at if self.is_untouched and isinstance(at, tuple) else None

    @property
    def is_untouched(self) -> bool:
        return "data" not in self.__dict__ and self.__dict__["stype"] == NPY

    def view(self) -> NDArray[Any]:
        """Its numbers, not to be written to."""
        at: NDArray[Any] | tuple[Stored, Tensor] = self.__dict__["_at"]
        return at if isinstance(at, np.ndarray) else at[0].array(at[1])

    def numpy(self) -> NDArray[Any]:
        """The numbers, the caller's own."""
        if not self.is_untouched:
            return np.asarray(super().numpy())
        found = self.view()
        mine = found if self.origin else found.copy()
        return np.asfortranarray(mine) if self.__dict__["fortran"] else mine

    def __getattr__(self, name: str) -> Any:
        if name != "data":  # everything else is there
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        data = BytesIO()
        np.save(data, self.numpy(), allow_pickle=False)
        return data.getvalue()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        same = (self.dtype, self.shape, self.stype) == (other.dtype, other.shape, other.stype)
        return same and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: Any) -> "Array":
        return self.__copy__()

    def __copy__(self) -> "Array":
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __reduce__(self) -> Any:
        return Array, (self.dtype, self.shape, self.stype, self.data)


LazyArray.__qualname__ = Array.__qualname__
"""What Flower calls an object by, in its ids and on its own wire."""


def npy_view(data: bytes) -> tuple[NDArray[Any], bool] | None:
    """(the numbers of a .npy file in the order of C, without a copy if they lie so; whether they lay in that
    of Fortran). None if it is not one, whole, of numbers alone."""
    room = 10 if data[6:7] == b"\x01" else 12
    begin = room + int.from_bytes(data[8:room], "little")
    found = (_usual if begin <= USUAL else _header)(data[:begin])
    if found is None:
        return None
    shape, fortran, dtype = found
    if dtype.hasobject or elements_of(shape) * dtype.itemsize != len(data) - begin:
        return None
    flat = np.frombuffer(data, dtype, elements_of(shape), begin)
    return flat.reshape(shape, order="F" if fortran else "C"), bool(fortran) and len(shape) > 1


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """(shape, whether in the order of Fortran, dtype), as numpy reads it; None if it does not."""
    file = BytesIO(data)
    try:
        of = np.lib.format
        old = of.read_magic(file) == (1, 0)
        return (of.read_array_header_1_0 if old else of.read_array_header_2_0)(file)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError):
        return None


_usual = lru_cache(1 << 10)(_header)
"""numpy reads a header as a program's text, which takes longer than a small array's numbers."""
_named = lru_cache(1 << 10)(str)
"""A dtype's name, which numpy puts together each time."""
