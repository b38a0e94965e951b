"""Every setting of a run: its default, its meaning, its grammar, and where its value came from.

    default ◀ fleetfold.toml ◀ FLEETFOLD_* in the environment ◀ flag

One class says all of it: the flags of the command line, the keys of the file, the names in the
environment and the reference page are made from its fields.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from fleetfold.errors import BadConfig

Share = int | float
"""How many: an int is a count, a float a share of the whole (0.8, 80%, 1.0 is all)."""


class Settings(Struct, frozen=True, kw_only=True):
    """What a run is told. A value `module:name` names the user's own function."""

    rounds: Annotated[int, Meta(description="how many rounds to run", ge=1)] = 20
    devices: Annotated[int, Meta(description="how many devices to simulate on this machine", ge=1)] = 10
    workers: Annotated[int, Meta(description="processes that train; 0: one per core", ge=0)] = 0
    seed: Annotated[int, Meta(description="of the first model, the cohorts and the training", ge=0)] = 0

    mode: Annotated[
        str, Meta(description="rounds, or buffered: fold every `target` updates of any round")
    ] = "rounds"
    cohort: Annotated[Share, Meta(description="devices wanted in a round; buffered: at work at once")] = 1.0
    over_select: Annotated[float, Meta(description="invite this share more than wanted", ge=0)] = 0.0
    select: Annotated[
        str, Meta(description="who is invited: turnaround, fastest, all, random, recent, module:name")
    ] = "turnaround"
    where: Annotated[
        str, Meta(description='only devices of which this is true: battery > 0.3 and link != "metered"')
    ] = ""
    available: Annotated[
        int, Meta(description="devices that have to be there before a round is opened", ge=1)
    ] = 1
    offline: Annotated[
        bool, Meta(description="on a hub: also invite devices that are off; they find the task later")
    ] = False
    turnaround_decay: Annotated[
        float, Meta(description="share of the old average kept at each timing", ge=0, lt=1)
    ] = 0.8

    target: Annotated[Share, Meta(description="enough updates: fold at once (share of `cohort`)")] = 1.0
    quorum: Annotated[Share, Meta(description="fewest updates worth folding (share of `cohort`)")] = 0.5
    deadline: Annotated[float, Meta(description="stop waiting after this long", gt=0)] = 600.0
    close: Annotated[str, Meta(description="when to stop waiting: target, or module:name")] = "target"
    lease: Annotated[float, Meta(description="a folder silent this long has died", gt=0)] = 60.0
    late: Annotated[
        str, Meta(description="an update after its round closed: drop or credit; buffered: always credit")
    ] = "drop"
    staleness: Annotated[
        float, Meta(description="of a credited update s versions old counts 1/(1+s)^staleness", ge=0)
    ] = 0.5

    weight: Annotated[
        str, Meta(description="of an update in the fold: examples or uniform (with noise: always uniform)")
    ] = "examples"
    fold: Annotated[
        str,
        Meta(
            description="how updates become one: mean, clipped_mean, median, trimmed_mean, krum, multi_krum, "
            "module:name"
        ),
    ] = "mean"
    byzantine: Annotated[
        Share, Meta(description="updates of a round that may be anything: what a robust fold withstands")
    ] = 0.2
    server: Annotated[
        str, Meta(description="optimizer from the fold to the model: none, momentum, adagrad, adam, yogi")
    ] = "none"
    server_rate: Annotated[float, Meta(description="its learning rate; 0: its own default", ge=0)] = 0.0
    server_tau: Annotated[
        float, Meta(description="its adaptivity, of all but momentum; 0: its own default", ge=0)
    ] = 0.0

    clip: Annotated[
        float,
        Meta(
            description="longest difference to the model, with noise or clipped_mean (of that 0: the median)",
            ge=0,
        ),
    ] = 0.0
    norm_most: Annotated[
        float, Meta(description="an update further from its model than this is refused; 0: any", ge=0)
    ] = 0.0

    noise: Annotated[
        float,
        Meta(description="differential privacy: noise, times what one device can change; 0: none", ge=0),
    ] = 0.0
    clip_quantile: Annotated[
        float,
        Meta(
            description="with noise: the clip follows the length that this share of updates keeps; 0: fixed",
            ge=0, lt=1,
        ),
    ] = 0.0  # fmt: skip
    epsilon: Annotated[
        float, Meta(description="with noise: stop before more than this ε is spent; 0: no budget", ge=0)
    ] = 0.0
    dp_delta: Annotated[
        float, Meta(description="with noise: the δ that ε is told at; 0: 1 / devices^1.1", ge=0, lt=1)
    ] = 0.0

    send: Annotated[
        str, Meta(description="on a hub, to a device that keeps an earlier model: whole, or the difference")
    ] = "whole"
    codec: Annotated[
        str, Meta(description="how updates travel: full, fp32, bf16, fp16, int8, topk, module:name")
    ] = "full"
    delta: Annotated[
        str, Meta(description="send the difference to the model: yes, no, auto (with int8, topk and noise)")
    ] = "auto"
    topk: Annotated[Share, Meta(description="values that topk sends: a count or a share")] = 0.01
    feedback: Annotated[
        bool,
        Meta(description="what a codec leaves behind is kept on the device and sent with the next update"),
    ] = True
    tensors: Annotated[
        str, Meta(description="tensors that devices send: patterns such as `*lora* head.*`; the rest stays")
    ] = "*"
    partial: Annotated[bool, Meta(description="an update may carry fewer tensors than that")] = False

    cadence: Annotated[
        float | str, Meta(description="from one round's start to the next: a time, 0s, or module:name")
    ] = 0.0
    patience: Annotated[int, Meta(description="rounds in a row that may fail before the run does", ge=1)] = 3
    wait: Annotated[float, Meta(description="a device's first pause between looks for a task", gt=0)] = 0.5
    wait_most: Annotated[float, Meta(description="its longest pause, reached by doubling", gt=0)] = 30.0

    evaluate: Annotated[
        str, Meta(description="on devices: same (the cohort, before training), cohort (its own), off")
    ] = "same"
    evaluate_every: Annotated[int, Meta(description="evaluate on devices every so many rounds", ge=1)] = 1
    data: Annotated[str, Meta(description="folder with one file or folder per device, from `split`")] = ""
    init: Annotated[str, Meta(description="first model (.safetensors) instead of the trainer's")] = ""
    keep: Annotated[int, Meta(description="rounds whose updates are kept; 0: all of them", ge=0)] = 2
    durability: Annotated[
        str, Meta(description="a finished write survives: process (kill -9) or power (a power cut)")
    ] = "process"

    app: Annotated[dict[str, Any], Meta(description="the app's own settings, given to its functions")] = (
        msgspec.field(default_factory=dict)
    )

    @property
    def buffered(self) -> bool:
        return self.mode == "buffered"

    @property
    def credits_late(self) -> bool:
        """Whether late updates count: always in a buffered run, where hardly any is on time."""
        return self.buffered or self.late == "credit"


DURATIONS = frozenset({"deadline", "lease", "wait", "wait_most", "cadence"})
CHOICES: Mapping[str, tuple[str, ...]] = {
    "mode": ("rounds", "buffered"),
    "select": ("turnaround", "fastest", "all", "random", "recent", ":"),
    "close": ("target", ":"),
    "late": ("drop", "credit"),
    "weight": ("examples", "uniform"),
    "send": ("whole", "difference"),
    "codec": ("full", "fp32", "bf16", "fp16", "int8", "topk", ":"),
    "delta": ("auto", "yes", "no"),
    "fold": ("mean", "clipped_mean", "median", "trimmed_mean", "krum", "multi_krum", ":"),
    "server": ("none", "momentum", "adagrad", "adam", "yogi"),
    "evaluate": ("same", "cohort", "off"),
    "durability": ("process", "power"),
}
"""The words that a setting takes; ":" stands for the user's own `module:name`."""

_TYPES: Mapping[str, Any] = get_type_hints(Settings)
_HINTS: Mapping[str, Any] = get_type_hints(Settings, include_extras=True)
NAMES: tuple[str, ...] = Settings.__struct_fields__


def meaning(name: str) -> str:
    """What setting `name` is for, in one line."""
    return str(get_args(_HINTS[name])[1].description)


def default(name: str) -> Any:
    return getattr(Settings(), name)


def resolve(layers: Mapping[str, Mapping[str, Any]]) -> tuple[Settings, dict[str, str]]:
    """Settings from `layers` (place → {name: value}), later layers winning, and each value's place.

    A value may be text (environment, flags) or already typed (TOML). Raises BadConfig that names the
    place, the setting and what it takes.
    """
    values: dict[str, Any] = {}
    places = dict.fromkeys(NAMES, "default")
    for place, layer in layers.items():
        for name, value in layer.items():
            if name not in NAMES:
                raise BadConfig(
                    f"{place}: there is no setting {name!r}{_nearest(name, NAMES)}", next=_EXPLAIN
                )
            if name == "app":
                values["app"] = {**values.get("app", {}), **value}
            else:
                values[name] = parse(name, value, place)
            places[name] = place
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`")
        place = places.get(name, "settings")
        raise BadConfig(f"{place}: {name} = {values.get(name)!r}: {_lower(error)}", next=_EXPLAIN) from None
    return settings, places


def parse(name: str, value: Any, place: str) -> Any:
    """One value of setting `name`, from text or TOML, in the type that Settings has."""
    kind = _TYPES[name]
    try:
        if name in DURATIONS and not (name == "cadence" and _is_reference(value)):
            return seconds(value)
        if kind == Share:
            return share(value)
        if kind is bool:
            return boolean(value)
        if kind is int:
            return int(value) if isinstance(value, str) else value
        if kind is float:
            text = str(value).strip()
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except (ValueError, TypeError, KeyError):
        raise BadConfig(f"{place}: {name} = {value!r} is not {_grammar(name)}", next=_EXPLAIN) from None
    words = CHOICES.get(name, ())
    own = ":" in words and _is_reference(value)
    if words and not own and (value == ":" or value not in words):
        near = _nearest(str(value), [word for word in words if word != ":"])
        raise BadConfig(f"{place}: {name} = {value!r} is not {_grammar(name)}{near}", next=_EXPLAIN)
    return value


def seconds(value: str | int | float) -> float:
    """A time in seconds, from 30, "30", "30s", "1.5m", "200ms", "2h". Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(ms|s|m|h|d|)\s*", str(value))
    if match is None:
        raise ValueError(value)
    return float(match[1]) * {"ms": 1e-3, "s": 1, "": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def bytes_in(value: str | int) -> int:
    """A number of bytes, from 5000, "5000", "5 kB", "200MB", "1.5G": decimal units, as networks are billed.
    Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)b?\s*", str(value).lower())
    if match is None:
        raise ValueError(value)
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2] or " "))


def size(count: int) -> str:
    """Bytes for people, in the same units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def share(value: str | int | float) -> Share:
    """A count (7) or a share of the whole (0.7, "70%"). Raises ValueError."""
    if isinstance(value, str):
        text = value.strip()
        if text.endswith("%"):
            value = float(text[:-1]) / 100
        else:
            value = int(text) if re.fullmatch(r"\d+", text) else float(text)
    if isinstance(value, bool) or value <= 0 or (isinstance(value, float) and not value <= 1):
        raise ValueError(value)
    return value


def boolean(value: str | bool) -> bool:
    """yes or no, true or false, on or off. Raises KeyError."""
    if isinstance(value, bool):
        return value
    return {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}[
        str(value).strip().lower()
    ]


def count(share: Share, whole: int) -> int:
    """What `share` of `whole` comes to: at least one, at most all; a share is rounded up."""
    wanted = share if isinstance(share, int) else int(-(-share * whole // 1))
    return max(1, min(whole, wanted))


def show(name: str, value: Any) -> str:
    """The value as a person would write it in fleetfold.toml."""
    if name in DURATIONS and not isinstance(value, str):
        return f"{value:g}s"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {v!r}" for k, v in value.items()) + "}"
    return str(value) if value != "" else '""'


_EXPLAIN = "fleetfold run APP --explain shows every setting, its value and where that came from"


def _grammar(name: str) -> str:
    if name in CHOICES:
        return "one of " + ", ".join("module:name" if w == ":" else w for w in CHOICES[name])
    if name in DURATIONS:
        return "a time such as 30s, 10m or 1.5h" + (" or module:name" if name == "cadence" else "")
    if _TYPES[name] == Share:
        return "a count such as 7 or a share such as 0.7 or 70%"
    if _TYPES[name] is bool:
        return "yes or no"
    return "a whole number" if _TYPES[name] is int else "a number"


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.]+:[A-Za-z_]\w*", value) is not None


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _lower(error: Exception) -> str:
    return str(error).partition(" - at")[0].lower().replace("`", "")
