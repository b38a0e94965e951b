"""The device's way to objects over signed addresses: each says by itself what it allows, and until when.

    fetch     cache ◀─ difference to a model in it ◀─ or whole, by ranges
    deliver   spool ─▶ in one piece, or in parts ─▶ the door, or a store

No clock is compared: that an address is too old, the door says (410, 403); then fresh ones are asked for.
What comes from the hub is bounded like what comes from anybody: never more bytes than the task said.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Collection
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from fleetfold.adapters.disk import Cache, Spool, Spooled, length_of, mapped, on_disk, remove
from fleetfold.adapters.doors import Answer, Broken, Doors
from fleetfold.bundle import Bundle
from fleetfold.errors import BadUpdate, FleetfoldError, Unavailable, shown
from fleetfold.fold import difference
from fleetfold.layout import valid_name
from fleetfold.messages import Ask, Grant, Task

TRIES = 8
"""Of the same thing in a row that bring nothing; after them it is Unavailable for now."""
ASKS = 3
"""For fresh addresses in a row that bring nothing."""
ANEW = 3
"""Beginnings of a download: what turns out to be another file is thrown away."""
ASK_FIRST = 1 << 20
"""Bytes of a body that is not sent before the hub's door was asked for what lies there: so it has taken the
address."""
STALE = frozenset({401, 403, 404, 410})
"""Refusals of an address that a fresh one may not meet."""
LATER = frozenset({408, 409, 425, 429})
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (?:(\d{1,19})-\d{1,19}|\*)/(\d{1,19}|\*)")


class Stale(Unavailable):
    """The address is not good, or not any more."""


class Another(Unavailable):
    """What was got is not the file that was meant, or not whole: it is begun anew."""


class SignedTransfer:
    """`folder`: of one device, and of one process at a time. `ask`: brings fresh addresses, or raises
    Unavailable. `wait(n)`: waits after failure n (from 0) in a row, by `ports.pause`. `spent(sent, received)`
    and `progress(step, done, total)` hear of bytes; what `spent` raises breaks off."""

    def __init__(
        self, folder: Path, bundle: Bundle, ask: Callable[[Ask], Grant], wait: Callable[[int], None], *,
        keep: int = 2, hosts: Collection[str] = (), plain: bool = False, timeout: float = 60.0,
        spent: Callable[[int, int], None] = lambda sent, received: None,
        progress: Callable[[str, int, int], None] = lambda step, done, total: None,
    ) -> None:  # fmt: skip
        self._cache, self._spool = Cache(folder, keep), Spool(folder)
        self._ask, self._wait, self._spent, self._progress = ask, wait, spent, progress
        self._doors = Doors(bundle, hosts=hosts, plain=plain, timeout=timeout, spent=spent)

    # The model

    def fetch(self, task: Task) -> memoryview:
        self._check(task.digest, task.size)
        found = self._cache.find(task.digest)
        if found is None and task.difference and _DIGEST.fullmatch(task.known):
            found = self._rebuilt(task)
        if found is None:
            found = self._whole(task.model, lambda: self._granted(task).model, task.digest, task.size)
        return found

    def take(self, address: str, digest: str, size: int) -> memoryview:
        """A model outside of any round, of which there are no fresh addresses."""
        self._check(digest, size)
        found = self._cache.find(digest)
        return self._whole(address, _no_other, digest, size) if found is None else found

    def _check(self, digest: str, size: int) -> None:
        if not _DIGEST.fullmatch(digest) or size <= 0:
            raise BadUpdate("it is not said which model that is, or how large")

    def _rebuilt(self, task: Task) -> memoryview | None:
        """The model as one that is here and the difference make it; None where they do not."""
        old = self._cache.find(task.known)
        if old is None or len(old) != task.size:
            return None
        self._cache.make_room(task.digest, task.size, task.known)
        part, made = self._cache.difference(task.digest), False
        try:
            self._download(task.difference, _no_other, part, task.size, exact=False)
            made = self._cache.add_made(task.digest, difference.decode(old, mapped(part) or b""))
        except Broken:
            return None  # what has come of it stays, to be gone on with
        except (BadUpdate, Stale, Another):
            pass  # the whole model is there as well
        remove(part)
        return self._cache.find(task.digest) if made else None

    def _whole(self, address: str, fresh: Callable[[], str], digest: str, size: int) -> memoryview:
        self._cache.make_room(digest, size)
        part = self._cache.part(digest)
        why = Another(f"what was fetched {ANEW} times is not the model of sha256 {digest[:12]}…")
        for _ in range(ANEW):
            try:
                self._download(address, fresh, part, size, exact=True)
            except Another as error:
                why = error
            # Of what is another, nothing is left here either.
            if self._cache.add(digest, part) and (found := self._cache.find(digest)) is not None:
                return found
        raise why

    def _download(self, address: str, fresh: Callable[[], str], part: Path, most: int, exact: bool) -> None:
        """Go on with the file where it ends. `exact`: it is to have `most` bytes, not one less. Raises
        Another; BadUpdate, at once, for more."""

        def once(address: str, again: bool) -> None:
            have = length_of(part)
            if have > most:
                raise Another(f"{part.name} has more bytes than the model")
            if exact and have == most:
                return
            answer = self._doors.request("GET", address, {"Range": f"bytes={have}-"} if have else {})
            start, total = _extent(answer, have)
            if start == total:
                return
            if total is not None and total > most and not start:
                raise BadUpdate(f"{answer.host} has {total} bytes, by the task there are {most}")
            if total is not None and (total > most or (exact and total < most)):
                raise Another(f"{answer.host} has {total} bytes, by the task there are {most}")
            self._receive(answer, part, start, most)
            if length_of(part) < (total if total is not None else most if exact else 0):
                raise Broken(f"{answer.host} broke off at byte {length_of(part)}")

        with closing(self._doors):
            self._persist(address, fresh, once, lambda: length_of(part))

    def _receive(self, answer: Answer, part: Path, start: int, most: int) -> None:
        with on_disk(part), open(part, "ab") as file:
            file.truncate(start)
            for data in answer.chunks():
                self._spent(0, len(data))
                start += len(data)
                if start > most:
                    remove(part)
                    raise BadUpdate(f"{answer.host} sends more than the {most} bytes that the task says")
                file.write(data)
                self._progress("download", start, most)

    # The update

    def deliver(self, task: Task, update: bytes) -> None:
        if task.most and len(update) > task.most:
            raise BadUpdate(f"the update has {len(update)} bytes, the task allows {task.most}")
        if not valid_name(task.run):
            raise BadUpdate("the task's run has no name that a file may have")
        self._upload(task, self._spool.add(task, update), again=False)

    def delivered(self, task: Task) -> bool:
        update = self._spool.find(task)
        if update is not None:
            self._upload(task, update, again=True)
        return update is not None

    def put(self, address: str, data: memoryview) -> None:
        """Something outside of any round, of which there are no fresh addresses."""
        with closing(self._doors):
            self._send(address, _no_other, data, 0, len(data), again=False)

    def _upload(self, task: Task, update: Spooled, again: bool) -> None:
        addresses = {0: task.update} if update.parts == 1 else {}

        def address(number: int) -> str:
            if number not in addresses:
                granted = self._granted(task, update.parts if update.parts > 1 else 0, number)
                addresses.update(enumerate(granted.updates, number))
            return addresses[number]

        def fresh(number: int) -> str:
            addresses.clear()
            return address(number)

        with closing(self._doors):
            for number in range(update.sent, update.parts):
                before, part = update.part(number)
                self._send(address(number), partial(fresh, number), part, before, len(update.data), again)
                update.note()

    def _send(
        self, address: str, fresh: Callable[[], str], body: memoryview, before: int, total: int, again: bool
    ) -> None:
        """`before`, of `total`: bytes of the update that have gone. `again`: it may lie there already."""

        def once(address: str, repeated: bool) -> None:
            own, done = self._doors.own(address), before
            if own and (again or repeated or len(body) > ASK_FIRST) and self._lies(address, len(body)):
                return

            def sent(count: int) -> None:
                nonlocal done
                done += count
                self._progress("upload", done, total)

            answer = self._doors.request("PUT", address, _promises(address, body, own), body, sent)
            if answer.status not in (200, 201) and not (own and answer.status == 409):
                raise _refusal(answer)  # 409: what lies there stands

        self._persist(address, fresh, once, lambda: 0)

    def _lies(self, address: str, length: int) -> bool:
        """Whether the hub's door has it. So it also refuses before a long body is under way."""
        answer = self._doors.request("HEAD", address, {})
        if answer.status in STALE - {404}:
            raise Stale(f"{answer.host} refuses the address with {answer.status}")
        return answer.status == 200 and answer.length == length

    # Both

    def _persist(
        self, address: str, fresh: Callable[[], str], once: Callable[[str, bool], None],
        reached: Callable[[], int],
    ) -> None:  # fmt: skip
        """Do it until it is done, or has failed too often since it last came further than it ever was."""
        best, failed, asked = reached(), 0, 0
        while True:
            try:
                return once(address, failed > 0)
            except (Broken, Stale) as error:
                self._doors.close()
                if reached() > best:
                    best, failed, asked = reached(), 0, 0
                stale = isinstance(error, Stale)
                failed, asked = failed + (not stale), asked + stale
                if failed >= TRIES or asked > ASKS:
                    raise
            if stale:
                address = fresh()
            else:
                self._wait(failed - 1)

    def _granted(self, task: Task, parts: int = 0, first: int = 0) -> Grant:
        ask = Ask(
            run=task.run, round=task.round, kind=task.kind, device=task.device, parts=parts, first=first
        )
        grant = self._ask(ask)
        if grant.reason:
            raise BadUpdate(grant.reason)
        same = all(getattr(grant, name) == getattr(ask, name) for name in ask.__struct_fields__)
        if not same or not grant.model or not grant.updates:
            raise Unavailable("the hub grants other addresses than were asked for")
        return grant


def _no_other() -> str:
    raise Stale("the address is not good any more")


def _extent(answer: Answer, have: int) -> tuple[int, int | None]:
    """The first byte of what is coming, and how many the whole file has, if that is said."""
    if answer.status == 200:
        return 0, answer.length
    found = _RANGE.fullmatch(answer.header("Content-Range"))
    total = int(found[2]) if found and found[2] != "*" else None
    if answer.status == 416 and have and total == have:
        return have, have
    if answer.status == 206 and have and found and found[1] and int(found[1]) == have:
        return have, total
    if answer.status in (206, 416):
        raise Another(f"{answer.host} has other bytes than before")
    raise _refusal(answer)


def _promises(address: str, body: memoryview, own: bool) -> dict[str, str]:
    """What is said of a body. A store's own address has signed what it wants to hear: no word more."""
    said = {"Content-Length": str(len(body))}
    if own:
        digest = b64encode(hashlib.sha256(body).digest()).decode()
        said["Content-Digest"] = f"sha-256=:{digest}:"
    elif (urlsplit(address).hostname or "").endswith(".blob.core.windows.net"):
        said["x-ms-blob-type"] = "BlockBlob"
    return said


def _refusal(answer: Answer) -> FleetfoldError:
    said = f"{answer.host} answers {answer.status}: {answer.sentence()}"
    if answer.status in STALE or (answer.status == 400 and "Expired" in said):  # so Google's store has it
        return Stale(shown(said))
    if answer.status in LATER or answer.status >= 500:
        return Broken(shown(said))
    return BadUpdate(said) if 400 <= answer.status < 500 else Unavailable(shown(said))
