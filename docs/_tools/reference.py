"""The generated parts of docs/reference.md: what stands between `<!-- NAME -->` and `<!-- end -->`.

    python docs/_tools/reference.py     writes them anew; tests/door/test_docs.py says when that is due

Settings and commands tell of themselves. The fields of messages and rows are told here, and a field
that is told nowhere is an error.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from cyclopts import App, Parameter

from fleetfold import messages, settings
from fleetfold.__main__ import DEVICE
from fleetfold.cli.main import app
from fleetfold.device import commands as device_commands
from fleetfold.device.terms import Terms
from fleetfold.round import fleet
from fleetfold.settings import CHOICES, NAMES, Settings
from fleetfold.tell import numbers
from fleetfold.view import Line, Row

PAGE = Path(__file__).parents[1] / "reference.md"

MEANINGS: dict[str, dict[str, str]] = {
    "UpdateHeader": {
        "v": "version of the protocol",
        "run": "of which run",
        "round": "of which round",
        "kind": "`train`, or `evaluate` for an update without tensors",
        "device": "who made it; must be the device under whose key the file lies",
        "examples": "how many it was trained on: its weight in the fold",
        "metrics": "the numbers that training returned",
        "evaluation": "what the model that the device was given scored on its own data",
        "took": "how long the steps took on the device",
        "form": "how its tensors travel",
        "extra": "any JSON that training returned",
        "message": "of kind `message`: the answer, whose tensors are the file's",
    },
    "Form": {
        "codec": "`full`, `fp32`, `bf16`, `fp16`, `int8` or `topk`",
        "delta": "whether it is the difference to the model that the device was given",
        "carried": "which of the model's tensors it carries: a bit each in hex, the first one the lowest; "
        "empty: all",
    },
    "Evaluation": {
        "examples": "how many it was scored on",
        "metrics": "the numbers that evaluation returned",
    },
    "Timings": {
        "download": "seconds to fetch the model",
        "compute": "seconds to evaluate and train",
        "upload": "seconds to deliver the update; known after the file is written, so only in the report",
    },
    "Report": {
        "v": "version of the protocol",
        "run": "of which run",
        "round": "of which round",
        "kind": "`train` or `evaluate`",
        "device": "who answers",
        "state": "`accepted`, `progress`: it is at it, or waits, and says why; `delivered`: the update is "
        "there; `refused`: the device will not; `failed`: it could not",
        "reason": "why not, in one line",
        "took": "how long the steps took on the device",
    },
    "Row": {
        "round": "its number",
        "kind": "`train`, `evaluate` for a round that only evaluates, `message` for an exchange of an app's",
        "label": "what the app calls such an exchange: `train`",
        "turn": "the app's own number of the round that it belongs to; 0: it has none",
        "phase": "`open`, `folding`, `done` or `failed`",
        "reason": "why it is there, in one line",
        "cohort": "devices invited",
        "arrived": "updates that count",
        "refused": "devices that were refused, refused themselves, or failed",
        "late": "updates of this round that came after it had closed",
        "credited": "late updates of earlier rounds that count in this one",
        "loss": "as scored by `scored_by`",
        "accuracy": "as scored by `scored_by`",
        "scored_by": "`test`: the test set; `devices`: the devices, of the model that they were given; "
        "`trained`: the devices, in training",
        "epsilon": "what the run has spent of [privacy](privacy.md) by then; null without",
        "metrics": "every number that was reported, by who scored it: means weighted by examples",
        "seconds": "from opening to the end",
        "fold_seconds": "from closing to the end",
        "bytes_up": "of all updates that came",
        "bytes_down": "of the model, once for each device that fetched it",
        "cost": "USD, of a round that has ended on AWS, by a model ([aws.md](aws.md#what-it-costs)); "
        "else null",
        "opened_at": "when, in seconds since the epoch",
        "ended_at": "when, in seconds since the epoch; 0: it has not ended",
    },
    "Line": {
        "device": "its name",
        "state": "`admitted`, `refused`, `late`, `credited`, or `silent`: not heard of",
        "reason": "why it was refused or late, or where it was credited",
        "examples": "of its update",
        "download": "seconds to fetch the model, by the device's clock",
        "compute": "seconds to evaluate and train, by the device's clock",
        "upload": "seconds to deliver the update, by the device's clock",
        "total": "seconds from invitation to arrival, by the coordinator's clock: waiting included",
        "bytes": "of its update file",
    },
    "Device": {
        "name": "as in its update's key",
        "last_seen": "when its newest answer came, in seconds since the epoch; 0: never",
        "examples": "of its newest update that counted",
        "turnaround": "average seconds from invitation to arrival; null until it was timed",
        "chosen": "rounds that it was invited to",
        "arrived": "rounds that it contributed to",
        "failures": "rounds that it missed, failed or was refused in",
        "last_run": "the run of the newest round that it was invited to",
        "last_round": "that round",
        "says": "of a fleet elsewhere: what it said of itself last (protocol.md, `Presence`)",
        "told_at": "on AWS: when that was, by the broker's clock, in seconds since the epoch",
        "life": "on AWS: twice the number of its newest connection, one more when that has ended; -1: none",
    },
}


def settings_table() -> str:
    rows = [
        (f"`{name}`", f"`{settings.show(name, settings.default(name))}`", takes(name), settings.meaning(name))
        for name in NAMES
    ]
    return table(("setting", "default", "takes", "meaning"), rows)


def takes(name: str) -> str:
    """The grammar of a setting's values, with its bounds."""
    kind, meta = get_args(get_type_hints(Settings, include_extras=True)[name])
    if name in CHOICES:
        return ", ".join("`module:name`" if word == ":" else f"`{word}`" for word in CHOICES[name])
    if name in settings.DURATIONS:
        return "a time" + (" or `module:name`" if name == "cadence" else bounds(meta))
    if kind == settings.Share:
        return "a count or a share"
    if kind is bool:
        return "yes or no"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + bounds(meta)
    words = {"where": "a condition", "tensors": "patterns"}
    return words.get(name, "a path") if kind is str else "a table"


def bounds(meta: msgspec.Meta) -> str:
    named = ((" from", meta.ge), (" above", meta.gt), (" below", meta.lt))
    return "".join(f"{word} {bound}" for word, bound in named if bound is not None)


def commands() -> str:
    return "\n\n".join(told(app, "fleetfold"))


def on_devices() -> str:
    return "\n\n".join(parsed(device_commands._parser()))


def parsed(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Each command of a device, with its options, as its own parser has them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in action.choices:
                yield from parsed(action.choices[name])
            return
    words, meant, rows = [parser.prog], [str(parser.description).capitalize()], []
    for action in parser._actions:
        if action.option_strings and action.dest != "help" and action.help != argparse.SUPPRESS:
            rows.append((f"`{', '.join(action.option_strings)}`", preset(action), str(action.help)))
        elif not action.option_strings:
            words.append(f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar))
            meant.append(f"{action.metavar}: {action.help}")
    parts = [f"### {' '.join(words)}", f"{'. '.join(meant)}.", table(("option", "default", "meaning"), rows)]
    yield "\n\n".join(parts)


def preset(option: argparse.Action) -> str:
    """An option's default, where there is one to tell."""
    if option.required:
        return "needed"
    value = getattr(Terms(), option.dest, None)
    if isinstance(value, bool):
        return "no"
    return f"`{value:g}s`" if isinstance(value, float) else f"`{value}`" if value else ""


def told(group: App, called: str) -> Iterator[str]:
    """Each command of a group, then those of the groups in it. Those of a device tell of themselves."""
    for name in group:
        if not name.startswith("-") and name not in DEVICE:
            if group[name].default_command:
                yield command(f"{called} {name}", group[name].default_command)
            yield from told(group[name], f"{called} {name}")


def command(called: str, function: Any) -> str:
    """A command's usage line, what it does, and its options; settings are told in their own table."""
    usage, rows, settings_too = [called], [], False
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "flags":
            settings_too = True
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            usage.append(f"{name.upper()}...")
            continue
        flag, told = option(name, hints[name])
        if parameter.kind is parameter.POSITIONAL_ONLY:
            required = parameter.default is parameter.empty
            usage.append(name.upper() if required else f"[{name.upper()}]")
            continue
        default = parameter.default
        hidden = any(default is none for none in (None, False))
        shown = "needed" if default is parameter.empty else "" if hidden else f"`{default}`"
        rows.append((f"`{flag}`", shown, told))
    paragraphs = inspect.cleandoc(function.__doc__).split("**Examples**")[0].strip()
    parts = [f"### {' '.join(usage)}", paragraphs]
    if rows:
        parts.append(table(("option", "default", "meaning"), rows))
    if settings_too:
        parts.append("And every [setting](#settings) as a flag.")
    return "\n\n".join(parts)


def option(name: str, hint: Any) -> tuple[str, str]:
    """How an option is written, and its help."""
    parameter = next((part for part in get_args(hint) if isinstance(part, Parameter)), Parameter())
    return (parameter.name or (f"--{name.replace('_', '-')}",))[0], parameter.help or OPTIONS.get(name, "")


OPTIONS = {
    "rounds": "how many rounds to run",
    "devices": "how many devices to simulate",
    "seed": "of the shuffling: the same seed, the same shares",
}
"""What options mean whose help says nothing."""


def fields(struct: type[msgspec.Struct]) -> Callable[[], str]:
    def made() -> str:
        told = MEANINGS[struct.__name__]
        names = [field.encode_name for field in msgspec.structs.fields(struct)]
        if stale := set(told) ^ set(names):
            raise KeyError(f"{struct.__name__}: {', '.join(sorted(stale))} in one and not in the other")
        hints = get_type_hints(struct)
        return table(
            ("field", "type", "meaning"), [(f"`{n}`", f"`{kind(hints[n])}`", told[n]) for n in names]
        )

    return made


def kind(hint: Any) -> str:
    """A type as JSON's reader would name it."""
    text = str(hint) if get_args(hint) else getattr(hint, "__name__", str(hint))
    text = re.sub(r"\b[a-z_]+(?:\.[a-z_]+)*\.(?=[A-Z])", "", text).replace("NoneType", "null")
    if "Literal" in text:
        return " or ".join(f'"{word}"' for word in get_args(hint))
    if "dict" in text or "Mapping" in text:
        return "object" if text.count("[") == 1 else "object of objects"
    return {"str": "text", "int": "integer", "float": "number"}.get(text, text).replace(
        "float | None", "number or null"
    ).replace("Evaluation | None", "Evaluation or null").replace("Any", "any JSON")  # fmt: skip


def numbers_table() -> str:
    """The numbers of a round, by the names that they have everywhere."""
    rows = [
        (f"`{n.name}`", n.title, n.unit or "1", "sum" if n.adds else "newest", WHOSE.get(n.name, ""))
        for n in numbers.NUMBERS
    ]
    return table(("name", "what", "unit", "of a run", "more exactly"), rows)


WHOSE = {
    "reported_accuracy": "of the model that they were given, or else in training; a mean by examples",
    "reported_loss": "the same",
    "devices_used": "whose updates are in the model, with late ones that are credited",
    "responses_ok": "updates that came in time and passed",
    "responses_failed": "of those invited, who brought no such update",
    "run_seconds": "from opening to the end",
    "bytes_up": "of all updates that came",
    "bytes_down": "of the model, once for each device that fetched it",
    "fold_seconds": "from closing to the end",
    "late": "updates that came after the round had closed",
    "refused": "devices that were refused, refused themselves, or failed",
    "cost": "on AWS, by a model ([aws.md](aws.md#what-it-costs))",
    "accuracy": "as scored by the test set, else as reported",
    "loss": "as scored by the test set, else as reported",
    "epsilon": "by the run so far ([privacy.md](privacy.md))",
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "on devices": on_devices,
    "settings": settings_table,
    "form": fields(messages.Form),
    "update header": fields(messages.UpdateHeader),
    "evaluation": fields(messages.Evaluation),
    "timings": fields(messages.Timings),
    "report": fields(messages.Report),
    "numbers": numbers_table,
    "row": fields(Row),
    "line": fields(Line),
    "device": fields(fleet.Device),
}


def renewed(text: str, parts: Mapping[str, Callable[[], str]] = PARTS) -> str:
    """The page with its generated parts made anew. Raises KeyError for a marker of no part."""
    return re.sub(
        r"<!-- ([\w ]+) -->\n.*?<!-- end -->",
        lambda part: f"<!-- {part[1]} -->\n{parts[part[1]]()}\n<!-- end -->",
        text,
        flags=re.S,
    )


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
