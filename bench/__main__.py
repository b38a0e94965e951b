"""python -m bench: the table of contents of the benchmarks."""

from cyclopts import App

from bench.agent import agent
from bench.attack import attack
from bench.buffered import buffered
from bench.codecs import codecs
from bench.dashboard import dashboard
from bench.fleet import fleet
from bench.flower import flower
from bench.fold import fold
from bench.lambda_ import lambda_
from bench.overhead import overhead
from bench.privacy import privacy
from bench.proximal import proximal
from bench.selection import select

BENCHMARKS = (
    overhead,
    fold,
    select,
    buffered,
    attack,
    codecs,
    proximal,
    privacy,
    fleet,
    agent,
    lambda_,
    dashboard,
    flower,
)

app = App(
    name="python -m bench",
    help="What fleetfold costs. Each row is measured in a fresh process; the machine is named on stderr.",
    version_flags=[],
)
for benchmark in BENCHMARKS:
    app.command(benchmark, name=benchmark.__name__.rstrip("_"))

if __name__ == "__main__":
    app()
