"""The page about AWS: what on it cannot be run here is held to the program in other ways.

Blocks that need an account are shown as `text`: their commands are read by the command line's own parser, and
not run. Code that is named for a limit is there. The table of costs is the model's.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetfold.aws.cost import Measured, Shape, best, bill, plain, prices, published, work
from fleetfold.cli.main import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/aws.md").read_text()
MIB = 1 << 20
PLANS = (
    (42.7, "full", 8, 256), (42.7, "bf16", 8, 256), (42.7, "topk", 1, 256), (42.7, "topk", 1, 1024),
    (512.3, "full", 16, 256), (512.3, "bf16", 8, 256), (512.3, "bf16", 16, 256),
    (2952.7, "full", 40, 256), (2952.7, "bf16", 16, 256),
)  # fmt: skip
"""Updates of so many MiB, by a codec, in so many shards, by functions of so many MB: what the page compares
with published folds."""


def commands() -> Iterator[str]:
    """Those of `text` blocks, with the lines that they go on with."""
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL):
        for found in re.finditer(r"^\$ (.*(?:\n> .*)*)", block, re.M):
            yield found[1].replace("\\\n> ", "")


@pytest.mark.parametrize("command", list(commands()))
def test_a_command_that_is_shown_and_not_run_is_one_of_the_program_with_its_options(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "fleetfold", command
    _, _, ignored = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert not ignored


def limits() -> Iterator[tuple[str, str]]:
    """(path, name) of all code that the page names as `path:NAME`."""
    yield from re.findall(r"`([\w/]+\.py):(\w+(?:\.\w+)?)`", PAGE)


def test_the_page_names_code_for_its_limits() -> None:
    assert len(list(limits())) > 20


@pytest.mark.parametrize(("path", "name"), list(dict.fromkeys(limits())))
def test_code_that_is_named_for_a_limit_is_there(path: str, name: str) -> None:
    module = ast.parse((ROOT / "src/fleetfold" / path).read_text())
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = (each for target in targets for each in ast.walk(target))
            names |= {each.id for each in found if isinstance(each, ast.Name)}
    assert name in names, f"{path} has no {name}"


def table() -> Iterator[str]:
    """The page's lines on what a fold of 20 updates costs, beside the published ones that none beats."""
    rows = [row for row in published() if row.topology == "shards"]
    for size, codec, shards, memory in PLANS:
        model = plain(int(size * MIB))
        made = bill(model, work(model, codec=codec), Shape(shards=shards, memory=memory), prices())
        others = " · ".join(_beside(made.of("fold") * 1000, made.folding, row) for row in best(rows, size))
        yield (
            f"| {size:g} MiB | {codec} | {made.shape.shards} × {made.shape.memory} MB | {made.folding:.1f} | "
            f"{1000 * made.of('fold'):.3f} | {others} |"
        )


def _beside(usd: float, seconds: float, row: Measured) -> str:
    return (
        f"{usd / row.usd_1000:.2f} of {row.usd_1000:g}, {seconds / row.wall_s:.2f} of {row.wall_s:g} s "
        f"({row.functions} × {row.memory_mb} MB)"
    )


def test_the_pages_costs_are_those_of_the_model() -> None:
    for line in table():
        assert line in PAGE, f"the page should say\n{line}"


def test_of_20_updates_of_512_mib_the_cheapest_published_fold_is_had_for_a_third_in_half_its_time() -> None:
    """By bf16."""
    model = plain(int(512.3 * MIB))
    made = bill(model, work(model, codec="bf16"), Shape(shards=8), prices())
    cheapest = best([row for row in published() if row.topology == "shards"], 512.3)[0]
    assert 1000 * made.of("fold") <= cheapest.usd_1000 / 3
    assert made.folding <= cheapest.wall_s / 2


def test_of_20_updates_of_43_mib_a_third_of_the_bill_and_half_of_the_time_are_had_by_top_k_alone() -> None:
    """In shards S3 asks for requests what it asks for functions: one function, one request an update."""
    model = plain(int(42.7 * MIB))
    for row, memory in zip(
        best([r for r in published() if r.topology == "shards"], 42.7), (256, 1024), strict=True
    ):
        made = bill(model, work(model, codec="topk"), Shape(shards=1, memory=memory), prices())
        assert 1000 * made.of("fold") <= row.usd_1000 / 3
        assert made.folding <= row.wall_s / 2
