"""fleetfold check-device: any implementation of a device, driven through the contract, rule by rule."""

import socket
import sys
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from cyclopts import Parameter

from fleetfold.cli.hub import installed
from fleetfold.errors import BadConfig, BadUpdate
from fleetfold.fold import tensors

if TYPE_CHECKING:  # with the libraries of a hub
    from fleetfold.hub.check import Seen

WIDTH = 80
LARGE = 36 << 20
"""Bytes of a model whose update has to go in parts."""
WAIT = 600.0
"""Seconds that a person has to start the device."""
MARKS = {True: "pass", False: "FAIL", None: "–"}


def check_device(
    *command: str,
    wait: Annotated[
        bool, Parameter(help="start nothing: wait for a device that joins by hand", negative="")
    ] = False,
    host: Annotated[
        str, Parameter(help="with --wait: the name or address under which the device finds this machine")
    ] = "",
    model: Annotated[
        Path | None, Parameter(help="a .safetensors file that the device can train; default: a small one")
    ] = None,
    patience: Annotated[float, Parameter(help="seconds that the device has for each step")] = 20.0,
    large: Annotated[bool, Parameter(help="also an update of 36 MiB, in parts", negative="")] = False,
    folder: Annotated[Path | None, Parameter(help="keep everything there: logs, bundle, updates")] = None,
    json: Annotated[bool, Parameter(help="print one JSON object", negative="")] = False,
) -> None:
    """Drive a device through the contract (docs/protocol.md), and print pass or fail for each rule.

    COMMAND starts the device, after `--`: {bundle} in it becomes the path of a bundle, {home} that of an
    empty folder that outlives the process. It is killed and started again meanwhile. The hub is one for
    this check alone. Exit code 1 if a MUST does not hold.

    **Examples**

    - `fleetfold check-device -- bash examples/shell-device/device.sh {bundle} {home}`
    - `fleetfold check-device -- fleetfold join {bundle} --home {home} --app my-app`
    - `fleetfold check-device --wait --host 192.168.1.5`
    """
    installed()
    from fleetfold.hub.check import RULES, Bench, Program, Scratch, run

    if wait == bool(command):
        raise BadConfig(
            "say how the device is started, or --wait to start it by hand",
            next="fleetfold check-device -- bash device.sh {bundle}",
        )
    trained = _model(model)
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(TemporaryDirectory(prefix="fleetfold-check-")))
        hosts, listen = (
            ((host or socket.gethostname(), "localhost"), "") if wait else (("localhost",), "127.0.0.1")
        )
        scratch = Scratch(place.absolute(), hosts, listen)
        program = None
        if command:
            program = Program(command, scratch.bundle, place.absolute() / "device", place / "device.log")
        stack.callback(scratch.close)
        scratch.start()
        if program:
            stack.callback(program.stop)
            program.start()
        else:
            print(f"waiting for a device with {scratch.bundle}", file=sys.stderr)
        big = {"weights": np.zeros(LARGE // 4, np.float32)} if large else None
        bench = Bench(scratch, program, trained, patience, WAIT if wait else patience, large=big)
        found = []
        for seen in run(bench):
            found.append(seen)
            if not json:
                _show(seen)
    failed = {seen.rule for seen in found if seen.held is False}
    broken = [rule.id for rule in RULES if rule.must and rule.id in failed]
    if json:
        print(msgspec.json.encode({"rules": found, "broken": broken}).decode())
    else:
        _sum_up(found, broken)
    sys.exit(1 if broken else 0)


def _model(path: Path | None) -> tensors.Tensors:
    """Floats of two widths around an integer: what a layout can go wrong with."""
    if path is None:
        chance = np.random.default_rng(0)
        return {
            "hidden.weight": chance.normal(0, 0.1, (256, 128)).astype(np.float32),
            "steps": np.array([7], np.int64),
            "hidden.bias": np.zeros(128, np.float32),
            "output.weight": chance.normal(0, 0.1, (128, 10)).astype(np.float64),
        }
    try:
        return tensors.read(path.read_bytes())[0]
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}") from None
    except BadUpdate as error:
        raise BadConfig(f"{path} is no model: {error.sentence}") from None


def _show(seen: "Seen") -> None:
    from fleetfold.hub.check import RULES

    rule = next(rule for rule in RULES if rule.id == seen.rule)
    head = f"{rule.id:4} {rule.level:7} {MARKS[seen.held]:5} "
    print(textwrap.fill(rule.text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)))
    indent = " " * len(head) + "  "
    print(textwrap.fill(seen.what, WIDTH, initial_indent=indent, subsequent_indent=indent), flush=True)


def _sum_up(found: "Sequence[Seen]", broken: Sequence[str]) -> None:
    held = sum(seen.held is True for seen in found)
    failed = sum(seen.held is False for seen in found)
    print(f"\n{held} rules hold, {failed} do not, {len(found) - held - failed} were not tried")
    if broken:
        print(f"a device must keep these too: {', '.join(broken)}")
    if len(found) == 1:
        print("no device came, so nothing else could be tried")
