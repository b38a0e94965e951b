"""What a folder says of its app, and what can be wrong with it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleetfold.errors import BadConfig
from fleetfold.flower import app as flower
from tests.flower import small


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Path]:
    """A folder with an app, whose modules are forgotten afterwards."""
    before, paths = set(sys.modules), list(sys.path)
    yield small.write(tmp_path)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "small":
            del sys.modules[name]
    sys.path[:] = paths


def test_an_app_is_what_its_pyproject_says(app: Path) -> None:
    found = flower.find(str(app))
    assert (found.serverapp, found.clientapp) == ("small.server:app", "small.client:app")
    assert found.config == {"num-server-rounds": 3, "strategy": "FedAdam", "seen": "", "model.width": 4}
    assert found.nodes == 4
    assert flower.find(str(app / "pyproject.toml")) == found
    assert type(flower.server_app(found)).__name__ == "ServerApp"
    assert type(flower.client_app(found)).__name__ == "ClientApp"


def test_a_run_config_is_changed_by_pairs_and_by_files(app: Path, tmp_path: Path) -> None:
    found = flower.find(str(app))
    changed = flower.configured(
        found, ["num-server-rounds=5 strategy='FedAvg'", 'model.width = 8 seen="a b"']
    )
    assert changed == {"num-server-rounds": 5, "strategy": "FedAvg", "model.width": 8, "seen": "a b"}
    (tmp_path / "fast.toml").write_text("num-server-rounds = 1\n[model]\nwidth = 2\n")
    changed = flower.configured(found, [str(tmp_path / "fast.toml")])
    assert (changed["num-server-rounds"], changed["model.width"]) == (1, 2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("num-server-round=5", "did you mean 'num-server-rounds'"),
        ("zzz=5", "it has num-server-rounds, strategy"),
        ("strategy=FedAvg", "nor a text in quotes"),
        ("num-server-rounds", "is not key=value"),
        ("strategy=[1]", "is a list"),
        ("nowhere.toml", "No such file"),
    ],
)
def test_what_is_no_change_to_the_config_is_said_in_one_sentence(app: Path, given: str, says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        flower.configured(flower.find(str(app)), [given])


def write(path: str, text: str) -> Callable[[Path], object]:
    return lambda app: (app / path).write_text(text)


def replaced(path: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda app: (app / path).write_text((app / path).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda app: (app / "pyproject.toml").unlink(), "has no pyproject.toml"),
        (write("pyproject.toml", "[project"), "pyproject.toml: "),
        (write("pyproject.toml", "[project]\nname='x'"), "no Flower app"),
        (replaced("pyproject.toml", "tool.flwr.app.components", "x"), "no \\[tool.flwr.app.components\\]"),
        (replaced("pyproject.toml", "serverapp", "server"), "names no serverapp"),
        (replaced("pyproject.toml", "small.server:app", "small.server"), "is not module:name"),
        (replaced("pyproject.toml", "model.width = 4", "model.width = [4]"), "model.width is a list"),
        (replaced("pyproject.toml", "small.server:app", "small.serve:app"), "No module named 'small.serve'"),
        (replaced("pyproject.toml", "small.server:app", "small.server:ap"), "small.server defines no 'ap'"),
        (replaced("pyproject.toml", "small.server:app", "small.server:main"), "has to be a ServerApp"),
        (replaced("small/server.py", "import numpy", "import nowhere"), "No module named 'nowhere'"),
        (replaced("small/server.py", "app = S", "app = = S"), "server.py line 6: invalid syntax"),
        (replaced("small/server.py", "app = S", "1 / 0; app = S"), "server.py line 6, ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_an_app_is_said_in_one_sentence(
    app: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(app)
    with pytest.raises(BadConfig, match=says) as error:
        flower.server_app(flower.find(str(app)))
    assert "\n" not in error.value.sentence


def test_the_fingerprint_is_that_of_the_code(app: Path) -> None:
    before = flower.fingerprint(app)
    for path in (
        "small/__pycache__/x.py",
        ".venv/y.py",
        "outputs/z.py",
        "fleetfold.toml",
        "data.npz",
        "env/a.py",
    ):
        (app / path).parent.mkdir(exist_ok=True)
        (app / path).write_text("1")
    (app / "env/pyvenv.cfg").write_text("")
    assert flower.fingerprint(app) == before
    for path, more in (("small/client.py", "\n"), ("pyproject.toml", "\n[tool.mine]\nx = 1\n")):
        (app / path).write_text((app / path).read_text() + more)
        assert flower.fingerprint(app) != before
        before = flower.fingerprint(app)
    (app / "small/more.py").write_text("")
    assert flower.fingerprint(app) != before
