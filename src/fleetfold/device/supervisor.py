"""The waiting process of a device: has the link, decides whether to work now, has one worker do it.

    link ─▶ Hand (task) ─▶ conditions hold? ─▶ Child ─▶ its reports ─▶ link
         ─▶ commands ───────────────────────▶ Child ─▶ answers ─────▶ link

While there is a worker the journal is its to write; a task that is left off is settled here, after the worker
is gone. So an answer is given once, and what was promised is finished in the next life.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from fleetfold import __version__
from fleetfold.agent.journal import ATTEMPTS, Journal
from fleetfold.bundle import Bundle
from fleetfold.device import own
from fleetfold.device.budget import Budget
from fleetfold.device.child import Child
from fleetfold.device.errands import Errands, answer
from fleetfold.device.guard import EAGER, Guard
from fleetfold.device.hand import Hand, report, same, unable
from fleetfold.device.lines import (
    Answered,
    Do,
    Done,
    FromWorker,
    Look,
    Orders,
    Ready,
    Said,
    Spent,
    Step,
)
from fleetfold.device.link import FleetLink
from fleetfold.device.presence import Herald
from fleetfold.device.status import Doing, Ledge, State, Told, born
from fleetfold.device.terms import Home, Terms
from fleetfold.errors import BadConfig
from fleetfold.log import Log
from fleetfold.messages import PROTOCOL, Answer, Command, Presence, Report, Task
from fleetfold.messages import State as Answering
from fleetfold.ports import Records
from fleetfold.settings import size

BEARABLE = 60.0
"""Seconds for which a condition may fail while there is work: a plug that is moved stops nothing."""
SURE = 15.0
"""Seconds after which a broker that we are connected to has told of our task, if there is one."""
BUSY, CALM = 1.0, 10.0
"""Seconds between two looks at everything, at work and else."""
LASTING = 5.0
"""Seconds after which a step of a task is told to who watches; what is quicker is told by its end."""
TOLD = ("fetching", "training", "evaluating", "delivering")


class Supervisor:
    """timer: seconds since the boot, named `life`. today: the device's own date."""

    def __init__(
        self, home: Home, bundle: Bundle, terms: Terms, link: FleetLink, records: Records, transfer: str,
        log: Log, *, life: str, timer: Callable[[], float] = time.monotonic,
        today: Callable[[], str] = lambda: time.strftime("%Y-%m-%d", time.localtime()),
    ) -> None:  # fmt: skip
        self._home, self._bundle, self._terms, self._link = home, bundle, terms, link
        self._records, self._log, self._timer = records, log, timer
        self._journal = Journal(records, bundle.device, life)
        self._budget = Budget(records, terms.daily_bytes, today, timer, life)
        orders = Orders(str(home.path), bundle.device, terms, life, transfer)
        self._child = Child(orders, link.ask, link.wake)
        self._guard = Guard(terms, timer, self._child.cpu)
        self._herald, self._ledge = Herald(link.say, timer), Ledge(home)
        self._hand: Hand | None = None
        self._errands = Errands()
        self._at_work: Hand | Command | None = None
        self._began = self._idle_since = self._measured = timer()
        self._step, self._step_since, self._told_step = Step("loading"), timer(), ""
        self._connected, self._since, self._started = False, timer(), timer()
        self._why = ""  # it is not connected
        self._remembered = True  # whether the broker has known our session all along
        self._told: deque[Told] = deque(maxlen=5)

    def _load(self, stop: threading.Event) -> None:
        """Have a worker load the app now. Until it has, the device is there, but for no task. Raises
        BadConfig that says what is wrong with the app."""
        self._child.do(Do())
        while not stop.is_set():
            self._look_at_link()
            self._ledge.leave(self._state())
            self._show("its app is being loaded")
            self._link.wait(0.2)
            how = self._child.death()
            for line in self._child.lines():
                if isinstance(line, Ready) and line.sentence:
                    self._child.end()
                    raise BadConfig(line.sentence, next=line.next)
                if isinstance(line, Done):
                    self._log("the app is loaded", app=self._terms.app)
                    self._idle_since = self._timer()
                    self._herald.forget()
                    return
            if how:
                raise BadConfig(f"{self._terms.app}: the process that loads it died: {how}")

    def run(self, stop: threading.Event, *, trial: bool = False) -> None:
        """Until `stop`, which is to come with a `wake` of the link. `trial`: load the app first; raises
        BadConfig that says what is wrong with it."""
        self._link.start()
        self._resume()
        try:
            if trial:
                self._load(stop)
            while not stop.is_set():
                self.turn()
                self._link.wait(self._rest())
        finally:
            self._leave()

    def _rest(self) -> float:
        """Seconds until it looks again by itself: what comes by the link ends them."""
        if self._at_work is not None:
            return BUSY
        return CALM if self._connected and self._hand is None else EAGER

    def turn(self) -> None:
        """Whatever there is to do now."""
        self._look_at_link()
        for command in self._link.commands():
            self._take_command(command)
        if self._link.withdrawn():
            self._leave_off("refused", "taken back: its round is over", tell=False)
        for task in self._link.tasks():
            self._take(task)
        self._hear_worker()
        self._keep_in_bounds()
        self._tell_step()
        self._begin()
        self._show()
        self._ledge.leave(self._state())

    # The link

    def _show(self, waits: str = "") -> None:
        """Say how this device fares, if it is time. `waits`: why there may be no work, beside conditions."""
        if self._link.connected and self._herald.due():
            known = own.facts(self._records)
            cached = (self._home.cache / known.model).is_file() if known.model else False
            found = self._guard.presence(self._bundle.device, known, cached)
            self._herald.show(replace(found, available=False, reason=waits) if waits else found)

    def _resume(self) -> None:
        """What was promised in an earlier life is in hand again; what was answered is told again."""
        for entry in self._journal.open():
            if entry.report is not None:
                self._link.report(entry.report)
            elif self._hand is None:
                self._hand = Hand(entry.task, self._timer(), resumed=True)
                self._log("goes on with", **_of(entry.task))
            else:  # an older promise than that of the task in hand: nobody waits for it
                self._settle(entry.task, "refused", "left off: another task came", tell=True)

    def _look_at_link(self) -> None:
        if self._link.forgotten():
            self._remembered = False
            self._log("the broker has forgotten us: what was answered last is told again")
            for entry in self._journal.open():
                if entry.report is not None:
                    self._link.report(entry.report)
            if (last := self._errands.last()) is not None:
                self._link.answer(last)
        why = "" if self._link.connected else self._link.why or self._why  # while it tries it has none
        if why != self._why and why:
            self._log("not connected", broker=self._link.broker, reason=why)
        self._why = why
        if self._link.connected != self._connected:
            self._connected, self._since = self._link.connected, self._timer()
            if self._connected:
                self._log("connected", broker=self._link.broker)
                self._child.send(Look())
        hand = self._hand
        sure = self._connected and self._remembered and self._timer() - self._since > SURE
        if hand is not None and hand.resumed and sure and not hand.task.late:
            self._leave_off("refused", "its round is over, as nobody offers it any more", tell=True)

    # Tasks

    def _take(self, task: Task) -> None:
        if task.v != PROTOCOL or task.device != self._bundle.device or self._journal.left_behind(task):
            return
        if (answer := self._journal.answer(task)) is not None:
            self._link.report(answer)
            return
        promised = self._hand is not None and same(self._hand.task, task)
        if self._hand is not None and promised:
            self._hand.resumed = False
            if not self._hand.begun:
                self._hand.task = task  # the same one, with fresh addresses
            return
        self._leave_off("refused", "left off: a newer task came", tell=True)
        self._log("task", **_of(task))
        worst = task.most + (0 if (self._home.cache / task.digest).exists() else task.size)
        reason = unable(task, self._terms, self._guard.memory) or self._budget.refusal(worst)
        if reason:
            self._settle(task, "refused", reason, tell=True)
        else:
            self._hand = Hand(task, self._timer())

    def _leave_off(self, state: Answering, reason: str, *, tell: bool) -> None:
        """The task in hand is not done any more. What it has come to is settled, if its worker has not."""
        hand, self._hand = self._hand, None
        if hand is None:
            return
        if self._at_work is hand:
            self._end_worker()
        self._settle(hand.task, state, reason, tell=tell)

    def _settle(self, task: Task, state: Answering, reason: str, *, tell: bool) -> None:
        answer = self._journal.answer(task)
        if answer is None:
            answer = report(task, state, reason)
            self._journal.settle(task, answer)
            self._note(_name(task), state, reason, **_of(task))
        if tell or answer.reason != reason:
            self._link.report(answer)

    # Commands

    def _take_command(self, command: Command) -> None:
        if command.v != PROTOCOL or command.device != self._bundle.device:
            return
        if command.what == "cancel" and self._errands.known(command) is None:
            self._cancel(command)
        elif (known := self._errands.take(command)) is not None:
            self._link.answer(known)

    def _cancel(self, command: Command) -> None:
        if self._hand is None:
            self._give(answer(command, "refused", "there is no task in hand"), "cancel")
        elif command.run and command.run != self._hand.task.run:
            reason = f"the task in hand is of run {self._hand.task.run}"
            self._give(answer(command, "refused", reason), "cancel")
        else:
            self._leave_off("refused", "cancelled by the hub's command", tell=True)
            self._give(answer(command, "done"), "cancel")

    def _give(self, given: Answer, what: str) -> None:
        self._link.answer(given)
        self._errands.answered(given)
        self._note(f"command {what}", given.state, given.reason, command=what)

    # The worker

    def _begin(self) -> None:
        """Have the worker do what comes next, if nothing is in the way. A command waits for no condition."""
        if self._at_work is not None:
            return
        while self._errands.waiting:
            command = self._errands.waiting.popleft()
            if reason := self._budget.refusal(command.size):
                self._give(answer(command, "refused", reason), command.what)
                continue
            self._start(command, Do(command=command))
            return
        hand = self._hand
        if hand is None:
            return
        waits = self._guard.waits(EAGER)
        if waits:
            failing = ", ".join(c.name for c in self._guard.conditions if not c.holds)
            if failing != hand.waits:
                hand.waits = failing
                self._link.report(report(hand.task, "progress", waits))
                self._log("waits", reason=waits, **_of(hand.task))
            return
        hand.waits = ""
        if not hand.begun:
            hand.begun, hand.attempts = True, self._journal.attempts(hand.task)
            self._link.report(report(hand.task, "accepted"))
        self._start(hand, Do(task=hand.task))

    def _start(self, work: Hand | Command, order: Do) -> None:
        self._at_work, self._began = work, self._timer()
        self._step, self._step_since, self._told_step = Step("loading"), self._timer(), ""
        self._child.do(order)

    def _hear_worker(self) -> None:
        how = self._child.death()  # before its last words are taken, so that they are all there
        for line in self._child.lines():
            self._hear(line)
        if how:
            self._bury(how)
        idle = self._at_work is None and self._timer() - self._idle_since >= self._terms.keep_warm
        if idle and self._child.pid is not None:
            self._end_worker()

    def _hear(self, line: FromWorker) -> None:
        match line:
            case Said(report):
                self._link.report(report)
                self._note(_name(report), report.state, report.reason, **_of(report))
            case Answered(given) if isinstance(self._at_work, Command):
                self._give(given, self._at_work.what)
            case Spent(count):
                self._budget.spend(count)
            case Step():
                if line.what == "paused" or line.what != self._step.what:
                    self._step_since = self._timer()
                    self._log(line.what, reason=line.reason, **self._about())
                self._step = line
            case Done():
                if self._at_work is self._hand:
                    self._hand = None
                self._at_work, self._idle_since = None, self._timer()
                self._budget.write()
            case _:
                pass

    def _bury(self, how: str) -> None:
        """The worker has died by itself: out of memory, or by a fault in what it ran."""
        work, self._at_work = self._at_work, None
        self._log("the worker died", reason=how, **self._about(work))
        if isinstance(work, Command):
            self._give(answer(work, "failed", f"the process died: {how}"), work.what)
        elif work is not None and work is self._hand:
            work.deaths += 1
            if max(work.deaths, self._journal.attempts(work.task)) >= ATTEMPTS:
                reason = f"the process died {ATTEMPTS} times at this task, the last time {how}"
                self._leave_off("failed", reason, tell=True)

    def _tell_step(self) -> None:
        """Once of each that lasts."""
        hand, what = self._hand, self._step.what
        lasts = self._timer() - self._step_since >= LASTING
        if hand is not None and self._at_work is hand and lasts and what in TOLD and what != self._told_step:
            self._told_step = what
            self._link.report(report(hand.task, "progress", what))

    def _keep_in_bounds(self) -> None:
        """Memory that no limit sees, of processes that training has started; conditions that fail."""
        work = self._at_work
        if work is None:
            return
        if self._terms.memory and self._timer() - self._measured >= BUSY:
            self._measured = self._timer()
            taken = self._child.memory()
            if taken > self._terms.memory:
                reason = f"it took {size(taken)} of memory, the limit is {size(self._terms.memory)}"
                self._break_off(work, reason)
        elif isinstance(work, Hand) and self._guard.failing() > BEARABLE:
            self._log("stopped", reason=self._guard.waits(), **_of(work.task))
            self._end_worker()
            self._journal.excuse(work.task, work.attempts)

    def _break_off(self, work: Hand | Command, reason: str) -> None:
        if isinstance(work, Command):
            self._end_worker()
            self._give(answer(work, "refused", reason), work.what)
        else:
            self._leave_off("refused", reason, tell=True)

    def _end_worker(self) -> None:
        """What it said to the end is heard, and may settle the task."""
        self._child.end()
        for line in self._child.lines():
            if not isinstance(line, Done):
                self._hear(line)
        self._at_work, self._idle_since = None, self._timer()
        self._budget.write()

    def _leave(self) -> None:
        """An unfinished task is finished in the next life, and this end is not its fault."""
        hand = self._hand if self._at_work is self._hand else None
        self._end_worker()
        if hand is not None:
            self._journal.excuse(hand.task, hand.attempts)
        self._link.say(Presence(device=self._bundle.device, online=False))
        self._link.close()
        self._ledge.leave(self._state())
        self._log("left")

    # What is shown

    def _about(self, work: Hand | Command | None = None) -> dict[str, Any]:
        """Facts of what is at work, or of `work`."""
        work = work or self._at_work
        return {"command": work.what} if isinstance(work, Command) else _of(work.task) if work else {}

    def _note(self, what: str, state: str, reason: str, **about: Any) -> None:
        if state in ("accepted", "progress"):
            return
        self._told.append(Told(self._timer(), what, state, reason))
        self._log(state, reason=reason, **about)

    def _state(self) -> State:
        pid = os.getpid()
        return State(
            pid=pid, born=born(pid), version=__version__, started=self._started, fleet=self._bundle.fleet,
            device=self._bundle.device, broker=self._link.broker, connected=self._connected,
            since=self._since, why=self._why, worker=self._child.pid, doing=tuple(self._doing()),
            conditions=tuple(self._guard.conditions), answers=tuple(self._told), used=self._budget.used,
            terms=self._terms,
        )  # fmt: skip

    def _doing(self) -> list[Doing]:
        """What is at work, what is in hand, what waits."""
        work, hand, step = self._at_work, self._hand, self._step
        found = []
        if work is not None:
            what = f"command {work.what}" if isinstance(work, Command) else _name(work.task)
            found.append(
                Doing(what, self._began, step.what, self._step_since, step.reason, step.done, step.total)
            )
        if hand is not None and hand is not work:
            found.append(Doing(_name(hand.task), hand.taken, "waiting", hand.taken, self._guard.waits()))
        return found


def _of(task: Task | Report) -> dict[str, Any]:
    return {"run": task.run, "round": task.round, "kind": task.kind}


def _name(task: Task | Report) -> str:
    return f"{task.run} round {task.round}" + ("" if task.kind == "train" else f", {task.kind}")
