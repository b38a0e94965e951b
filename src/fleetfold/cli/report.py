"""fleetfold report and compare: one run, or several side by side, in a file that stands alone."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fleetfold.aws.pricing import priced
from fleetfold.cli.board import plain_table, terminal
from fleetfold.cli.files import printed, saved
from fleetfold.cli.places import existing
from fleetfold.cli.progress import progress
from fleetfold.errors import BadConfig, typed
from fleetfold.tell.compare import Compared, cells, compared, different
from fleetfold.tell.compare import compare as comparison
from fleetfold.tell.facts import gathered
from fleetfold.tell.report import report as made
from fleetfold.view import rows
from fleetfold.wiring import local as wiring

_PDF = Annotated[bool, Parameter(help="and as a PDF beside it, printed by Chromium", negative="")]


def report(
    run: str = "latest",
    /,
    *,
    out: Annotated[Path | None, Parameter(help="the file to write; default: RUN.html")] = None,
    pdf: _PDF = False,
) -> None:
    """Write a report of a run: one HTML file with its curves, the timeline of its slowest round, who
    contributed, what was refused, settings and versions. It needs no network, and nothing in it runs.

    **Examples**

    - `fleetfold report`
    - `fleetfold report digits-1 --out digits.html`
    - `fleetfold report digits-1 --pdf`
    """
    place = existing(run)
    ledger, objects = wiring.ledger(place), wiring.objects(place)
    found = ledger.run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold runs")
    all_rows = rows(ledger, objects, place.run, time.time(), priced(place, ledger))
    with progress(f"reading {place.run}", unit="rounds") as read:
        facts = gathered(ledger, objects, found[0], all_rows, read)
    path = out or Path(f"{place.run}.html")
    saved(path, made(facts, datetime.now(UTC)).encode())
    print(path)
    if pdf:
        printed(path, path.with_suffix(".pdf"))
        print(path.with_suffix(".pdf"))
    else:
        print(f"  next: {typed(f'fleetfold compare {place.run} OTHER')}")


def compare(
    *run: str,
    out: Annotated[Path | None, Parameter(help="an HTML file with the curves too")] = None,
    pdf: _PDF = False,
) -> None:
    """Put runs side by side: what came of each and what it took, the best of each column marked; with --out
    also their curves, and the settings in which they differ.

    **Examples**

    - `fleetfold compare digits-1 digits-2`
    - `fleetfold compare digits-1 digits-2 digits-3 --out compared.html`
    """
    if len(run) < 2:
        raise BadConfig("it takes two runs at least", next="fleetfold runs")
    if pdf and out is None:
        raise BadConfig("--pdf is of the file of --out", next="fleetfold compare … --out compared.html --pdf")
    told = [_compared(name) for name in run]
    columns = cells(told)
    table = plain_table("run", "state", "rounds", *(column.name for column, _ in columns))
    for k, each in enumerate(told):
        values = [f"[bold green]{c[k].text}*[/]" if c[k].best else c[k].text for _, c in columns]
        table.add_row(each.run.name, each.run.state.value, str(len(each.training)), *values)
    console = terminal()
    console.print(table)
    console.print("* the best of its column", style="dim")
    for name, values in different(told):
        console.print(f"{name}: {', '.join(values)}", markup=False, style="dim")
    if out is not None:
        saved(out, comparison(told, datetime.now(UTC)).encode())
        print(out)
    if pdf and out is not None:
        printed(out, out.with_suffix(".pdf"))
        print(out.with_suffix(".pdf"))


def _compared(name: str) -> Compared:
    place = existing(name)
    ledger = wiring.ledger(place)
    found = ledger.run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold runs")
    return compared(
        found[0], rows(ledger, wiring.objects(place), place.run, time.time(), priced(place, ledger))
    )
