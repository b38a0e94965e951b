"""Flower's own example apps, as `flwr new` of the oldest flwr that we claim writes them, with data on disk.

    write("sklearn", folder)  ─▶  folder/example: what Flower wrote, but for its data set

They load theirs from a service. Of task.py's top level what is named in DATA_SET is taken out, and our part
put there; not another line of the app is touched, and no line of it is kept here.
"""

import ast
import subprocess
from pathlib import Path

import numpy as np

from tests.flower.environments import program

DATA_SET = {
    "PyTorch": ("flwr_datasets", "flwr_datasets.partitioner", "torchvision.transforms", "fds",
                "pytorch_transforms", "apply_transforms", "load_data"),
    "sklearn": ("flwr_datasets", "flwr_datasets.partitioner", "fds", "load_data"),
    "XGBoost": ("flwr_datasets", "flwr_datasets.partitioner", "fds", "train_test_split", "load_data"),
}  # fmt: skip
"""By framework: the modules, functions and variables of task.py that are about the data set."""

SHARE = '''

def share(partition, partitions):
    """Every so-manieth example on disk: (x, y) to train with, (x, y) to test with."""
    from pathlib import Path

    import numpy as np

    with np.load(Path(__file__).parent / "data.npz") as data:
        x, y = data["x"][partition::partitions], data["y"][partition::partitions]
    end = int(0.8 * len(x))
    return (x[:end], y[:end]), (x[end:], y[end:])

'''
ON_DISK = {
    "PyTorch": SHARE + '''
def load_data(partition_id: int, num_partitions: int):
    train, test = (
        [{"img": torch.from_numpy(x), "label": int(y)} for x, y in zip(*part)]
        for part in share(partition_id, num_partitions)
    )
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=32)
''',
    "sklearn": SHARE + '''
def load_data(partition_id: int, num_partitions: int):
    (x, y), (x_test, y_test) = share(partition_id, num_partitions)
    return x, x_test, y, y_test
''',
    "XGBoost": SHARE + '''
def load_data(partition_id, num_clients):
    train, test = ({"inputs": x, "label": y} for x, y in share(partition_id, num_clients))
    parts = transform_dataset_to_dmatrix(train), transform_dataset_to_dmatrix(test)
    return *parts, len(train["label"]), len(test["label"])
''',
}  # fmt: skip


def write(framework: str, folder: Path) -> Path:
    """`flwr new`, with the data on disk. The app's folder."""
    app = generated(framework, folder)
    task = app / "example/task.py"
    task.write_text(without(task.read_text(), DATA_SET[framework]) + ON_DISK[framework])
    x, y = data(framework)
    np.savez(task.with_name("data.npz"), x=x, y=y)
    return app


def generated(framework: str, folder: Path) -> Path:
    """`flwr new` alone: the app as Flower wrote it."""
    folder.mkdir(exist_ok=True)
    words = ["new", "example", "--framework", framework, "--username", "somebody"]
    subprocess.run([program("oldest", "flwr"), *words], cwd=folder, check=True, capture_output=True)
    return folder / "example"


def without(text: str, names: tuple[str, ...]) -> str:
    """The program without the statements of its top level that import from, or define, one of these."""
    lines, tree = text.splitlines(keepends=True), ast.parse(text)
    found = {name: node for node in tree.body for name in named(node)}
    for name in names:
        node = found[name]  # what is not there is no data set any more
        assert node.end_lineno is not None
        for line in range(node.lineno - 1, node.end_lineno):
            lines[line] = ""
    return "".join(lines)


def named(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [str(node.module)]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def data(framework: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) in the shape of the example's own: CIFAR-10's, MNIST's, and rows with two classes."""
    from sklearn.datasets import load_breast_cancer, load_digits

    if framework == "XGBoost":
        return load_breast_cancer(return_X_y=True)
    pixels, y = load_digits(return_X_y=True)
    if framework == "sklearn":
        wide = np.kron(pixels.reshape(-1, 8, 8), np.ones((1, 3, 3)))
        return np.pad(wide, ((0, 0), (2, 2), (2, 2))).reshape(-1, 784), y
    gray = np.kron(pixels.reshape(-1, 1, 8, 8) / 8 - 1, np.ones((1, 3, 4, 4)))
    return gray.astype(np.float32), y
