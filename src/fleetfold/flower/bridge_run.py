"""One run of Flower's as one of ours: each message is an exchange with one device.

    take ─▶ pending ─ its device is free ─▶ exchange n ─ ended ─▶ back
               └─ it has left, or time is over ────────────────▶ back, with an error

The records say which message is which exchange: taken again, by whatever process, it is the same one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.exchange import Outgoing, Terms
from fleetfold.coordinator.messenger import Messenger
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.flower.bridge_lines import Back, Forward, failed
from fleetfold.flower.private import RAISED, UNAVAILABLE
from fleetfold.messages import Envelope
from fleetfold.ports import Control, Objects
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import ENDED, Round
from fleetfold.wiring import local
from fleetfold.wiring.local import Place

SHORT = 2.0
"""Seconds that a message has to have left to be sent at all."""
OVERDUE = 15.0
"""Seconds after an exchange's deadline, by which somebody should have ended it."""
LOOK = 1.0
"""Seconds between two looks at who is there."""
KEPT = 4
"""Exchanges for each device whose contents and answers are kept."""
REMEMBERED = 64
"""Answers that are kept in memory."""
PIECE = 1 << 20


class Limits(Struct, frozen=True, kw_only=True):
    """In seconds. `patience`: most that a device may take for a message; `away`: most that one which is not
    there is waited for; `idle`: without a message, after which a run is over (another one opens it again)."""

    patience: float = 3600.0
    away: float = 60.0
    idle: float = 600.0


Drive = Callable[[Place, Run], AbstractContextManager[tuple[Control | None, Callable[[], None]]]]
"""Has a run driven as long as it is entered. → (the bus, None where somebody else has it; tends to who is at
work)"""


class BridgedRun:
    """A run that is on record. `used`: when it last had something to do. Raises BadConfig or Unavailable."""

    def __init__(self, place: Place, drive: Drive, limits: Limits, clock: Callable[[], float]) -> None:
        self.name, self.used = place.run, clock()
        self._home, self._limits, self._clock = place.home, limits, clock
        self._ledger = local.ledger(place, durable=True)
        self._objects: Objects = local.objects(place, durable=True)
        run = self._go_on()
        self._driven = ExitStack()
        control, self._tend = self._driven.enter_context(drive(place, run))
        self._messenger: Messenger = local.messenger(place, run.settings, control, clock)
        if control is not None:
            self._messenger.repeat()
        self._kept = KEPT * max(4, run.settings.devices)
        self._pending: dict[str, Forward] = {}
        self._waiting: dict[str, Forward] = {}
        self._backs: dict[str, Back] = {}
        self._numbers: dict[str, int] = {}
        self._contents: dict[int, str] = {}
        self._gone: dict[str, float] = {}
        self._looked, self._next = 0.0, 1
        while self._messenger.round(self._next):
            self._note(*self._messenger.batch(self._next).sent)
        self._retired = max(1, self._next - self._kept)

    def take(self, forward: Forward) -> None:
        """Raises BadConfig, or Unavailable."""
        self.used, id = self._clock(), forward.message.id
        self._waiting[id] = forward
        if id not in self._numbers and id not in self._pending:
            self._pending[id] = forward
            self._send_pending()

    def step(self) -> float:
        """→ when to look again, in seconds since the epoch."""
        self._look()
        self._tend()
        self._send_pending()
        return self._messenger.step()

    def back(self, forward: Forward) -> Back | None:
        """The answer, or why there is none; None: not yet."""
        id = forward.message.id
        if id not in self._backs:
            found = self._found(forward)
            if found is None:
                return None
            self._pending.pop(id, None)
            self._waiting.pop(id, None)
            self._backs = {**dict(list(self._backs.items())[-REMEMBERED:]), id: found}
            self.used = self._clock()
            self._tidy()
        return self._backs[id]

    def is_quiet(self) -> bool:
        return not self._waiting and not self._messenger.busy()

    def end(self, why: str) -> None:
        self._messenger.end(RunState.DONE, why)
        self._driven.close()

    # Out

    def _send_pending(self) -> None:
        """Each as soon as its device has no other: it has one task at a time."""
        busy = self._messenger.busy() if self._pending else frozenset()
        for id, forward in list(self._pending.items()):
            left = forward.until - self._clock()
            if forward.device not in busy and left > SHORT:
                self._send(forward, left)
                busy |= {forward.device}
                del self._pending[id]

    def _send(self, forward: Forward, left: float) -> None:
        key = layout.content(self.name, forward.digest)
        if self._objects.size(key) != forward.size:
            self._objects.put(key, _pieces(Path(forward.file), forward.size))
        most = self._limits.away if self._is_away(forward.device) else self._limits.patience
        terms = Terms(timeout=min(left, most), label=forward.message.type, turn=_turn(forward.message))
        sent = Outgoing(
            device=forward.device, message=forward.message, content=key, digest=forward.digest,
            size=forward.size,
        )  # fmt: skip
        self._messenger.send(self._next, [sent], terms)
        self._note(sent)

    def _note(self, sent: Outgoing) -> None:
        self._numbers[sent.message.id] = self._next
        self._contents[self._next] = sent.content
        self._next += 1

    # Back

    def _found(self, forward: Forward) -> Back | None:
        number = self._numbers.get(forward.message.id)
        round = self._messenger.round(number) if number else None
        if round and round.phase in ENDED:
            return self._ended(round, forward)
        why = self._hopeless(forward, round)
        return failed(forward, f"{forward.device} {why}", UNAVAILABLE) if why else None

    def _ended(self, round: Round, forward: Forward) -> Back:
        for reply in self._messenger.replies(round.number):
            return Back(message=reply.message, file=str(self._here(reply.key, reply.header.size, forward)))
        for device, why in self._messenger.refusals(round.number):
            return failed(forward, f"{device}: {why}", RAISED)
        seconds = round.policy.deadline
        return failed(forward, f"{forward.device} did not answer within {seconds:.0f} s", UNAVAILABLE)

    def _hopeless(self, forward: Forward, round: Round | None) -> str:
        """Why there is no use in waiting any longer, though the exchange has not ended."""
        now, gone = self._clock(), self._gone.get(forward.device)
        if now > forward.until:
            return "did not answer while the message was good"
        if round and now > round.deadline_at + OVERDUE:
            return "was not asked in time: no hub is at this run (fleetfold hub status)"
        was_there = round is None or round.policy.deadline > self._limits.away
        if gone is not None and was_there and now - gone > self._limits.away:
            return f"has left, and was not there again within {self._limits.away:.0f} s"
        return ""

    def _here(self, key: str, size: int, forward: Forward) -> Path:
        """The object as a file of this machine; if that is made for it, beside the content's."""
        own = self._home / key
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
        """Contents and answers that nobody will ask for any more."""
        before = self._next - self._kept
        kept = {self._contents[n] for n in range(max(1, before), self._next)}
        while self._retired < before:
            self._retired += 1
            self._messenger.retire(self._retired, kept)
            self._contents.pop(self._retired - 1, None)

    # Who is there

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK or not self._waiting:
            return
        self._looked = now
        for device in {forward.device for forward in self._waiting.values()}:
            if self._is_away(device):
                self._gone.setdefault(device, now)
            else:
                self._gone.pop(device, None)

    def _is_away(self, device: str) -> bool:
        known = self._ledger.devices([device])
        return any(entry.says is not None and not entry.says.online for entry in known)

    def _go_on(self) -> Run:
        """Have it run, if it had ended."""
        while True:
            found = self._ledger.run(self.name)
            if found is None:
                raise Unavailable(f"there is no run {self.name}")
            run, version = found
            again = replace(run, state=RunState.RUNNING, ended_at=0.0, reason="")
            if run.state is RunState.RUNNING or self._ledger.save_run(again, version):
                return again


def _turn(message: Envelope) -> int:
    """The app's own number of the round, where the message says it: as Flower's strategies do."""
    for entry in message.records if isinstance(message.records, list) else ():
        for key, value in entry[2] if entry[0] == "config" else ():
            if key == "server-round" and isinstance(value, int):
                return max(0, value)
    return int(message.group) if message.group.isdigit() and len(message.group) < 10 else 0


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """Raises BadConfig if the file is not as long as it was said to be."""
    done = 0
    with suppress(FileNotFoundError), path.open("rb") as file:
        while piece := file.read(PIECE):
            done += len(piece)
            yield piece
    if done != size:
        raise BadConfig(f"{path} has {done} bytes, not {size}")
