"""Data sets are read as they are, refused where they are broken, and shared out without loss."""

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleetfold.datasets import by_column, dirichlet, iid, shards
from fleetfold.datasets.files import Columns, cifar10, load, mnist
from fleetfold.errors import BadConfig
from tests.images import idx, images, python2_pickle, write_cifar10, write_mnist

SEEDS = st.integers(0, 2**32)
LABELS = st.lists(st.integers(0, 4), min_size=30, max_size=120).map(np.array)
TENTHS = np.repeat(np.arange(10), 40)


def every_example_once(parts: list[np.ndarray], n: int) -> bool:
    return sorted(np.concatenate(parts).tolist()) == list(range(n))


# Sharing out


@given(n=st.integers(1, 300), devices=st.integers(1, 40), seed=SEEDS)
def test_iid_gives_every_example_to_one_device_and_all_as_many(n: int, devices: int, seed: int) -> None:
    devices = min(n, devices)
    parts = iid(n, devices, seed)
    assert len(parts) == devices
    assert every_example_once(parts, n)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(
    labels=LABELS, devices=st.integers(1, 10), alpha=st.floats(1e-6, 1e6), seed=SEEDS, least=st.integers(0, 3)
)
@example(labels=np.zeros(30, int), devices=10, alpha=1e-300, seed=0, least=3)
def test_dirichlet_gives_every_example_to_one_device_and_none_too_few(
    labels: np.ndarray, devices: int, alpha: float, seed: int, least: int
) -> None:
    parts = dirichlet(labels, devices, alpha, seed, least)
    assert len(parts) == devices
    assert every_example_once(parts, len(labels))
    assert min(map(len, parts)) >= least


@given(labels=LABELS, devices=st.integers(1, 10), each=st.integers(1, 3), seed=SEEDS)
def test_shards_give_every_example_to_one_device(
    labels: np.ndarray, devices: int, each: int, seed: int
) -> None:
    parts = shards(labels, devices, each, seed)
    assert len(parts) == devices
    assert every_example_once(parts, len(labels))


@given(values=st.lists(st.sampled_from([1.0, 2.5, float("nan"), float("inf")]), min_size=1).map(np.array))
def test_a_column_gives_every_row_to_the_device_of_its_value(values: np.ndarray) -> None:
    parts = by_column(values)
    assert every_example_once(list(parts.values()), len(values))
    assert all({str(value) for value in values[rows]} == {name} for name, rows in parts.items())


RULES: dict[str, Callable[[int], list[np.ndarray]]] = {
    "iid": lambda seed: iid(400, 7, seed),
    "dirichlet": lambda seed: dirichlet(TENTHS, 7, 0.5, seed),
    "shards": lambda seed: shards(TENTHS, 7, 2, seed),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_split_and_another_seed_another(rule: str) -> None:
    first, again, other = (RULES[rule](seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_small_alpha_leaves_devices_few_labels_and_a_large_one_nearly_all() -> None:
    def seen(alpha: float) -> float:
        return float(np.mean([len(set(TENTHS[part])) for part in dirichlet(TENTHS, 10, alpha, seed=0)]))

    assert seen(0.05) < 3.5
    assert seen(100.0) > 9


def test_two_shards_are_two_labels() -> None:
    assert all(len(set(TENTHS[part])) <= 2 for part in shards(TENTHS, 10, 2, seed=0))


def test_a_split_that_cannot_be_is_refused() -> None:
    for impossible in (
        lambda: iid(3, 4, seed=0),
        lambda: iid(3, 0, seed=0),
        lambda: iid(3, 2, seed=-1),
        lambda: dirichlet(TENTHS, 10, 0.5, seed=0, least=41),
        lambda: dirichlet(TENTHS, 10, 0.0, seed=0),
        lambda: dirichlet(TENTHS, 10, float("nan"), seed=0),
        lambda: dirichlet(TENTHS, 10, float("inf"), seed=0),
        lambda: shards(TENTHS, 10, 0, seed=0),
        lambda: shards(TENTHS, 10, 41, seed=0),
    ):
        with pytest.raises(BadConfig):
            impossible()


# Reading


def test_an_npz_file_is_read_as_it_was_saved(tmp_path: Path) -> None:
    x, y = images(20, 20, 4)
    np.savez_compressed(tmp_path / "data.npz", x=x, y=y)
    found = load(tmp_path / "data.npz")
    assert list(found) == ["x", "y"]
    assert np.array_equal(found["x"], x)
    assert np.array_equal(found["y"], y)


def test_a_csv_column_is_whole_numbers_or_numbers_or_words(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text('age,dose,hospital,id\n61,0.5,"North, old",1\n\n47,2,South,99999999999999999999\n\n')
    found = load(path)
    assert found["age"].dtype == np.int64
    assert found["dose"].tolist() == [0.5, 2.0]
    assert found["hospital"].tolist() == ["North, old", "South"]
    assert found["id"].dtype == np.float64  # too large for a whole number of 64 bits


def test_a_csv_file_from_a_spreadsheet_has_no_mark_before_its_first_name(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbfx,y\r\n1,2\r\n")
    assert list(load(tmp_path / "data.csv")) == ["x", "y"]


@pytest.mark.parametrize("gz", [False, True])
def test_mnist_is_read_plain_and_gzipped(tmp_path: Path, gz: bool) -> None:
    write_mnist(tmp_path, 20, gz=gz)
    x, y = images(20, 28, 28)
    assert np.array_equal(load(tmp_path)["x"], x)
    assert np.array_equal(load(tmp_path)["y"], y)
    assert mnist(tmp_path, "t10k")["x"].shape == (10, 28, 28)


def test_mnist_may_have_a_dot_in_its_names(tmp_path: Path) -> None:
    for path in list(write_mnist(tmp_path, 20).iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(mnist(tmp_path)["y"]) == 20


def test_cifar10_is_read_as_python_2_wrote_it(tmp_path: Path) -> None:
    write_cifar10(tmp_path, 50)
    found = load(tmp_path)
    assert np.array_equal(found["x"], np.concatenate([images(10, 3, 32, 32, seed=s)[0] for s in range(5)]))
    assert np.array_equal(found["y"], np.concatenate([images(10, 3, 32, 32, seed=s)[1] for s in range(5)]))
    assert np.array_equal(cifar10(tmp_path, "test")["x"], images(10, 3, 32, 32, seed=5)[0])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_batch_that_python_3_wrote_is_read_too(tmp_path: Path, protocol: int) -> None:
    write_cifar10(tmp_path, 50)
    x, y = images(10, 3, 32, 32, seed=9)
    batch = {b"data": np.asfortranarray(x.reshape(-1, 3072)), b"labels": y.tolist()}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    assert np.array_equal(load(tmp_path)["x"][:10], x)


# Broken


def _npz(**columns: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **columns)
    return file.getvalue()


def _zip(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "words")
    return file.getvalue()


BROKEN_TABLES: dict[str, bytes | None] = {
    "words.npz": b"words",
    "empty.npz": b"",
    "no-array.npz": _zip("readme.txt"),
    "objects.npz": _npz(x=np.array([{}, {}], object)),
    "uneven.npz": _npz(x=np.arange(3), y=np.arange(2)),
    "scalar.npz": _npz(x=np.array(3)),
    "empty.csv": b"",
    "no-rows.csv": b"x,y\n",
    "ragged.csv": b"x,y\n1,2\n3\n",
    "twice.csv": b"x,x\n1,2\n",
    "latin.csv": b"x,y\n1,\xff\n",
    "long.csv": b"x\n" + b"9" * 140_000 + b"\n",
    "data.parquet": b"PAR1",
    "missing.npz": None,
}


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_a_broken_table_is_named(tmp_path: Path, name: str) -> None:
    content = BROKEN_TABLES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadConfig, match=name):
        load(tmp_path / name)


def test_the_line_that_is_too_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text('x,y\n"two\nlines",2\n3\n')
    with pytest.raises(BadConfig, match="line 4 has 1 fields, the header 2"):
        load(tmp_path / "data.csv")


LABELS_FILE = "train-labels-idx1-ubyte"
TWENTY = idx(np.zeros(20, np.uint8))
BROKEN_IDX: dict[str, tuple[str, bytes]] = {
    "empty": ("", b""),
    "cut off in its head": ("", TWENTY[:3]),
    "cut off": ("", TWENTY[:-1]),
    "of two dimensions": ("", idx(np.zeros((20, 1), np.uint8))),
    "of a negative size": ("", TWENTY[:4] + b"\xff" * 4 + TWENTY[8:]),
    "not gzipped": (".gz", TWENTY),
    "gzipped and cut off": (".gz", gzip.compress(TWENTY)[:-9]),
    "gzipped and damaged": (".gz", gzip.compress(TWENTY)[:10] + b"\xff" * 20),
}


@pytest.mark.parametrize("how", BROKEN_IDX)
def test_a_broken_idx_file_is_named(tmp_path: Path, how: str) -> None:
    suffix, content = BROKEN_IDX[how]
    (write_mnist(tmp_path, 20) / LABELS_FILE).unlink()
    (tmp_path / (LABELS_FILE + suffix)).write_bytes(content)
    with pytest.raises(BadConfig, match=LABELS_FILE + suffix):
        load(tmp_path)


def test_images_without_as_many_labels_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, 20)
    (tmp_path / LABELS_FILE).write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(BadConfig, match=r"'x': 20, 'y': 19"):
        load(tmp_path)


PIXELS = np.zeros((2, 3072), np.uint8)


BROKEN_BATCHES: dict[str, bytes] = {
    "empty": b"",
    "words": b"words",
    "a list": python2_pickle([1, 2]),
    "without labels": python2_pickle({"data": PIXELS}),
    "of too few labels": python2_pickle({"data": PIXELS, "labels": [1]}),
    "of too few pixels": python2_pickle({"data": PIXELS[:, :9], "labels": [1, 2]}),
    "of fractions": python2_pickle({"data": PIXELS.astype(np.float32), "labels": [1, 2]}),
    "of lists": python2_pickle({"data": PIXELS.tolist(), "labels": [1, 2]}),
    "of words": python2_pickle({"data": PIXELS, "labels": ["cat", "dog"]}),
    "of no images": python2_pickle({"data": PIXELS[:0], "labels": []}),
}


@pytest.mark.parametrize("how", BROKEN_BATCHES)
def test_a_broken_cifar10_batch_is_named(tmp_path: Path, how: str) -> None:
    (write_cifar10(tmp_path, 50) / "data_batch_3").write_bytes(BROKEN_BATCHES[how])
    with pytest.raises(BadConfig, match="data_batch_3"):
        load(tmp_path)


@pytest.mark.parametrize("missing", ["data_batch_4", LABELS_FILE])
def test_the_file_that_is_missing_from_a_folder_is_named(tmp_path: Path, missing: str) -> None:
    (write_cifar10 if missing.startswith("data") else write_mnist)(tmp_path, 50)
    (tmp_path / missing).unlink()
    with pytest.raises(BadConfig, match=f"{tmp_path.name}: there is no {missing}"):
        load(tmp_path)


def test_a_folder_with_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="neither CIFAR-10's"):
        load(tmp_path)


# Hostile


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["data", "labels", "elsewhere"])
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path: Path, where: str) -> None:
    ran = tmp_path / "ran"
    content = python2_pickle({"data": PIXELS, "labels": [1, 2], where: Hostile(f"touch {ran}")})
    pickle.loads(content, encoding="bytes")  # noqa: S301 - to see that it bites
    assert ran.exists()
    ran.unlink()
    write_cifar10(tmp_path, 50)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(BadConfig, match=r"data_batch_1: .*\.system"):
        load(tmp_path)
    assert not ran.exists()


class ForgedDtype:
    """Bytes that claim to be references to Python objects."""

    def __reduce__(self) -> tuple[object, ...]:
        return np.dtype, ("u1", False, True), (3, "|", None, None, None, -1, -1, 63)


class ForgedArray:
    def __reduce__(self) -> tuple[object, ...]:
        make, given, (version, shape, _, fortran, data) = PIXELS.__reduce__()
        return make, given, (version, shape, ForgedDtype(), fortran, data)


def test_a_forged_array_is_bytes_and_no_more(tmp_path: Path) -> None:
    """numpy itself would believe it, and crash."""
    batch = python2_pickle({"data": ForgedArray(), "labels": [1, 2]})
    (write_cifar10(tmp_path, 50) / "data_batch_1").write_bytes(batch)
    assert np.array_equal(load(tmp_path)["x"][:2].reshape(2, -1), PIXELS)


SOUND: dict[str, Callable[[Path], Columns]] = {
    "data.npz": load,
    "train-images-idx3-ubyte": lambda path: mnist(path.parent),
    "train-labels-idx1-ubyte.gz": lambda path: mnist(path.parent),
    "data_batch_2": lambda path: cifar10(path.parent),
}


@pytest.mark.parametrize("name", SOUND)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, share: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / "cut"
    if not folder.exists():
        write_cifar10(write_mnist(write_mnist(folder, 20), 20, gz=True), 50)
        (folder / LABELS_FILE).unlink()
        (folder / "train-images-idx3-ubyte.gz").unlink()
        np.savez(folder / "data.npz", x=PIXELS)
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    try:
        with pytest.raises(BadConfig, match=name):
            SOUND[name](path)
    finally:
        path.write_bytes(whole)
