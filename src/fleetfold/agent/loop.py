"""The agent: takes a task, trains, delivers the update, reports. One device, one piece of work at a time.

    task ─▶ promise ─▶ fetch ─▶ train ─▶ deliver ─▶ settle ─▶ report
            journal                      safe here   journal

After a death at any point `resume` goes on: a finished update is not trained again, an unfinished one
is, from the same seed. Every answer may be told twice.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetfold.agent.app import App, can, numbers
from fleetfold.agent.journal import ATTEMPTS, Journal
from fleetfold.agent.trainer import Answerer, Device, Evaluated, Model, Trainer, Work
from fleetfold.errors import BadConfig, BadUpdate, Unavailable, blame
from fleetfold.fold import codecs
from fleetfold.fold.tensors import Header, Tensors, header_in, views, write
from fleetfold.fold.wire import carried, mask
from fleetfold.messages import (
    PROTOCOL,
    Evaluation,
    Form,
    Metrics,
    Report,
    Task,
    Timings,
    UpdateHeader,
    encode,
)
from fleetfold.ports import Link, Transfer

_T = TypeVar("_T")
ROUNDING = 1
"""Beside the task's seed: the codec's chance is another than the training's."""


class Models:
    """The newest model that was fetched, shared by the devices of one process."""

    def __init__(self) -> None:
        self._digest, self._model = "", Model(Tensors(), Header((), 0, 0))

    def get(self, digest: str, fetch: Callable[[], bytes | memoryview]) -> "Model":
        """The model with that sha256. Raises Unavailable if what `fetch` brings is another."""
        if digest != self._digest:
            data = fetch()
            found = hashlib.sha256(data).hexdigest()
            if found != digest:
                raise Unavailable(f"the model fetched has sha256 {found[:12]}…, the task says {digest[:12]}…")
            header = header_in(data)
            self._model, self._digest = Model(views(data, header), header), digest
        return self._model


class Agent:
    """`timer`: seconds of a clock that only goes forward. `models` may be shared with other agents."""

    def __init__(
        self, device: Device, trainer: Trainer, journal: Journal, transfer: Transfer, link: Link,
        timer: Callable[[], float], *, app: App | None = None, models: Models | None = None,
    ) -> None:  # fmt: skip
        self._device, self._trainer, self._journal = device, trainer, journal
        self._transfer, self._link, self._timer, self._app = transfer, link, timer, app
        self._models = models or Models()

    def resume(self) -> None:
        """After a restart: finish what was promised, and tell again what was answered last."""
        for entry in self._journal.open():
            if entry.report is None:
                self.handle(entry.task)
            else:
                self._link.report(entry.report)

    def handle(self, task: Task) -> None:
        """Do the task, unless it was done: then only tell so again."""
        if task.v != PROTOCOL or task.device != self._device.name:
            return
        if self._journal.left_behind(task):
            return
        report = self._journal.answer(task)
        if report is None:
            report = self._answer(task)
            self._journal.settle(task, report)
        self._link.report(report)

    def score(self, model: bytes | memoryview, settings: Mapping[str, Any]) -> Evaluation | None:
        """That model, on the device's own data, outside of any round. None: nothing to score it on."""
        work = Work(device=self._device, round=0, seed=0, settings=settings)
        return self._evaluate(views(model, header_in(model)), work)

    def _answer(self, task: Task) -> Report:
        answer = Report(run=task.run, round=task.round, kind=task.kind, device=task.device, state="delivered")
        attempts = self._journal.attempts(task)
        try:
            if self._transfer.delivered(task):
                return answer
            if attempts >= ATTEMPTS:
                reason = f"the process died {ATTEMPTS} times at this task"
                return msgspec.structs.replace(answer, state="failed", reason=reason)
            self._journal.promise(task)
            update, took = self._work(task)
            upload, _ = self._timed(lambda: self._transfer.deliver(task, update))
            return msgspec.structs.replace(answer, took=msgspec.structs.replace(took, upload=upload))
        except (BadConfig, BadUpdate) as error:
            return msgspec.structs.replace(answer, state="refused", reason=error.sentence)
        except MemoryError:
            return msgspec.structs.replace(answer, state="refused", reason="not enough memory")
        except Unavailable:
            self._journal.excuse(task, attempts)  # whoever runs the agent waits, and lets it resume
            raise
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything; the fleet goes on
            reason = blame(error, self._app.root if self._app else "")
            return msgspec.structs.replace(answer, state="failed", reason=reason)

    def _work(self, task: Task) -> tuple[bytes, Timings]:
        """The update file, and how long its making took."""
        work = Work(device=self._device, round=task.round, seed=task.seed, settings=task.settings)
        fetch = lambda: self._transfer.fetch(task)  # noqa: E731
        download, model = self._timed(lambda: self._models.get(task.digest, fetch))
        if task.kind == "message":
            return self._answered(task, model, download)
        evaluation: Evaluation | None = None
        start = self._timer()
        if task.evaluate or task.kind == "evaluate":
            evaluation = self._evaluate(model.tensors, work)
        if task.kind == "evaluate":
            if evaluation is None:
                raise BadConfig("the app has no evaluate(), or this device has nothing to evaluate on")
            examples, metrics, extra = evaluation.examples, Metrics(), None
            form, tensors = Form(), Tensors()
        else:
            trained = self._trainer.train(model.tensors, work)
            examples, extra, metrics = trained.examples, trained.extra, numbers(trained.metrics)
            form, tensors = self._encoded(task, trained.tensors, model)
            if examples <= 0:
                raise BadUpdate("trained on no examples")
        took = Timings(download=download, compute=self._timer() - start)
        header = UpdateHeader(
            run=task.run, round=task.round, kind=task.kind, device=task.device, examples=examples,
            metrics=metrics, evaluation=evaluation, took=took, form=form, extra=extra,
        )  # fmt: skip
        return write(tensors, encode(header)), took

    def _answered(self, task: Task, content: Model, download: float) -> tuple[bytes, Timings]:
        """The answer to a message, as an update file; the state that its app keeps is kept with it."""
        if task.message is None or not can(self._trainer, "answer"):
            raise BadConfig("this device's app answers no messages", next="fleetfold join --app FOLDER")
        kept = self._journal.kept(task) or b""
        answerer = cast(Answerer, self._trainer)
        compute, answer = self._timed(lambda: answerer.answer(task, content, self._device, kept))
        if answer.state is not None:
            self._journal.keep(task, answer.state)
        took = Timings(download=download, compute=compute)
        header = UpdateHeader(
            run=task.run, round=task.round, kind=task.kind, device=task.device, examples=answer.examples,
            metrics=numbers(answer.metrics), took=took, message=answer.message,
        )  # fmt: skip
        return write(answer.tensors, encode(header)), took

    def _encoded(self, task: Task, tensors: Tensors, model: Model) -> tuple[Form, Tensors]:
        """The tensors that the task asks for, as it asks for them; what that leaves behind is kept."""
        if unknown := sorted(tensors.keys() - model.tensors.keys()):
            raise BadUpdate(f"tensor {unknown[0][:80]!r} is not in the model")
        form = task.form
        if task.partial:
            names = {t.name for t in carried(model.header, form.carried)} & tensors.keys()
            form = msgspec.structs.replace(form, carried=mask(model.header, names))
        encoded = codecs.encode(
            tensors, model.tensors, model.header, form, [task.seed, ROUNDING], sent=task.sent,
            residual=self._residual(task) if task.feedback else None, feedback=task.feedback,
        )  # fmt: skip
        if len(encoded.residual):
            self._journal.keep(task, encoded.residual.tobytes())
        return form, encoded.tensors

    def _residual(self, task: Task) -> NDArray[np.float32] | None:
        """What the codec left behind last."""
        kept = self._journal.kept(task)
        return None if kept is None else np.frombuffer(kept, np.float32)

    def _evaluate(self, model: Tensors, work: Work) -> Evaluation | None:
        if not can(self._trainer, "evaluate"):
            return None
        found: Evaluated | None = self._trainer.evaluate(model, work)  # type: ignore[attr-defined]
        if found is None or found.examples <= 0:
            return None
        return Evaluation(examples=found.examples, metrics=numbers(found.metrics))

    def _timed(self, work: Callable[[], _T]) -> tuple[float, _T]:
        start = self._timer()
        result = work()
        return self._timer() - start, result
