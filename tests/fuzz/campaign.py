"""The long run: `make fuzz`, or `python -m tests.fuzz --files 1000000 --seed 7`.

    --case 7:1234     one case again, by its seed and number: what was done to it, and what it led to

Two processes share the numbers. A case that fails is written to a file, and ends the run with its command.
A process that is stuck in one case, where no alarm reaches it, is killed and its case told.
"""

import argparse
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.mutate import mutated
from tests.fuzz.trial import Fault, Verdict, timed

STUCK = 20.0
"""Seconds in one case after which nothing but the end of its process helps."""
EVERY = 5.0
"""Seconds between two lines of progress."""


class Found(NamedTuple):
    """What one process did: files, admitted ones, reasons of refusals, the slowest, and what failed."""

    files: int
    admitted: int
    reasons: "Counter[str]"
    slowest: tuple[float, int]
    failures: list[tuple[int, str]]


def work(seed: int, first: int, step: int, files: int, at: "Synchronized[int]", out: "Queue[Found]") -> None:
    """Cases `first`, `first + step`, … below `files`; `at` says which one it is at."""
    admitted, slowest, reasons, failures = 0, (0.0, 0), Counter[str](), list[tuple[int, str]]()
    for number in range(first, files, step):
        at.value = number
        case, data, _ = mutated(seed, number)
        try:
            verdict, seconds = timed(case, data, number // step)
        except Fault as fault:
            failures.append((number, str(fault)))
            print(f"failed at {seed}:{number}: {fault}", flush=True)
            if len(failures) == 20:
                break
            continue
        admitted, slowest = admitted + verdict.admitted, max(slowest, (seconds, number))
        reasons["admitted" if verdict.admitted else kind(verdict)] += 1
    at.value = files
    out.put(Found(len(range(first, files, step)), admitted, reasons, slowest, failures))


def kind(verdict: Verdict) -> str:
    """A refusal's reason without names and numbers."""
    return " ".join(w for w in verdict.reason.split() if w.isalpha())[:60]


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    arguments.add_argument("--files", type=int, default=int(os.environ.get("FUZZ_FILES", "1000000")))
    arguments.add_argument(
        "--seed", type=int, default=int(os.environ.get("FUZZ_SEED") or secrets.randbelow(10**6))
    )
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--case", help="SEED:NUMBER of one case, to try again")
    told = arguments.parse_args()
    return again(told.case) if told.case else run(told.seed, told.files, told.processes)


def again(case: str) -> int:
    seed, number = map(int, case.split(":"))
    made, data, how = mutated(seed, number)
    print(f"case {case}: {how}; {len(data)} bytes, in {written(seed, number, data)}")
    try:
        verdict, seconds = timed(made, data, number // 2)
    except Fault as fault:
        print(f"FAILED: {fault}")
        return 1
    print(f"{'admitted' if verdict.admitted else 'refused: ' + verdict.reason}; {seconds * 1e3:.1f} ms")
    return 0


def run(seed: int, files: int, processes: int) -> int:
    print(f"{files} files, seed {seed}, {processes} processes", flush=True)
    context, started = multiprocessing.get_context("spawn"), time.monotonic()
    out: Any = context.Queue()
    places = [context.Value("q", 0, lock=False) for _ in range(processes)]
    workers = [
        context.Process(target=work, args=(seed, k, processes, files, places[k], out), daemon=True)
        for k in range(processes)
    ]
    for worker in workers:
        worker.start()
    stuck = watched(workers, places, files, started)
    found = [out.get(timeout=10) for worker in workers if worker.exitcode == 0]
    return told(seed, files, found, stuck, time.monotonic() - started)


def watched(workers: list[Any], places: list[Any], files: int, started: float) -> list[tuple[int, str]]:
    """Until all have ended. → cases whose process was stuck in them, or died of them."""
    lost, since = [], {k: (-1, time.monotonic()) for k in range(len(workers))}
    shown = time.monotonic()
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.2)
        for k, worker in enumerate(workers):
            if places[k].value != since[k][0]:
                since[k] = (places[k].value, time.monotonic())
            elif places[k].value < files and time.monotonic() - since[k][1] > STUCK and worker.is_alive():
                worker.kill()
                lost.append((places[k].value, f"hung for {STUCK:g} s"))
        if time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            done = sum(min(place.value, files) for place in places) // len(places)
            rate = done / (shown - started)
            left = f"{(files - done) / rate:.0f} s left" if done else "starting"
            print(f"{done} of {files} files · {rate:.0f} a second · {left}", flush=True)
    known = {number for number, _ in lost}
    for worker, place in zip(workers, places, strict=True):
        if worker.exitcode and place.value not in known:
            lost.append((place.value, f"its process died with {worker.exitcode}"))
    return lost


def told(seed: int, files: int, found: list[Found], lost: list[tuple[int, str]], seconds: float) -> int:
    """The report. → the exit code."""
    failures = sorted(lost + [failure for each in found for failure in each.failures])
    for number, why in failures:
        _, data, how = mutated(seed, number)
        print(f"FAILED {seed}:{number} ({how}): {why}\n  file: {written(seed, number, data)}")
        print(f"  again: {sys.executable} -m tests.fuzz --case {seed}:{number}")
    done, admitted = sum(each.files for each in found), sum(each.admitted for each in found)
    reasons = sum((each.reasons for each in found), Counter[str]())
    for reason, count in [] if failures else reasons.most_common(12):
        print(f"{count:>9} {reason or '…'}")
    slowest, number = max((each.slowest for each in found), default=(0.0, 0))
    print(
        f"{done} of {files} files in {seconds:.0f} s, {done / seconds:.0f} a second: {admitted} admitted, "
        f"{sum(reasons.values()) - admitted} refused, {len(failures)} failed; "
        f"the slowest, {seed}:{number}, took {slowest:.3f} s"
    )
    return 1 if failures or done != files else 0


def written(seed: int, number: int, data: bytes) -> Path:
    folder = Path(os.environ.get("FUZZ_FOLDER", ".fuzz"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{seed}-{number}.safetensors"
    path.write_bytes(data)
    return path
