"""Settings of the command line: one flag for each, made from the class that says them all."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from msgspec.structs import replace
from rich.table import Table

from fleetfold.agent.app import App
from fleetfold.cli.places import shown
from fleetfold.errors import BadConfig
from fleetfold.round.run import Run
from fleetfold.settings import NAMES, Settings, default, meaning, resolve, show

_GROUP = Group("Settings", help="Also in fleetfold.toml, and as FLEETFOLD_… in the environment.")
PREFIX = "FLEETFOLD_"


def _flag(name: str, shown: bool = True) -> tuple[str, Any, Any]:
    text = f"{meaning(name)} [default: {show(name, default(name))}]"
    parameter = Parameter(help=text, group=_GROUP, show_default=False, negative="", show=shown)
    return name, Annotated[str | None, parameter], field(default=None)


def flags_of(names: Iterable[str], called: str, *, shown: bool = True) -> Any:
    """A class of flags for these settings, as text; None where one was not given. `shown`: in the help."""
    fields = [_flag(name, shown) for name in names]
    made = make_dataclass(called, fields, kw_only=True, namespace={"__module__": __name__})
    return Parameter(name="*")(made)


Flags: Any = flags_of([name for name in NAMES if name != "app"], "Flags")
"""A flag for every setting."""


def settings_of(
    app: App, flags: Any, below: Mapping[str, Mapping[str, Any]] | None = None, like: Run | None = None
) -> tuple[Settings, dict[str, str]]:
    """What a run of `app` is told, and where each value came from; `below`: what counts less than the file.
    Of one `like` another: from that one, but for flags. Raises BadConfig."""
    given = {name: value for name, value in asdict(flags).items() if value is not None}
    file = app.folder / "fleetfold.toml"
    layers: dict[str, Mapping[str, Any]]
    if like is None:
        layers = {**(below or {}), shown(file): _file(file), "environment": _environment()}
    else:
        layers = {f"run {like.name}": {name: getattr(like.settings, name) for name in NAMES}}
    settings, places = resolve({**layers, "flag": given})
    # A run is resumed from any folder: the paths that it was told must not depend on this one.
    absolute = {
        n: str(Path(v).expanduser().absolute()) for n in ("data", "init") if (v := getattr(settings, n))
    }
    return replace(settings, **absolute), places


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{shown(path)}: {error}") from None
    except OSError as error:
        raise BadConfig(f"{shown(path)}: {error.strerror}") from None


def _environment() -> dict[str, Any]:
    found = {name: os.environ.get(PREFIX + name.upper()) for name in NAMES if name != "app"}
    return {name: value for name, value in found.items() if value}


def explained(settings: Settings, places: Mapping[str, str]) -> Table:
    """Every setting, its value, where it came from and what it means."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("setting", "value", "from", "meaning"):
        table.add_column(column, overflow="fold")
    for name in NAMES:
        table.add_row(name, show(name, getattr(settings, name)), places[name], meaning(name))
    return table
