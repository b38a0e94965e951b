"""A Flower app as its folder says it: pyproject.toml, the run's config, the two apps, a fingerprint.

    [tool.flwr.app.components]   serverapp, clientapp: module:name
    [tool.flwr.app.config]       ◀ --run-config: what both apps are told, flat: "model.width" = 64

A device answers an app of its own fingerprint only, so that nobody averages what other code has trained.
"""

import difflib
import hashlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from fleetfold.agent.app import FLOWER, App, import_paths
from fleetfold.errors import BadConfig, FleetfoldError, blame
from fleetfold.flower import private

Config = dict[str, bool | float | int | str]
SUFFIXES = (".py", ".toml")
NOT_CODE = frozenset({"__pycache__", "build", "dist", "node_modules", "output", "outputs", "venv"})
"""Folders of which no file is the app's code; nor is one of those whose names begin with a dot."""
OURS = "fleetfold.toml"
"""The settings of a run, which do not change what an app is."""


class FlowerApp(Struct, frozen=True, kw_only=True):
    """What a folder says of its app."""

    app: App
    serverapp: str
    clientapp: str
    config: Config
    nodes: int = 0  # of Flower's own simulation, where the folder says how many; 0: it does not


def find(folder: str) -> FlowerApp:
    """The app in that folder, without running any of it. Raises BadConfig."""
    private.installed()
    root = Path(folder).expanduser().resolve()
    root = root.parent if root.name == "pyproject.toml" else root
    path = root / "pyproject.toml"
    try:
        about = tomllib.loads(path.read_text())
    except FileNotFoundError:
        where = (
            f"{folder}: there is no such folder" if not root.exists() else f"{folder} has no pyproject.toml"
        )
        raise BadConfig(where, next="fleetfold flower run FOLDER, of one that `flwr new` has made") from None
    except NotADirectoryError:
        raise BadConfig(f"{folder} is no folder", next="fleetfold flower run FOLDER") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: {error}") from None
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}") from None
    flower = _section(path, about, "tool", "flwr", "app")
    components = _section(path, about, "tool", "flwr", "app", "components")
    return FlowerApp(
        app=App(root.name, str(path), str(root), FLOWER),
        serverapp=_reference(path, components, "serverapp"),
        clientapp=_reference(path, components, "clientapp"),
        config=_flat(flower.get("config", {}), f"{path}: [tool.flwr.app.config]"),
        nodes=_nodes(about),
    )


def configured(app: FlowerApp, given: Sequence[str]) -> Config:
    """The run's config: the app's own, changed by `--run-config`. Each is `key=value key="text" …`, or one
    .toml file. Raises BadConfig."""
    config = dict(app.config)
    for text in given:
        changes = _of_file(text) if text.endswith(".toml") else _of_text(text)
        for key, value in changes.items():
            if key not in config:
                near = difflib.get_close_matches(key, config, 1, 0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = f"it has {', '.join(config)}" if config else "it has none"
                raise BadConfig(
                    f"--run-config: the app has no {key!r} in [tool.flwr.app.config]{hint or f': {known}'}",
                    next=f"add it to {app.app.place}" if not near else "",
                )
            config[key] = value
    return config


def server_app(app: FlowerApp) -> Any:
    """Its ServerApp. Raises BadConfig that names the line."""
    from flwr.serverapp import ServerApp

    return _loaded(app, "serverapp", app.serverapp, ServerApp)


def client_app(app: FlowerApp) -> Any:
    """Its ClientApp. Raises BadConfig that names the line."""
    from flwr.clientapp import ClientApp

    return _loaded(app, "clientapp", app.clientapp, ClientApp)


def fingerprint(folder: Path) -> str:
    """sha256 of the app's own code: the names and bytes of its files, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(_code(folder), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix().encode()
        try:
            data = path.read_bytes() if name != b"pyproject.toml" else _about(path)
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadConfig(f"{path}: {error}") from None
        digest.update(len(name).to_bytes(8) + name + len(data).to_bytes(8) + data)
    return digest.hexdigest()


def _about(path: Path) -> bytes:
    """What a pyproject.toml says, however it is written, but for federations: Flower takes them out, and
    writes the rest anew, in the file that it gives to a SuperLink."""
    about = tomllib.loads(path.read_text())
    about.get("tool", {}).get("flwr", {}).pop("federations", None)
    return json.dumps(about, sort_keys=True, default=str).encode()


def _code(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        folders[:] = [
            name
            for name in folders
            if name not in NOT_CODE and not name.startswith(".") and not name.endswith(".egg-info")
        ]
        found += [Path(place, name) for name in files if _is_code(name)]
    return found


def _is_code(name: str) -> bool:
    """Tests are not: Flower leaves them out of the file that it gives to a SuperLink."""
    is_test = name.startswith("test_") or name.endswith("_test.py")
    return name.endswith(SUFFIXES) and not name.startswith(".") and name != OURS and not is_test


def _loaded(app: FlowerApp, what: str, reference: str, kind: type) -> Any:
    import_paths(app.app)
    module, _, name = reference.partition(":")
    place = f"{what} = {reference!r}"
    try:
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except FleetfoldError:
        raise
    except ModuleNotFoundError as error:
        own = module == error.name or module.startswith(f"{error.name}.")
        step = f"ls {app.app.root}" if own else f"pip install {error.name}"
        raise BadConfig(f"{place}: {error}", next=step) from error
    except Exception as error:
        if isinstance(error, AttributeError) and error.obj is sys.modules.get(module):
            raise BadConfig(f"{place}: {module} defines no {name!r}", next=_example(what)) from error
        file = f"{Path(error.filename or '').name} " if isinstance(error, SyntaxError) else ""
        raise BadConfig(f"{place}: {file}{blame(error, app.app.root)}") from error
    if not isinstance(found, kind):
        raise BadConfig(
            f"{place} is a {type(found).__name__}, it has to be a {kind.__name__}", next=_example(what)
        )
    return found


def _example(what: str) -> str:
    kind = "ServerApp" if what == "serverapp" else "ClientApp"
    return f"from flwr.{what} import {kind}; app = {kind}()"


def _section(path: Path, about: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found: Any = about
    for depth, name in enumerate(names):
        found = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            section = ".".join(names[: max(depth + 1, 3)])
            raise BadConfig(
                f"{path} has no [{section}]: it is no Flower app",
                next=f"add [{section}], or fleetfold run FOLDER for an app of fleetfold's own",
            )
    return cast(Mapping[str, Any], found)


def _reference(path: Path, components: Mapping[str, Any], what: str) -> str:
    found = components.get(what)
    if found is None:
        raise BadConfig(
            f"{path}: [tool.flwr.app.components] names no {what}", next=f'{what} = "package.module:app"'
        )
    module, colon, name = str(found).partition(":")
    if not (colon and module.replace(".", "").isidentifier() and name.replace(".", "").isidentifier()):
        raise BadConfig(
            f"{path}: {what} = {found!r} is not module:name", next=f'{what} = "package.module:app"'
        )
    return str(found)


def _nodes(about: Mapping[str, Any]) -> int:
    """How many nodes Flower would simulate, as older versions have it in pyproject.toml."""
    found: Any = about
    for name in ("tool", "flwr", "federations"):
        found = found.get(name, {}) if isinstance(found, Mapping) else {}
    default = str(found.get("default")) if isinstance(found, Mapping) else ""
    for name in (default, "options", "num-supernodes"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def _flat(config: Any, place: str, prefix: str = "") -> Config:
    if not isinstance(config, Mapping):
        raise BadConfig(f"{place} is not a table")
    found: Config = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(_flat(value, place, f"{name}."))
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        else:
            raise BadConfig(
                f"{place}: {name} is a {type(value).__name__}, a config has numbers, texts, true and false"
            )
    return found


def _of_file(name: str) -> Config:
    path = Path(name).expanduser()
    try:
        return _flat(tomllib.loads(path.read_text()), f"--run-config {name}")
    except OSError as error:
        raise BadConfig(f"--run-config {name}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"--run-config {name}: {error}") from None


_PAIR = re.compile(r"""\s*([^\s=]+)\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|\S+)(?=\s|$)""")


def _of_text(text: str) -> Config:
    found: Config = {}
    place = 0
    while text[place:].strip():
        pair = _PAIR.match(text, place)
        if pair is None:
            raise BadConfig(
                f"--run-config: {text[place:].strip()[:80]!r} is not key=value",
                next="""--run-config 'num-server-rounds=5 strategy="FedAdam"'""",
            )
        key, value, place = pair[1], pair[2], pair.end()
        try:
            found.update(_flat(tomllib.loads(f"{key} = {value}"), "--run-config"))
        except tomllib.TOMLDecodeError:
            raise BadConfig(
                f"--run-config: {key}={value} is neither a number, true, false nor a text in quotes",
                next=f"""--run-config '{key}="{value.strip('"')}"'""",
            ) from None
    return found
