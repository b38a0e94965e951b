"""Every strategy that the installed flwr has, on local devices and over MQTT, beside Flower's own simulation.

    apps/digits ─┬─▶ reference.py: run_simulation, all in one session of Ray ─┐
                 ├─▶ fleetfold flower run --devices 7 ────────────────────────┼─▶ the same to 1e-5
                 └─▶ fleetfold flower run --hub, seven `fleetfold join` ──────┘   ─▶ a table in docs/flower.md

FLEETFOLD_WRITE_TABLE=1 puts the table into the page; else the page has to have it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp import strategy as strategies

from fleetfold.flower.fast import way
from tests.flower.environments import ROOT
from tests.flower.reference import APP, CONFIG, DEVICES
from tests.flower.running import locally, over_mqtt
from tests.hub.fleet import Fleet

LEGACY = {"server_fn": "`server_fn`, `NumPyClient`", "SecAgg+": "SecAgg+ workflow, `secaggplus_mod`"}
STRATEGIES = sorted(set(strategies.__all__) - {"Result", "Strategy"})
SAMPLE = ("FedAdam", "FedXgbBagging", "DifferentialPrivacyClientSideAdaptiveClipping", "SecAgg+")
CASES = [
    pytest.param(case, marks=[] if case in SAMPLE else [pytest.mark.fleet]) for case in (*STRATEGIES, *LEGACY)
]
TOLERANCE = 1e-5
PAGE = ROOT / "docs/flower.md"
FOUND: dict[str, list[float]] = {}
"""The largest difference of each case: on local devices, and over MQTT."""


@pytest.fixture(scope="module")
def references(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what Flower's simulation made of each case that is asked for here."""
    folder = tmp_path_factory.mktemp("reference")
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    cases = [call.params["case"] for call in calls if call and "case" in call.params]
    done = subprocess.run(
        [sys.executable, "-m", "tests.flower.reference", str(folder), *cases],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    missing = [case for case in cases if not (folder / f"{case}.npz").exists()]
    assert not missing, f"Flower's own simulation has nothing of {missing}:\n{done.stderr[-4000:]}"
    return folder


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet"), APP, DEVICES) as fleet:
        yield fleet


@pytest.mark.parametrize("case", CASES)
def test_this_strategy_comes_to_what_flowers_simulation_comes_to(
    case: str, references: Path, fleet: Fleet, tmp_path: Path
) -> None:
    wanted = references / f"{case}.npz"
    here, far = tmp_path / "here.npz", tmp_path / "far.npz"
    locally(APP, tmp_path, DEVICES, "--workers", "2", "--run-config", config(case, here))
    over_mqtt(fleet, APP, "--run-config", config(case, far))
    FOUND[case] = [gap(wanted, here), gap(wanted, far)]
    assert max(FOUND[case]) <= TOLERANCE


def config(case: str, result: Path) -> str:
    told = {**CONFIG, "strategy": case, "result": str(result)}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in told.items())


def gap(wanted: Path, found: Path) -> float:
    """The largest difference of any number of the results: arrays and metrics."""
    with np.load(wanted) as a, np.load(found) as b:
        assert a.files == b.files
        assert all(a[name].shape == b[name].shape for name in a.files)
        assert all(a[name].size for name in a.files if name != "metrics"), "Flower itself came to nothing"
        return max(float(np.abs(a[name].astype(float) - b[name]).max(initial=0.0)) for name in a.files)


def folded(case: str) -> str:
    """Who aggregates what devices have trained."""
    from digitsapp.server_app import strategy_of

    found = None if case in LEGACY else way(strategy_of(case, DEVICES))
    return "Flower's own" if found is None else f"our {found.fold.replace('_', ' ')}"


@pytest.mark.fleet
def test_the_table_of_the_page_is_what_was_found() -> None:
    if set(FOUND) != {*STRATEGIES, *LEGACY}:
        pytest.skip("not every strategy was tried")
    lines = []
    for case in (*STRATEGIES, *LEGACY):
        here, far = map(shown, FOUND[case])
        lines.append(f"| {LEGACY.get(case, f'`{case}`')} | {folded(case)} | {here} | {far} |")
    head = ["| | aggregated by | local devices | over MQTT |", "|---|---|---|---|"]
    table = "\n".join([*head, *lines, ""])
    print("\n".join(f"{case} {here:.1e} {far:.1e}" for case, (here, far) in FOUND.items()))
    text = PAGE.read_text()
    found = re.search(r"(?<=<!-- test_table -->\n).*?(?=<!-- end -->)", text, re.S)
    assert found, f"{PAGE.name} has no place for the table"
    if os.environ.get("FLEETFOLD_WRITE_TABLE"):
        PAGE.write_text(text[: found.start()] + table + text[found.end() :])
    else:
        assert found[0] == table, "FLEETFOLD_WRITE_TABLE=1 writes it anew"


def shown(value: float) -> str:
    return "to 1e-5" if value <= TOLERANCE else f"{value:.0e} off"
