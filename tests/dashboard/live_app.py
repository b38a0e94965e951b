"""An app whose devices take their time: one of them is slow, and one sends what is no update."""

import time

import numpy as np

from fleetfold import Evaluated, Trained, Work

SLOW, WRONG = 7, 3
"""Indexes of devices."""


class Trainer:
    def init(self, seed: int) -> dict[str, np.ndarray]:
        return {"w": np.random.default_rng(seed).normal(size=1000).astype(np.float32)}

    def train(self, model: dict[str, np.ndarray], work: Work) -> Trained:
        index, chance = work.device.index, np.random.default_rng(work.seed)
        pace = float(work.settings.get("pace", 0.02))
        time.sleep(pace * (10 if index == SLOW else 0.5 + chance.random()))
        left = 0.75**work.round * (1 + 0.4 * (index % 5)) + 0.05 * chance.random()
        tensors = {"w": (model["w"] * np.float32(0.9)).astype(np.float32)}
        if index == WRONG and work.round % 2 == 0:
            tensors["w"] = np.zeros(7, np.float32)
        return Trained(
            tensors=tensors, examples=20 + 3 * index, metrics={"loss": left, "accuracy": 1 - left / 3}
        )

    def evaluate(self, model: dict[str, np.ndarray], work: Work) -> Evaluated:
        chance = np.random.default_rng(work.seed)
        left = 0.8**work.round * (1 + 0.4 * (work.device.index % 5)) + 0.05 * chance.random()
        return Evaluated(examples=10, metrics={"loss": left, "accuracy": 1 - left / 3})


trainer = Trainer()
