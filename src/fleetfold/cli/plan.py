"""fleetfold plan: what folding a model will take, before anything is run."""

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fleetfold.errors import BadConfig, BadUpdate
from fleetfold.fold.plan import LAMBDA, LAPTOP, Plan, plan_fold
from fleetfold.fold.tensors import PREFIX, Header, bytes_of, elements_of, header_length, parse_header
from fleetfold.fold.wire import CODECS, Wire
from fleetfold.messages import Form
from fleetfold.settings import count, share

SITES = {"machine": LAPTOP, "lambda": LAMBDA}
HEADER_LIMIT = 1 << 28


def plan(
    model: Path,
    /,
    *,
    updates: Annotated[int, Parameter(help="updates of a round")] = 20,
    codec: Annotated[str, Parameter(help=f"how they travel: {', '.join(CODECS)}")] = "full",
    topk: Annotated[str, Parameter(help="values that topk sends: a count or a share")] = "1%",
    site: Annotated[Literal["machine", "lambda"], Parameter(help="where it is folded")] = "machine",
    folders: Annotated[int | None, Parameter(help="how many fold at once; default: the site's")] = None,
    bandwidth: Annotated[
        float | None, Parameter(help="MB a second that one reads; default: the site's")
    ] = None,
    latency: Annotated[float | None, Parameter(help="milliseconds until a read answers")] = None,
    memory: Annotated[float | None, Parameter(help="MB that one may read ahead")] = None,
    json: Annotated[bool, Parameter(help="print one JSON object", negative="")] = False,
) -> None:
    """Say how a model would be folded: its shards, what is read at once, bytes, requests and seconds.

    MODEL is any .safetensors file; only its header is read. Nothing is run. The seconds are reading alone,
    which on Lambda is nearly all.

    **Examples**

    - `fleetfold plan model.safetensors --updates 100 --codec int8`
    - `fleetfold plan model.safetensors --site lambda --updates 20 --bandwidth 90`
    """
    header = header_of(model)
    if codec not in CODECS:
        raise BadConfig(f"--codec {codec!r} is not one of {', '.join(CODECS)}")
    if updates < 1:
        raise BadConfig(f"--updates {updates}: a round has at least one")
    given = {
        "folders": folders,
        "bandwidth": bandwidth and bandwidth * 1e6,
        "latency": None if latency is None else latency / 1e3,
        "memory": memory and int(memory * 1e6),
    }
    for name, value in given.items():
        if value is not None and (value < 0 or (value == 0 and name != "latency")):
            raise BadConfig(f"--{name} must be above 0")
    where = msgspec.structs.replace(SITES[site], **{k: v for k, v in given.items() if v is not None})
    wire = Wire(header, Form(codec))
    try:
        sent = count(share(topk), wire.elements) if codec == "topk" else 0
    except ValueError:
        raise BadConfig(f"--topk {topk!r} is not a count such as 1000 or a share such as 1%") from None
    size = sum(bytes_of(code, shape) for code, shape in wire.layout(sent).values())
    found = plan_fold(header, updates, size, where)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        Console().print(_table(model, header, updates, size, found))


def header_of(path: Path) -> Header:
    """Of a .safetensors file. Raises BadConfig."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            prefix = file.read(PREFIX)
            return parse_header(prefix + file.read(header_length(prefix, size, HEADER_LIMIT) - PREFIX), size)
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}") from None
    except BadUpdate as error:
        raise BadConfig(f"{path} is not a .safetensors file: {error.sentence}") from None


def _table(model: Path, header: Header, updates: int, size: int, found: Plan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    values = sum(elements_of(t.shape) for t in header.tensors)
    largest = max((s.stop - s.start for s in found.shards), default=0)
    for name, text in (
        ("model", f"{model}: {len(header.tensors)} tensors, {values:,} values"),
        ("updates", f"{updates} of {_amount(size)}"),
        ("shards", f"{len(found.shards)}, of {_amount(largest)} at most"),
        ("reads", f"{found.requests:,} requests; {max(found.depth, found.threads)} at once in each folder"),
        ("bytes", _amount(found.read)),
        ("seconds", f"{found.seconds:.3g}, for reading"),
        ("why", found.reason),
    ):
        table.add_row(name, text)
    return table


def _amount(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
