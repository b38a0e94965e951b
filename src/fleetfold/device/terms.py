"""On which terms a device takes part: what it may use, when, and where its app and data are.

    default ◀ HOME/settings.json (what join was given before) ◀ FLEETFOLD_AGENT_* ◀ flag

One class says all of it: flags, names in the environment and help are made from its fields.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from fleetfold import bundle, layout
from fleetfold.bundle import Bundle
from fleetfold.errors import BadConfig
from fleetfold.settings import boolean, bytes_in, seconds

BUILT_IN = ("charging", "unmetered", "idle")
"""Conditions that a device knows by itself; any other needs a command that tells."""


class Terms(Struct, frozen=True, kw_only=True):
    app: Annotated[str, Meta(description="the app: a folder with app.py, a .py file, or module:name")] = ""
    data: Annotated[str, Meta(description="the device's own data, given to the app")] = ""
    require: Annotated[
        tuple[str, ...], Meta(description="work only while these hold: charging,unmetered,idle")
    ] = ()
    condition: Annotated[
        dict[str, str],
        Meta(description="NAME=COMMAND: a condition of one's own, which holds while COMMAND exits with 0"),
    ] = {}
    daily_bytes: Annotated[int, Meta(description="bytes a day, such as 200MB; 0: any", ge=0)] = 0
    memory: Annotated[int, Meta(description="memory that training may take, such as 1GB; 0: any", ge=0)] = 0
    nice: Annotated[int, Meta(description="priority of training, 0 (usual) to 19 (last)", ge=0, le=19)] = 0
    idle_io: Annotated[bool, Meta(description="training reads and writes only when nobody else does")] = False
    threads: Annotated[int, Meta(description="threads of training; 0: as the app will", ge=0)] = 0
    index: Annotated[int, Meta(description="which share of a divided data set it holds", ge=0)] = 0
    count: Annotated[int, Meta(description="how many shares there are", ge=1)] = 1
    keep_warm: Annotated[float, Meta(description="how long the app stays loaded after work", ge=0)] = 300.0
    log_format: Annotated[str, Meta(description="text or json")] = "text"

    @property
    def required(self) -> tuple[str, ...]:
        """Every condition that has to hold: whoever says how one is told wants it to hold."""
        return tuple(dict.fromkeys([*self.require, *self.condition]))


_HINTS: Mapping[str, Any] = get_type_hints(Terms, include_extras=True)
_TYPES: Mapping[str, Any] = get_type_hints(Terms)
NAMES = Terms.__struct_fields__
SIZES = frozenset({"daily_bytes", "memory"})
PREFIX = "FLEETFOLD_AGENT_"


class Home(Struct, frozen=True):
    """The folder of one device, and what lies where in it."""

    path: Path

    @property
    def bundle(self) -> Path:
        return self.path / "bundle.json"

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def model(self) -> Path:
        """The model that the device was told to take for its own (`set`)."""
        return self.path / "model.safetensors"


def home(given: str = "") -> Home:
    """That folder, or FLEETFOLD_AGENT_HOME, or ~/.fleetfold-agent."""
    place = given or os.environ.get(f"{PREFIX}HOME") or "~/.fleetfold-agent"
    return Home(Path(place).expanduser().absolute())


def meaning(name: str) -> str:
    """What setting `name` is for, in one line."""
    return str(get_args(_HINTS[name])[1].description)


def is_switch(name: str) -> bool:
    return _TYPES[name] is bool


def resolve(layers: Mapping[str, Mapping[str, Any]]) -> Terms:
    """Terms from `layers` (place → {name: value}), later ones winning. Raises BadConfig."""
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, layer in layers.items():
        for name, value in layer.items():
            if name not in NAMES:
                raise BadConfig(f"{place}: there is no setting {name!r}", next="fleetfold join --help")
            values[name], places[name] = _parse(name, value, place), place
    try:
        terms = msgspec.convert(values, Terms)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`").partition("[")[0]
        said = str(error).partition(" - at")[0].lower().replace("`", "")
        raise BadConfig(
            f"{places.get(name, 'settings')}: {name} = {values.get(name)!r}: {said}",
            next="fleetfold join --help",
        ) from None
    _check(terms)
    return terms


def from_environment() -> dict[str, str]:
    found = {name: os.environ.get(PREFIX + name.upper()) for name in NAMES}
    return {name: value for name, value in found.items() if value is not None}


def kept(home: Home) -> dict[str, Any]:
    """What join was given before. Raises BadConfig."""
    try:
        return msgspec.json.decode(home.settings.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadConfig(f"{home.settings}: {error}", next=f"rm {home.settings}") from None


def keep(home: Home, given: Mapping[str, Any]) -> None:
    """So that a plain `join` later goes on as this one."""
    bundle.private(home.settings, msgspec.json.format(msgspec.json.encode({**kept(home), **given})) + b"\n")


def take_in(home: Home, brought: Bundle) -> None:
    """Make the home that of the bundle's device. Raises BadConfig if it is already another's."""
    if home.bundle.exists():
        mine = bundle.load(home.bundle)
        if (mine.fleet, mine.device) != (brought.fleet, brought.device):
            raise BadConfig(
                f"{home.path} is the home of {mine.device} of fleet {mine.fleet}, "
                f"the bundle is for {brought.device} of fleet {brought.fleet}",
                next="give it another one: --home FOLDER",
            )
    layout.checked_name(brought.device, "device")
    bundle.save(brought, home.bundle)


def _parse(name: str, value: Any, place: str) -> Any:
    """From text (environment, flag) or JSON to what `Terms` has."""
    kind = _TYPES[name]
    try:
        if name == "keep_warm":
            return seconds(value)
        if name in SIZES:
            return bytes_in(value)
        if kind is bool:
            return boolean(value)
        if kind is int:
            return int(value)
        if name == "require":
            words = value.split(",") if isinstance(value, str) else value
            return tuple(word.strip() for word in words if word.strip())
        if name == "condition" and not isinstance(value, dict):
            pairs = [value] if isinstance(value, str) else value
            return {n.strip(): c.strip() for n, c in (pair.split("=", 1) for pair in pairs if pair)}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadConfig(
            f"{place}: {name} = {value!r} is not {_grammar(name)}", next="fleetfold join --help"
        ) from None
    return value


def _grammar(name: str) -> str:
    if name == "keep_warm":
        return "a time such as 30s or 5m"
    if name in SIZES:
        return "a size such as 200MB or 1.5GB"
    if name == "condition":
        return "NAME=COMMAND"
    return "yes or no" if is_switch(name) else "a whole number"


def _check(terms: Terms) -> None:
    for name in terms.require:
        if name not in BUILT_IN and name not in terms.condition:
            raise BadConfig(
                f"require: there is no condition {name!r}: not {', '.join(BUILT_IN)}",
                next=f"--condition {name}=COMMAND says when it holds",
            )
    if terms.index >= terms.count:
        raise BadConfig(f"index {terms.index} of {terms.count}: the first share is 0", next="--count N")
    if terms.log_format not in ("text", "json"):
        raise BadConfig(f"log_format = {terms.log_format!r} is not text or json")
