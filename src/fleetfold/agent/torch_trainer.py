"""A Trainer for PyTorch from four plain functions.

    model()            → torch.nn.Module
    data(device)       → what fit and evaluate are given: a DataLoader, tensors, anything
    fit(model, data, work)      trains the module in place; returns examples, or a dict of metrics
    evaluate(model, data)       → a dict of metrics      (optional; `test()` gives it a central test set)

Parameters and floating-point buffers (batch norm's running mean) are averaged; integer ones are taken from
the heaviest update. With a GPU the module is moved there, and data that are tensors, tuples of them or a
TensorDataset; what else data() returns, fit moves. App setting `proximal`: see agent/proximal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetfold.agent.proximal import proximal, strength
from fleetfold.agent.trainer import Device, Evaluated, Trained, Work
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import Tensors

if TYPE_CHECKING:
    import torch

Fit = Callable[[Any, Any, Work], int | Mapping[str, float] | None]
Score = Callable[[Any, Any], Mapping[str, float]]


class TorchTrainer:
    """`examples` of an update: what fit returns as a number or under "examples", else len(data), of the
    data set where data is a DataLoader. `accelerator`: "cuda", "mps", "cpu"; None takes the first there."""

    def __init__(
        self, model: Callable[[], torch.nn.Module], data: Callable[[Device], Any], fit: Fit,
        evaluate: Score | None = None, test: Callable[[], Any] | None = None,
        accelerator: str | None = None,
    ) -> None:  # fmt: skip
        self._make, self._load, self._fit, self._score, self._test_set = model, data, fit, evaluate, test
        self._accelerator = accelerator
        self._module: torch.nn.Module | None = None
        self._data: dict[str, Any] = {}
        self._held_out: Any = None

    @property
    def evaluates(self) -> bool:
        return self._score is not None

    @property
    def tests(self) -> bool:
        return self._score is not None and self._test_set is not None

    def check(self, settings: Mapping[str, Any]) -> None:
        strength(settings)

    def init(self, seed: int) -> Tensors:
        import torch

        torch.manual_seed(seed)
        self._module = None
        return _tensors(self._warm())

    def train(self, model: Tensors, work: Work) -> Trained:
        import torch

        module, data = self._given(model), self._data_of(work.device)
        module.train()
        torch.manual_seed(work.seed)
        with proximal(module, work.proximal):
            result = self._fit(module, data, work)
        metrics = dict(result) if isinstance(result, Mapping) else {}
        count = result if isinstance(result, int) else metrics.pop("examples", None)
        examples = int(count) if count is not None else _length(data)
        return Trained(tensors=_tensors(module), examples=examples, metrics=metrics)

    def evaluate(self, model: Tensors, work: Work) -> Evaluated | None:
        if self._score is None:
            return None
        return self._scored(model, self._data_of(work.device))

    def test(self, model: Tensors) -> Mapping[str, float]:
        if self._test_set is None:
            return {}
        if self._held_out is None:
            self._held_out = self._beside(self._test_set())
        return self._scored(model, self._held_out).metrics

    def _scored(self, model: Tensors, data: Any) -> Evaluated:
        import torch

        assert self._score is not None
        module = self._given(model)
        module.eval()
        with torch.no_grad():
            metrics = dict(self._score(module, data))
        examples = metrics.pop("examples", None)
        return Evaluated(examples=int(examples) if examples is not None else _length(data), metrics=metrics)

    def _warm(self) -> torch.nn.Module:
        if self._module is None:
            import torch

            self._module = self._make().to(self._accelerator or _first_accelerator(torch))
        return self._module

    def _given(self, model: Tensors) -> torch.nn.Module:
        import torch

        module = self._warm()
        state = {name: torch.from_numpy(np.array(array)) for name, array in model.items()}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise BadConfig(f"the model file does not fit the app's model(): {reason}") from None
        return module

    def _beside(self, data: Any) -> Any:
        """The data where the module is."""
        parameter = next(self._warm().parameters(), None)
        return data if parameter is None else _moved(data, parameter.device)

    def _data_of(self, device: Device) -> Any:
        if device.name not in self._data:
            self._data[device.name] = self._beside(self._load(device))
        return self._data[device.name]


def _moved(data: Any, where: torch.device) -> Any:
    import torch
    from torch.utils.data import TensorDataset

    if isinstance(data, torch.Tensor):
        return data.to(where)
    if isinstance(data, TensorDataset):
        return TensorDataset(*(tensor.to(where) for tensor in data.tensors))
    if type(data) in (tuple, list):
        return type(data)(_moved(part, where) for part in data)
    return data


def _tensors(module: torch.nn.Module) -> Tensors:
    state = module.state_dict()
    try:
        return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}
    except TypeError as error:
        raise BadConfig(
            f"the model has a tensor that cannot be stored: {error}",
            next="use float32 or float16 parameters: model().float()",
        ) from None


def _first_accelerator(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _length(data: Any) -> int:
    if (dataset := getattr(data, "dataset", None)) is not None:
        return len(dataset)
    first = data[0] if isinstance(data, tuple) and data else data
    try:
        return len(first)
    except TypeError:
        raise BadConfig(
            "how many examples were trained on is not known",
            next="let fit return the number, or a dict with 'examples'",
        ) from None
