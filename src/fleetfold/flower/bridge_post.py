"""A bridge's messages as exchanges of runs of ours: a run for each of Flower's, an exchange for each message.

    Forward ─ take ─▶ pending ─ its device is free ─▶ exchange n of run flower-… ─ ended ─▶ Back

The records say which message is which exchange: asked again, by whatever process, it is the same one. Who has
the bus, a hub, invites and takes in; here exchanges are opened, and what came is looked at.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.exchange import Outgoing, Terms
from fleetfold.coordinator.messenger import Messenger
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.flower.bridge_lines import SPOOL, Back, Forward
from fleetfold.flower.private import RAISED, UNAVAILABLE
from fleetfold.ledger import Ledger
from fleetfold.messages import Envelope
from fleetfold.ports import Objects
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.wiring import local
from fleetfold.wiring.local import Place

PREFIX = "flower-"
"""Before Flower's number of a run, in ours."""
SHORT = 5.0
"""Seconds that a message has to have left to be sent at all."""
KEPT = 4
"""Exchanges for each device whose contents and answers are kept."""
REMEMBERED = 64
"""Answers that are kept in memory."""
PIECE = 1 << 20


class Limits(Struct, frozen=True, kw_only=True):
    """In seconds. `patience`: most that a device may take for a message; `away`: the same where it is not
    there; `idle`: without a message, after which a run is over (it goes on when there is another one)."""

    patience: float = 3600.0
    away: float = 60.0
    idle: float = 600.0


class Fleet(Struct, frozen=True, kw_only=True):
    """Where the devices are. `begin`: have a run driven, once more if need be; `waiting`: whether another run
    waits until this one has ended."""

    home: Path
    begin: Callable[[Place], None]
    open: Callable[[Place, Forward], Run]
    waiting: Callable[[str], bool] = lambda run: False


class FleetPost:
    """`superlink`: whose runs they are; `folder`: the bridge's."""

    def __init__(
        self, fleet: Fleet, superlink: str, folder: Path, limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._fleet, self._superlink, self._folder = fleet, superlink, folder
        self._limits, self._clock = limits, clock
        self._runs = {run.number: run for run in self._before()}

    def take(self, forward: Forward) -> None:
        run = self._runs.get(forward.run)
        if run is None:
            run = self._runs[forward.run] = self._opened(forward)
        run.take(forward)

    def step(self) -> float:
        wake, now = float("inf"), self._clock()
        for number, run in list(self._runs.items()):
            wake = min(wake, run.step())
            idle = self._limits.away if self._fleet.waiting(run.name) else self._limits.idle
            if now - run.used > idle and run.is_quiet():
                run.end("no message came any more")
                del self._runs[number]
        return wake

    def back(self, forward: Forward) -> Back | None:
        run = self._runs.get(forward.run)
        return run.back(forward) if run else None

    def close(self) -> None:
        for run in self._runs.values():
            with suppress(Unavailable):
                run.end("the bridge was ended")

    def _opened(self, forward: Forward) -> "_Run":
        place = Place(self._fleet.home, f"{PREFIX}{forward.run}")
        place.folder.mkdir(parents=True, exist_ok=True)
        if not (place.folder / "ledger.db").exists() or local.ledger(place).run(place.run) is None:
            self._fleet.open(place, forward)
        return _Run(self._fleet, place, forward.run, self._folder, self._limits, self._clock)

    def _before(self) -> Iterator["_Run"]:
        """Runs of this bridge that have not ended."""
        for folder in sorted((self._fleet.home / "runs").glob(f"{PREFIX}*")):
            number, place = folder.name.removeprefix(PREFIX), Place(self._fleet.home, folder.name)
            if not number.isdigit() or not (folder / "ledger.db").exists():
                continue
            found = local.ledger(place).run(place.run)
            if found and found[0].app == self._superlink and found[0].state is RunState.RUNNING:
                yield _Run(self._fleet, place, int(number), self._folder, self._limits, self._clock)


class _Run:
    """One run of ours. `used`: when it last had something to do."""

    def __init__(
        self,
        fleet: Fleet,
        place: Place,
        number: int,
        folder: Path,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._fleet, self._place, self._folder, self._limits = fleet, place, folder, limits
        self.name, self.number, self.used, self._clock = place.run, number, clock(), clock
        self._ledger: Ledger = local.ledger(place, durable=True)
        self._objects: Objects = local.objects(place, durable=True)
        run = self._run()
        self._messenger: Messenger = local.messenger(place, run.settings, None, clock)
        if run.state is not RunState.RUNNING:
            self._go_on(run)
        fleet.begin(place)
        self._pending: dict[str, Forward] = {}
        self._backs: dict[str, Back] = {}
        self._exchanges: dict[str, int] = {}
        self._next = 1
        while self._messenger.round(self._next):
            for sent in self._messenger.batch(self._next).sent:
                self._exchanges[sent.message.id] = self._next
            self._next += 1

    def take(self, forward: Forward) -> None:
        """Raises BadConfig, or Unavailable."""
        self.used, id = self._clock(), forward.message.id
        if id not in self._exchanges and id not in self._pending:
            if forward.until - self._clock() < SHORT:
                raise Unavailable(f"the message to {forward.device} is too old to be sent")
            self._pending[id] = forward
            self._send_pending()

    def step(self) -> float:
        self._send_pending()
        return self._messenger.step()

    def back(self, forward: Forward) -> Back | None:
        number = self._exchanges.get(forward.message.id)
        if number is None:
            if self._clock() > forward.until:
                self._pending.pop(forward.message.id, None)
            return None
        round = self._messenger.round(number)
        if round is None or round.phase not in ENDED:
            return None
        self.used = self._clock()
        if forward.message.id not in self._backs:
            last = dict(list(self._backs.items())[-REMEMBERED:])
            self._backs = {**last, forward.message.id: self._back(round, forward)}
            self._tidy()
        return self._backs[forward.message.id]

    def is_quiet(self) -> bool:
        return not self._pending and not self._messenger.busy()

    def end(self, why: str) -> None:
        self._messenger.end(RunState.DONE, why)

    # Out

    def _send_pending(self) -> None:
        """Each as soon as its device has no other: it has one task at a time."""
        busy = self._messenger.busy() if self._pending else frozenset()
        for id, forward in list(self._pending.items()):
            left = forward.until - self._clock()
            if forward.device not in busy and left > 0:
                self._send(forward, left)
                busy |= {forward.device}
            elif left > 0:
                continue
            del self._pending[id]

    def _send(self, forward: Forward, left: float) -> None:
        key = layout.content(self.name, forward.digest)
        if self._objects.size(key) != forward.size:
            self._objects.put(key, _pieces(Path(forward.file), forward.size))
        known = self._ledger.devices([forward.device])
        is_away = any(device.says is not None and not device.says.online for device in known)
        seconds = min(left, self._limits.away if is_away else self._limits.patience)
        terms = Terms(timeout=seconds, label=forward.message.type, turn=_turn(forward.message))
        sent = Outgoing(
            device=forward.device,
            message=forward.message,
            content=key,
            digest=forward.digest,
            size=forward.size,
        )
        self._messenger.send(self._next, [sent], terms)
        self._exchanges[forward.message.id] = self._next
        self._next += 1

    # Back

    def _back(self, round: Round, forward: Forward) -> Back:
        replies = self._messenger.replies(round.number) if round.phase is Phase.DONE else []
        if replies:
            reply = replies[0]
            return Back(message=reply.message, file=str(self._here(reply.key, reply.header.size, forward)))
        refused = self._messenger.refusals(round.number)
        if refused:
            error = (RAISED, f"{forward.device}: {refused[0][1]}")
        else:
            seconds = round.policy.deadline
            error = (UNAVAILABLE, f"{forward.device} did not answer within {seconds:.0f} s")
        return Back(message=Envelope(id="", reply_to=forward.message.id, error=error))

    def _here(self, key: str, size: int, forward: Forward) -> Path:
        """The object as a file of this machine."""
        own = self._place.home / key
        if own.is_file():
            return own
        path = Path(forward.file).with_suffix(".answer")
        with path.open("wb") as file, closing(self._objects.open(key)) as reader:
            room, at = memoryview(bytearray(PIECE)), 0
            while at < size and (count := reader.read(at, room)):
                file.write(room[:count])
                at += count
        return path

    def _tidy(self) -> None:
        """What nobody will ask for any more: the files of the message before, and old exchanges' objects."""
        spool = self._folder / SPOOL
        for path in spool.glob("*"):
            with suppress(OSError):
                if self._clock() - path.stat().st_mtime > 2 * self._limits.patience:
                    path.unlink()
        before = self._next - KEPT * max(4, self._run().settings.devices)
        if before > 1:
            kept = {s.content for n in range(before, self._next) for s in self._messenger.batch(n).sent}
            self._messenger.retire(before, kept)

    # The run

    def _run(self) -> Run:
        found = self._ledger.run(self.name)
        if found is None:
            raise Unavailable(f"there is no run {self.name}")
        return found[0]

    def _go_on(self, run: Run) -> None:
        """A message came for a run that had ended."""
        while run.state is not RunState.RUNNING:
            found = self._ledger.run(self.name)
            assert found is not None
            run = replace(found[0], state=RunState.RUNNING, ended_at=0.0, reason="")
            if self._ledger.save_run(run, found[1]):
                return
            run = found[0]


def _turn(message: Envelope) -> int:
    """The app's own number of the round, where the message says it: as Flower's strategies do."""
    for entry in message.records if isinstance(message.records, list) else ():
        for key, value in entry[2] if entry[0] == "config" else ():
            if key == "server-round" and isinstance(value, int):
                return max(0, value)
    return int(message.group) if message.group.isdigit() and len(message.group) < 10 else 0


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """Raises Unavailable if the file is not as long as it was said to be."""
    done = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                done += len(piece)
                yield piece
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from None
    if done != size:
        raise BadConfig(f"{path} has {done} bytes, not {size}")
