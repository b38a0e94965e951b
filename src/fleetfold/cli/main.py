"""fleetfold: the table of contents of its command line, and the one place where an error becomes words.

An error of ours is one or two lines and exit code 2 (the user's) or 1 (the wire's, or a run that
failed); `--debug` anywhere on the line shows the traceback instead.
"""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from rich.console import Console
from rich.markup import escape

from fleetfold import __version__
from fleetfold.cli.ask import ask
from fleetfold.cli.aws import aws
from fleetfold.cli.check import check_device
from fleetfold.cli.dashboard import dashboard, pause, resume, stop
from fleetfold.cli.demo import demo
from fleetfold.cli.device import agent, join
from fleetfold.cli.export import export
from fleetfold.cli.flower import flower
from fleetfold.cli.hub import enroll, hub, revoke
from fleetfold.cli.init import init
from fleetfold.cli.plan import plan
from fleetfold.cli.report import compare, report
from fleetfold.cli.run import run
from fleetfold.cli.show import devices, runs, show
from fleetfold.cli.sim import sim
from fleetfold.cli.split import split
from fleetfold.cli.watch import watch
from fleetfold.errors import told, typed

app = App(
    name="fleetfold",
    help="""Federated learning for fleets of edge devices, with no server that has to stay up.

    Start with `fleetfold demo`, or `fleetfold init my-app` and `fleetfold run my-app`.
    Every command has `--help` with examples; `--debug` shows tracebacks.""",
    version=__version__,
    version_flags=["--version"],
    help_format="markdown",
)
for command in (
    demo, init, run, sim, runs, show, watch, dashboard, pause, stop, resume, devices, report, compare, export,
    split, plan, hub, enroll, revoke, ask, join, agent, check_device, flower, aws,
):  # fmt: skip
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        sys.exit(app(tokens, exit_on_error=False, print_error=False, result_action="return_value"))
    except CycloptsError as error:
        if debug:
            raise
        _tell(errors, str(error).strip(), typed(" ".join(["fleetfold", *_commands(tokens), "--help"])))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if debug:
            raise
        sentence, next, code = told(error)
        _tell(errors, sentence, next)
        sys.exit(code)


def _commands(tokens: Sequence[str]) -> list[str]:
    """Those at the beginning of the line that name a command, and one of its own."""
    named = list[str]()
    at = app
    for token in tokens[:2]:
        if token.startswith("-") or token not in at:
            break
        named.append(token)
        at = at[token]
    return named


def _tell(console: Console, sentence: str, next: str) -> None:
    console.print("[bold red]error:[/]", escape(sentence))
    if next:
        console.print(f"  next: {escape(next)}")
