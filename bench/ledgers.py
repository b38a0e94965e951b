"""A ledger as a run of any size leaves it, written without running any: what the dashboard is measured and
tried with.

    Written(home, "big", devices=10_000, cohort=200).rounds(499) ─▶ .open(10_000) ─▶ .arrive(4_000)
"""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.ledger import Arrival, place
from fleetfold.messages import Evaluation, Metrics, Presence, Timings
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import Phase, Policy, Round
from fleetfold.settings import Settings
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

MODEL = bytes(4000)


class Written:
    """`names`: of devices, else device-00000 and so on. `elsewhere`: they say what devices of a hub say."""

    def __init__(
        self, home: Path, run: str, *, devices: int = 50, cohort: int = 20, rounds: int = 500,
        names: Sequence[str] = (), elsewhere: bool = False, seed: int = 0, **settings: object,
    ) -> None:  # fmt: skip
        self.place, self.chance = Place(home, run), np.random.default_rng(seed)
        self.place.folder.mkdir(parents=True)
        self.ledger, self.objects = wiring.ledger(self.place), wiring.objects(self.place)
        self.names = list(names) or [f"device-{k:05}" for k in range(devices)]
        self.cohort, self.began = min(cohort, len(self.names)), time.time() - 20.0 * rounds
        speeds = 0.5 + self.chance.gamma(4.0, 1.0, len(self.names))
        self.speed = dict(zip(self.names, map(float, speeds), strict=True))
        told = Settings(rounds=rounds, devices=len(self.names), **settings)  # type: ignore[arg-type]
        self.run = Run(name=run, app="app.py", settings=told, started_at=self.began)
        self.objects.put(layout.model(run, 0), [MODEL])
        self.ledger.save_run(self.run, expect=0)
        self.ledger.save_devices([self._device(name, elsewhere) for name in self.names])

    def _device(self, name: str, elsewhere: bool) -> Device:
        says = None
        if elsewhere:
            online = bool(self.chance.random() < 0.9)
            says = Presence(
                device=name, online=online, available=bool(self.chance.random() < 0.8),
                battery=round(float(self.chance.random()), 3), charging=bool(self.chance.random() < 0.3),
                link="unmetered" if self.chance.random() < 0.7 else "metered",
                examples=int(self.chance.integers(20, 900)),
            )  # fmt: skip
        return Device(
            name=name, turnaround=self.speed[name], chosen=int(self.chance.integers(0, 40)),
            arrived=int(self.chance.integers(0, 30)), last_seen=self.began,
            examples=int(self.chance.integers(20, 900)), says=says,
        )  # fmt: skip

    def rounds(self, count: int, *, refused: int = 1, late: int = 1, loss: float | None = None) -> "Written":
        """So many more rounds, each ended with a model."""
        for _ in range(count):
            round = self.open(self.cohort)
            self.arrive(self.cohort - late, refused=refused, loss=loss)
            self.end(late=late)
            assert round.number == self.run.round - 1
        return self

    def open(self, count: int, *, now: float = 0.0) -> Round:
        number = self.run.round
        chosen = [self.names[k] for k in self.chance.choice(len(self.names), count, replace=False)]
        text = msgspec.json.encode(chosen)
        key = layout.cohort(layout.round(self.run.name, number, "train"), f"{number:016x}")
        self.objects.put(key, [text])
        at = now or self.began + 20.0 * number
        policy = Policy(target=count, quorum=max(1, count // 2), deadline=600.0)
        self.round = Round(
            run=self.run.name, number=number, base=self.run.version, cohort=key, invited=count, policy=policy,
            opened_at=at, asked_at=at, reason=f"waiting: 0 of {count} updates, 600 s left",
        )  # fmt: skip
        self.version, self.chosen = 1, chosen
        self.ledger.save_round(self.round, expect=0)
        return self.round

    def arrive(
        self, count: int, *, refused: int = 0, loss: float | None = None, metrics: Metrics | None = None,
        why: str = "tensor 'w' is missing",
    ) -> None:  # fmt: skip
        """The next `count` devices of the cohort bring updates; the first `refused` of them bring none."""
        first = len(self.round.arrived) + len(self.round.refused)
        seats = range(first, min(first + count, len(self.chosen)))
        wrong = set(list(seats)[:refused])
        arrivals = [self._arrival(s, s in wrong, loss, metrics, why if s in wrong else "") for s in seats]
        self.ledger.save_arrivals(place(self.round), arrivals)
        arrived = self.round.arrived | {s for s in seats if s not in wrong}
        reason = f"waiting: {len(arrived)} of {len(self.chosen)} updates, 500 s left"
        self._save(replace(self.round, arrived=arrived, refused=self.round.refused | wrong, reason=reason))

    def _arrival(
        self, seat: int, wrong: bool, loss: float | None, metrics: Metrics | None, why: str
    ) -> Arrival:
        name, chance = self.chosen[seat], self.chance
        took = Timings(download=0.1, compute=self.speed[name] * (0.8 + 0.4 * chance.random()), upload=0.2)
        found = 3.0 * 0.995**self.round.number * (0.8 + 0.4 * chance.random()) if loss is None else loss
        own: Metrics = {"loss": found, "accuracy": 1 - found / 3.5}
        told = own if metrics is None else metrics
        return Arrival(
            device=name, seat=seat, state="refused" if wrong else "admitted", reason=why,
            key=layout.update(place(self.round), name), size=4200, examples=100, metrics=told,
            evaluation=Evaluation(examples=10, metrics=told), took=took,
            at=self.round.asked_at + 0.5 + self.speed[name] + chance.random(),
        )  # fmt: skip

    def end(self, *, late: int = 0, failed: bool = False) -> None:
        """The round ends, and so many of who was not heard of come late."""
        heard = self.round.arrived | self.round.refused
        silent = [seat for seat in range(len(self.chosen)) if seat not in heard][:late]
        why = "came 2.0 s after the round closed"
        came = [replace(self._arrival(seat, False, None, None, why), state="late") for seat in silent]
        self.ledger.save_arrivals(place(self.round), came)
        at, number = self.round.opened_at + 15.0, self.round.number
        score = 3.0 * 0.995**number
        phase = Phase.FAILED if failed else Phase.DONE
        reason = "the deadline has passed" if failed else f"folded {len(self.round.arrived)} updates"
        scores: Metrics = {"loss": score, "accuracy": 1 - score / 3.5}
        metrics = {"test": scores, "devices": scores}
        ended = replace(
            self.round, phase=phase, closed_at=at - 1, ended_at=at, metrics=metrics, reason=reason
        )
        self._save(ended)
        self.objects.put(layout.model(self.run.name, self.run.version + 1), [MODEL])
        self._save_run(replace(self.run, round=number + 1, version=self.run.version + (not failed)))

    def conclude(self, state: RunState = RunState.DONE, reason: str = "done") -> "Written":
        self._save_run(
            replace(self.run, state=state, reason=reason, ended_at=time.time(), round=self.run.round - 1)
        )
        return self

    def _save(self, round: Round) -> None:
        assert self.ledger.save_round(round, self.version)
        self.round, self.version = round, self.version + 1

    def _save_run(self, run: Run) -> None:
        found = self.ledger.run(run.name)
        assert found is not None
        assert self.ledger.save_run(run, found[1])
        self.run = run
