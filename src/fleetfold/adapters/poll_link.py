"""The device's end of a bus without a broker: it looks whether there is mail at an address that the store has
signed, and puts what it has to say at another; each mail brings the addresses of the next.

    fetch ─▶ nothing there ─▶ pause, longer each time, with jitter ─▶ fetch …     say ─▶ mail ─▶ new addresses

Addresses die with their signature: what is said now and then keeps them alive. Where mail leads to dead ones,
since it was found late, the addresses before are tried, and the first ones: words there bring fresh ones.
"""

import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from fleetfold.adapters.doors import NOTHING, Doors
from fleetfold.bundle import Bundle, private
from fleetfold.errors import BadUpdate, Unavailable, shown
from fleetfold.messages import (
    LONGEST,
    PROTOCOL,
    Answer,
    Ask,
    Command,
    Grant,
    Mail,
    Presence,
    Report,
    Task,
    Words,
    encode,
)
from fleetfold.ports import pause

SOON, MOST = 4.0, 300.0
"""Seconds of the first pause after something has happened, and of the longest; each is drawn at random."""
ALIVE = 1200.0
"""Seconds after which something is said though there is nothing to say: addresses are good for an hour."""
ROOM = 100
"""Words that wait to be taken; the oldest are dropped when there are more."""
_MAIL = msgspec.json.Decoder(Mail)


class Addresses(Struct, frozen=True):
    fetch: str
    say: str


class Stand(Struct, frozen=True):
    """Where a device goes on. `before`: the addresses that led here, until these have shown to be good."""

    now: Addresses
    before: Addresses | None = None


class PollLink:
    """`place`: the file where it keeps how far it is. `timer`: seconds that only go on."""

    def __init__(
        self, own: Bundle, place: Path, timer: Callable[[], float], *, plain: bool = False,
        pauses: tuple[float, float] = (SOON, MOST), alive: float = ALIVE,
    ) -> None:  # fmt: skip
        self._device, self._place, self._timer = own.device, place, timer
        self._pauses, self._alive = pauses, alive
        self._doors = Doors(own, hosts=(), plain=plain, timeout=30.0, spent=lambda sent, received: None)
        self._first = Addresses(*own.poll)
        self._stand = _kept(place) or Stand(self._first)
        self._lock, self._granting = threading.Lock(), threading.Condition()
        self._news, self._turn, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._words: list[tuple[str, str]] = []
        self._put: dict[str, int] = {}  # digest of what was put → how many words it had
        self._presence = Presence(device=own.device)
        self._fresh: Task | None = None
        self._current: Task | None = None
        self._seen: tuple[str, int, str] | None = None
        self._withdrawn = False
        self._commands = OrderedDict[str, Command]()
        self._known = OrderedDict[str, None]()  # ids of commands that were handed over
        self._granted: Grant | None = None
        self._said_at = float("-inf")
        self.connected, self.why = False, "not tried yet"
        self.broker = f"mail at {self._stand.now.fetch.partition('?')[0]}"
        self._thread = threading.Thread(target=self._run, name="poll", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """What was said last is put there, if that can be done at once."""
        self._closing.set()
        self._turn.set()
        self._thread.join(60.0)

    def wait(self, seconds: float) -> None:
        self._news.wait(seconds)
        self._news.clear()

    def wake(self) -> None:
        self._news.set()

    def tasks(self) -> list[Task]:
        with self._lock:
            found, self._fresh = self._fresh, None
        return [found] if found else []

    def withdrawn(self) -> bool:
        with self._lock:
            found, self._withdrawn = self._withdrawn, False
        return found

    def commands(self) -> list[Command]:
        with self._lock:
            found, self._commands = list(self._commands.values()), OrderedDict()
        return found

    def forgotten(self) -> bool:
        """A store forgets nobody."""
        return False

    def report(self, report: Report) -> None:
        if report.state not in ("delivered", "progress"):  # the one the store tells, for the other none waits
            self._say("status", encode(report))

    def answer(self, answer: Answer) -> None:
        self._say("answer", encode(answer))

    def say(self, presence: Presence) -> None:
        with self._lock:
            self._presence = presence
            self._words = [each for each in self._words if each[0] != "presence" or self._put]
        self._say("presence", encode(presence))

    def ask(self, ask: Ask, seconds: float) -> Grant:
        """Raises Unavailable when no answer comes in so many seconds."""
        until = self._timer() + seconds
        with self._granting:
            self._granted = None
        self._say("ask", encode(ask))
        with self._granting:
            while (left := until - self._timer()) > 0:
                if self._granted is not None and _about(self._granted) == _about(ask):
                    return self._granted
                self._granting.wait(left)
        raise Unavailable(f"no fresh addresses for round {ask.round} of {ask.run} have come by mail")

    def _say(self, word: str, payload: bytes) -> None:
        if len(payload) <= LONGEST:
            with self._lock:
                self._words.append((word, payload.decode()))
            self._turn.set()

    # In the thread

    def _run(self) -> None:
        quiet = 0
        while True:
            closing = self._closing.is_set()
            try:
                if self._utter():
                    quiet = 0
                while not closing and self._look():
                    quiet = 0
                self._stands(True, "")
            except (Unavailable, BadUpdate) as error:
                self._stands(False, error.sentence)
            finally:
                self._doors.close()
            if closing:
                return
            self._turn.wait(pause(quiet, *self._pauses, random.random()))
            self._turn.clear()
            quiet += 1

    def _stands(self, connected: bool, why: str) -> None:
        changed = connected != self.connected
        self.connected, self.why = connected, why
        if changed:
            self.wake()

    def _utter(self) -> bool:
        """Put there what was not taken yet, if it is not what lies there. → whether it did."""
        with self._lock:
            if not self._words and self._timer() - self._said_at >= self._alive:
                self._words.append(("presence", encode(self._presence).decode()))
            words, count = _fitting(self._words)
        digest = sha256(words).hexdigest()
        if not count or (digest in self._put and self._timer() - self._said_at < self._alive):
            return False
        self._asked("PUT", self._stand.now.say, memoryview(words))
        self._put[digest], self._said_at = count, self._timer()
        return True

    def _look(self) -> bool:
        """Whether there was mail."""
        stand = self._stand
        data = self._asked("GET", stand.now.fetch)
        if data is None:
            if stand.before is not None:
                self._keep(Stand(stand.now))
            return False
        try:
            mail = _MAIL.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable(f"the mail is none: {shown(str(error), 100)}") from None
        if mail.v != PROTOCOL or mail.device != self._device:
            raise Unavailable(f"the mail is for {shown(mail.device, 64)}, of version {mail.v}")
        self._take(mail)
        self._keep(Stand(Addresses(mail.fetch, mail.say), stand.now))
        return True

    def _take(self, mail: Mail) -> None:
        with self._lock:
            if (taken := self._put.get(mail.heard)) is not None:
                del self._words[:taken]
                self._put.clear()
            task = mail.task
            if task is None:
                self._withdrawn = self._withdrawn or self._current is not None
                self._current = self._fresh = None
            else:
                self._current, self._withdrawn = task, False
                if (task.run, task.round, task.kind) != self._seen:
                    self._seen = (task.run, task.round, task.kind)
                    self._fresh = task
            for command in mail.commands:
                if command.id not in self._known:
                    self._known[command.id] = None
                    self._commands[command.id] = command
            while len(self._known) > ROOM:
                self._known.popitem(last=False)
        if mail.grant is not None:
            with self._granting:
                self._granted = mail.grant
                self._granting.notify_all()
        self.wake()

    def _keep(self, stand: Stand) -> None:
        private(self._place, encode(stand))
        self._stand = stand
        self._put.clear()  # what was put at the old address is put at the new one, unless it was taken

    def _asked(self, method: str, address: str, body: memoryview = NOTHING) -> bytes | None:
        """The object there; None: there is none. Raises Unavailable, also for an address that is dead."""
        headers = {"Content-Length": str(len(body))} if method == "PUT" else {}
        answer = self._doors.request(method, address, headers, body)
        if answer.status in (200, 201, 204):
            return b"".join(answer.chunks())
        said = answer.sentence()
        dead = "expired" in said.lower() or "ExpiredToken" in said
        if answer.status == 404:
            return None
        if answer.status == 403 and method == "GET" and not dead and "<Code>AccessDenied<" in said:
            return None  # to whoever may not list a bucket it says no more of what is not there
        if dead and self._fall_back():
            raise Unavailable("the newest addresses have died: those before are tried")
        why = "; it was away for too long: fleetfold enroll DEVICE --aws --poll" if dead else ""
        raise Unavailable(f"{answer.host} answers {answer.status}: {shown(said, 200)}{why}")

    def _fall_back(self) -> bool:
        """To addresses that may live yet, at which something is to be said. → whether there are any."""
        others = self._stand.before or (self._first if self._stand.now != self._first else None)
        if others is None:
            return False
        self._keep(Stand(others))
        self._said_at = float("-inf")
        return True


def _kept(place: Path) -> Stand | None:
    try:
        return msgspec.json.decode(place.read_bytes(), type=Stand)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _fitting(words: list[tuple[str, str]]) -> tuple[bytes, int]:
    """As many of them as a message holds, and how many these are."""
    size, count = 64, 0
    for word, text in words:
        size += len(word) + 2 * len(text.encode()) + 16
        if size > 2 * LONGEST and count:
            break
        count += 1
    return encode(Words(said=tuple(words[:count]))), count


def _about(message: Ask | Grant) -> tuple[str, int, str, int, int]:
    return message.run, message.round, message.kind, message.parts, message.first
