"""FedProx's term in local training: what it adds to which gradients, how often, and when it is refused."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from fleetfold import Device, TorchTrainer, Work, proximal
from fleetfold.agent.app import App, check
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import Tensors

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.needs_torch

MU, RATE = 0.3, 0.1
Net = Any
Gradients = list[Any]


def net(seed: int = 0) -> Net:
    """Three parameters that train, one that the loss does not use, one that is frozen, and buffers."""
    torch.manual_seed(seed)
    made = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2)).double()
    made[0].bias.requires_grad_(False)
    made.unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    return made


def batches(count: int, seed: int = 1) -> list[tuple[Any, Any]]:
    chance = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 4, generator=chance).double(), torch.randn(8, 2, generator=chance).double())
        for _ in range(count)
    ]


def loss_of(module: Net, batch: tuple[Any, Any]) -> Any:
    used = torch.nn.Sequential(*list(module.children()))
    return ((used(batch[0]) - batch[1]) ** 2).mean()


def term(module: Net, start: Net, mu: float = MU) -> Any:
    """(mu / 2) ‖w − w0‖² as the paper writes it, for autograd."""
    pairs = zip(module.parameters(), start.parameters(), strict=True)
    return mu / 2 * sum(((w - w0.detach()) ** 2).sum() for w, w0 in pairs if w.requires_grad)


def close(one: Net, other: Net) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in pairs)


Train = Callable[[Net, Callable[[tuple[Any, Any]], Any]], None]
"""Trains a module, given the loss of a batch."""


def same_as_in_the_loss(train: Train, mu: float = MU) -> bool:
    """Whether training within `proximal` is training with the term in the loss."""
    ours, theirs, start = net(), net(), net()
    with proximal(ours, mu):
        train(ours, lambda batch: loss_of(ours, batch))
    train(theirs, lambda batch: loss_of(theirs, batch) + term(theirs, start, mu))
    assert not close(theirs, start), "nothing was trained"
    return close(ours, theirs)


@contextmanager
def seen_by(optimizer: Any) -> Iterator[Gradients]:
    """The gradients of its parameters as its newest step has them."""
    found: Gradients = []

    def look(*_: Any) -> None:
        parameters = [w for group in optimizer.param_groups for w in group["params"]]
        found[:] = [None if w.grad is None else w.grad.clone() for w in parameters]

    hook = optimizer.register_step_pre_hook(look)
    yield found
    hook.remove()


# The gradient


def test_the_gradient_of_a_step_is_that_of_the_loss_and_the_term_by_autograd() -> None:
    module, start = net(), net()
    optimizer = torch.optim.SGD(module.parameters(), RATE)
    with proximal(module, MU), seen_by(optimizer) as gradients:
        for batch in batches(4):
            reference = copy.deepcopy(module)
            optimizer.zero_grad()
            loss_of(module, batch).backward()
            optimizer.step()
            reference.zero_grad()
            (loss_of(reference, batch) + term(reference, start)).backward()
            for ours, w in zip(gradients, reference.parameters(), strict=True):
                assert (ours is None) == (w.grad is None) == (not w.requires_grad)
                assert ours is None or torch.allclose(ours, w.grad, rtol=1e-12, atol=1e-14)


def sgd(module: Net, loss: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.SGD(module.parameters(), RATE, momentum=0.9, weight_decay=0.01)
    for batch in batches(6):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


def adam(module: Net, loss: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for batch in batches(6):
        optimizer.zero_grad(set_to_none=False)
        loss(batch).backward()
        optimizer.step()


def lbfgs(module: Net, loss: Callable[[Any], Any]) -> None:
    """Its steps make the gradients themselves, many times over, and look at the loss."""
    trained = [w for w in module.parameters() if w.requires_grad]
    optimizer = torch.optim.LBFGS(trained, max_iter=5, line_search_fn="strong_wolfe")
    for batch in batches(2):

        def closure(batch: Any = batch) -> Any:
            optimizer.zero_grad()
            found = loss(batch)
            found.backward()
            return found

        optimizer.step(closure)


def never_zeroed(module: Net, loss: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for batch in batches(4):
        loss(batch).backward()
        optimizer.step()


def two_optimizers(module: Net, loss: Callable[[Any], Any]) -> None:
    first = torch.optim.SGD(module[0].parameters(), RATE)
    rest = torch.optim.Adam([*module[1].parameters(), *module[2].parameters()], 0.01)
    for batch in batches(4):
        for optimizer in (first, rest):
            module.zero_grad()
            loss(batch).backward()
            optimizer.step()


class Outer(torch.optim.Optimizer):
    """An optimizer around another one, as some schemes of averaging and of sharpness are."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.param_groups, {})
        self._inner = inner

    def step(self, closure: Any = None) -> Any:
        return self._inner.step(closure)


def wrapped(module: Net, loss: Callable[[Any], Any]) -> None:
    optimizer = Outer(torch.optim.SGD(module.parameters(), RATE))
    for batch in batches(4):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


def wrapped_closure(module: Net, loss: Callable[[Any], Any]) -> None:
    optimizer = Outer(torch.optim.SGD(module.parameters(), RATE))
    for batch in batches(4):

        def closure(batch: Any = batch) -> None:
            optimizer.zero_grad()
            loss(batch).backward()

        optimizer.step(closure=closure)


def unfrozen_on_the_way(module: Net, loss: Callable[[Any], Any]) -> None:
    sgd(module, loss)
    module[0].bias.requires_grad_(True)
    sgd(module, loss)


@pytest.mark.parametrize(
    "train",
    [sgd, adam, lbfgs, never_zeroed, two_optimizers, wrapped, wrapped_closure, unfrozen_on_the_way],
)
def test_however_it_is_trained_it_is_as_if_the_term_stood_in_the_loss(train: Train) -> None:
    assert same_as_in_the_loss(train)


def test_gradients_accumulated_over_micro_batches_get_the_term_once() -> None:
    ours, theirs, start = net(), net(), net()
    for module, within in ((ours, True), (theirs, False)):
        optimizer = torch.optim.SGD(module.parameters(), RATE)
        with proximal(module, MU if within else 0):
            for _ in range(3):
                optimizer.zero_grad()
                for batch in batches(4):
                    (loss_of(module, batch) / 4).backward()
                if not within:
                    term(module, start).backward()
                optimizer.step()
    assert close(ours, theirs)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_loss_does_not_scale_the_term_away(fused: bool) -> None:
    def scaled(module: Net, loss: Callable[[Any], Any]) -> None:
        optimizer = torch.optim.SGD([w for w in module.parameters() if w.requires_grad], RATE, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for batch in batches(4):
            optimizer.zero_grad()
            scaler.scale(loss(batch)).backward()
            scaler.step(optimizer)
            scaler.update()

    assert same_as_in_the_loss(scaled)


def test_frozen_parameters_and_other_modules_are_left_alone() -> None:
    module, other = net(), net(seed=5)
    frozen = module[0].bias.clone()
    joint = torch.optim.SGD([*module.parameters(), *other.parameters()], RATE)
    with proximal(module, MU):
        for batch in batches(3):
            joint.zero_grad()
            (loss_of(module, batch) + loss_of(other, batch)).backward()
            joint.step()
    alone = net(seed=5)
    optimizer = torch.optim.SGD(alone.parameters(), RATE)
    for batch in batches(3):
        optimizer.zero_grad()
        loss_of(alone, batch).backward()
        optimizer.step()
    assert close(other, alone)
    assert torch.equal(module[0].bias, frozen)
    assert module[0].bias.grad is None


def test_afterwards_nothing_is_left_behind_even_when_training_breaks() -> None:
    module, plain = net(), net()
    with pytest.raises(ZeroDivisionError), proximal(module, MU):
        raise ZeroDivisionError
    with proximal(net(seed=3), 0):
        sgd(module, lambda batch: loss_of(module, batch))
    sgd(plain, lambda batch: loss_of(plain, batch))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))


def test_training_that_steps_no_optimizer_is_not_silently_without_the_term() -> None:
    module = net()
    with (
        pytest.raises(BadConfig, match=r"proximal = 0\.3 had no effect"),
        proximal(module, MU),
        torch.no_grad(),
    ):
        module.unused += 1
    with proximal(module, MU):
        pass  # nothing was trained: nothing is missed


# The trainer's setting


def trainer(fit: Any = None) -> TorchTrainer:
    """A small classifier with dropout, so that chance is drawn too."""

    def model() -> Net:
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 2))

    def data(device: Device) -> tuple[Any, Any]:
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(device.index))
        return x, (x.sum(1) > 0).long()

    return TorchTrainer(model, data, fit or train_well, accelerator="cpu")


def train_well(model: Net, data: tuple[Any, Any], work: Work) -> None:
    x, y = data
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    for batch in torch.randperm(len(y)).repeat(5).split(16):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def trained(given: Tensors | None = None, fit: Any = None, **settings: Any) -> tuple[Tensors, Tensors]:
    """The first model, and what became of it."""
    one = trainer(fit)
    first = given or one.init(0)
    work = Work(device=Device(name="d0"), round=1, seed=7, settings=settings)
    return first, one.train(first, work).tensors


def same(one: Tensors, other: Tensors) -> bool:
    return list(one) == list(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_proximal_0_trains_what_was_trained_without_the_setting_to_the_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, off = trained(proximal=0)
    _, unsaid = trained()

    @contextmanager
    def absent(module: Net, mu: float) -> Iterator[None]:
        yield

    monkeypatch.setattr("fleetfold.agent.torch_trainer.proximal", absent)
    _, before = trained()
    assert same(off, unsaid)
    assert same(off, before)
    assert not same(off, first)


def test_the_setting_is_the_term_in_the_loss_of_a_fit_that_does_not_know_of_it() -> None:
    def in_the_loss(model: Net, data: tuple[Any, Any], work: Work) -> None:
        start, (x, y) = copy.deepcopy(model), data
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
        for batch in torch.randperm(len(y)).repeat(5).split(16):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            (loss + term(model, start, 0.5)).backward()
            optimizer.step()

    _, ours = trained(proximal=0.5)
    _, theirs = trained(fit=in_the_loss)
    assert all(np.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6) for name in ours)


def test_the_same_seed_trains_the_same_bytes_with_the_term_too() -> None:
    assert same(trained(proximal=0.5)[1], trained(proximal=0.5)[1])


def test_the_larger_proximal_is_the_nearer_the_trained_model_stays() -> None:
    def distance(mu: float) -> float:
        first, after = trained(proximal=mu)
        return sum(float(((after[name] - first[name]) ** 2).sum()) for name in first) ** 0.5

    distances = [distance(mu) for mu in (0, 0.1, 1, 10)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 4


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", "strong", True, None, [1]])
def test_what_is_no_number_from_0_up_is_refused_with_setting_and_value(value: Any) -> None:
    said = f"proximal = {value!r} is not a number from 0 up"
    work = Work(device=Device(name="d0"), round=1, seed=7, settings={"proximal": value})
    one = trainer()
    for refuse in (
        lambda: check(App("a", "app.py", "."), one, work.settings),
        lambda: one.train(one.init(0), work),
        lambda: work.proximal,
    ):
        with pytest.raises(BadConfig) as refused:
            refuse()
        assert refused.value.sentence == said


def test_a_loop_of_its_own_reads_the_setting_from_its_work() -> None:
    work = Work(device=Device(name="d0"), round=1, seed=7, settings={"proximal": 1})
    assert (work.proximal, type(work.proximal)) == (1.0, float)
    assert Work(device=Device(name="d0"), round=1, seed=7).proximal == 0
