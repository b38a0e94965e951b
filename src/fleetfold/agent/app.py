"""Finds the user's trainer: the `trainer` of a folder's app.py, of a file, or `module:name`; or, of an app of
another framework, what answers its messages (trainer.Answerer)."""

import importlib.util
import math
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from fleetfold.errors import BadConfig, FleetfoldError, blame
from fleetfold.messages import Metrics

if TYPE_CHECKING:  # who only looks where an app is has no need of numpy
    from fleetfold.agent.trainer import Trainer


class App(Struct, frozen=True):
    """The user's app: its name (of runs), where it is, its folder (of fleetfold.toml and modules). `loader`:
    `module:name` of what loads an app that is another framework's."""

    name: str
    place: str
    root: str
    loader: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.root)


FLOWER = "fleetfold.flower.client:load"
"""What loads a Flower app; looked up by name, for only who has one needs Flower."""


def find_app(place: str) -> App:
    """Without running any of it. Raises BadConfig."""
    path = Path(place).expanduser()
    if path.name == "pyproject.toml" and is_flower(path.parent):
        path = path.parent
    if path.is_dir():
        if is_flower(path):
            return App(
                path.resolve().name, str((path / "pyproject.toml").resolve()), str(path.resolve()), FLOWER
            )
        if not (path / "app.py").is_file():
            raise BadConfig(f"{place}: the folder has no app.py", next="fleetfold init NEW_FOLDER")
        return App(path.resolve().name, str((path / "app.py").resolve()), str(path.resolve()))
    if path.is_file() and path.suffix == ".py":
        stem = path.resolve().parent.name if path.stem == "app" else path.stem
        return App(stem, str(path.resolve()), str(path.resolve().parent))
    module, colon, name = place.partition(":")
    if colon and module.replace(".", "").isidentifier() and name.isidentifier():
        return App(module.rpartition(".")[2], place, str(Path.cwd()))
    raise BadConfig(
        f"there is no app at {place!r}: not a folder, not a .py file, not module:name",
        next="fleetfold init NEW_FOLDER makes one that runs",
    )


def is_flower(folder: Path) -> bool:
    """Whether an app of Flower's lies there, and none of ours."""
    if (folder / "app.py").is_file():
        return False
    try:
        about = tomllib.loads((folder / "pyproject.toml").read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False
    return "app" in about.get("tool", {}).get("flwr", {})


def load_trainer(app: App) -> "Trainer":
    """Run the app's file and take its `trainer`. Its folder is put on the import path, for the modules
    beside it. Raises BadConfig that names the line."""
    import_paths(app)
    if app.loader:
        where, _, loader = app.loader.partition(":")
        return cast("Trainer", getattr(import_module(where), loader)(app))
    name = "trainer"
    try:
        if app.place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"fleetfold_app_{app.name}", app.place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            path, _, name = app.place.partition(":")
            module = import_module(path)
    except FleetfoldError:
        raise
    except ModuleNotFoundError as error:
        own = app.place.partition(":")[0].startswith(str(error.name))
        step = f"put {error.name} on PYTHONPATH" if own else f"pip install {error.name}"
        raise BadConfig(f"{app.place}: {error}", next=step) from error
    except Exception as error:
        raise BadConfig(f"{app.place}: {blame(error, app.root)}") from error
    trainer = getattr(module, name, None)
    if trainer is None:
        raise BadConfig(
            f"{app.place} defines no {name!r}",
            next="trainer = TorchTrainer(model, data, fit), or an object with init and train",
        )
    for needed in ("init", "train"):
        if not callable(getattr(trainer, needed, None)):
            raise BadConfig(f"{app.place}: its {name!r} has no {needed}()")
    return cast("Trainer", trainer)


def import_paths(app: App) -> None:
    """So that `module:name` finds the modules beside the app, and those of the current folder."""
    for folder in (str(Path.cwd()), str(app.folder)):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def can(trainer: "Trainer", what: str) -> bool:
    """Whether the trainer can "evaluate", "test" or "check"."""
    return callable(getattr(trainer, what, None)) and bool(getattr(trainer, f"{what}s", True))


@contextmanager
def users_code(app: App, what: str) -> Iterator[None]:
    """Whatever the user's code raises becomes one sentence that names the line."""
    try:
        yield
    except FleetfoldError:
        raise
    except Exception as error:
        raise BadConfig(f"{app.place}: {what}: {blame(error, app.root)}") from error


def check(app: App, trainer: "Trainer", settings: Mapping[str, Any]) -> None:
    """Let the trainer judge the app's own settings, if it can. Raises BadConfig."""
    if can(trainer, "check"):
        with users_code(app, "check()"):
            trainer.check(settings)  # type: ignore[attr-defined]


def tester(app: App, trainer: "Trainer") -> Callable[[bytes], Metrics] | None:
    """Scores a model file on the trainer's own test set; None where it has none."""
    if not can(trainer, "test"):
        return None

    from fleetfold.fold.tensors import read

    def test(model: bytes) -> Metrics:
        with users_code(app, "test()"):
            return numbers(trainer.test(read(model)[0]))  # type: ignore[attr-defined]

    return test


def numbers(metrics: Mapping[str, Any]) -> Metrics:
    """JSON has no NaN: what is not finite is None. Raises BadConfig for what is no number."""
    found: Metrics = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise BadConfig(f"metric {name!r} is not a number: {str(value)[:80]}") from None
        found[str(name)] = number if math.isfinite(number) else None
    return found
