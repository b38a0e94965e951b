"""A fleet to look at: of its devices one is slow, and one now and then sends what is no update.

It trains nothing. What it says of itself falls as a loss would, so that there is something to see at once.
"""

import time

import numpy as np

from fleetfold import Evaluated, Trained, Work

SLOW, WRONG = 7, 3
"""Indexes of devices."""


class OddOnes:
    def init(self, seed: int) -> dict[str, np.ndarray]:
        return {"w": np.random.default_rng(seed).normal(size=1000).astype(np.float32)}

    def train(self, model: dict[str, np.ndarray], work: Work) -> Trained:
        index, chance = work.device.index, np.random.default_rng(work.seed)
        time.sleep(work.settings.get("pace", 0.02) * (10 if index == SLOW else 0.5 + chance.random()))
        loss = self.loss(work, 0.75)
        wrong = index == WRONG and work.round % 2 == 0
        tensors = {"w": np.zeros(7, np.float32) if wrong else model["w"] * np.float32(0.9)}
        return Trained(
            tensors=tensors, examples=20 + 3 * index, metrics={"loss": loss, "accuracy": 1 - loss / 3}
        )

    def evaluate(self, model: dict[str, np.ndarray], work: Work) -> Evaluated:
        loss = self.loss(work, 0.8)
        return Evaluated(examples=10, metrics={"loss": loss, "accuracy": 1 - loss / 3})

    def loss(self, work: Work, fall: float) -> float:
        chance = np.random.default_rng(work.seed)
        return fall**work.round * (1 + 0.4 * (work.device.index % 5)) + 0.05 * chance.random()


trainer = OddOnes()
