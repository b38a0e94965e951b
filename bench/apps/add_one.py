"""A 784-128-64-10 perceptron, 109,386 parameters in six tensors, whose training only adds one."""

from itertools import pairwise

from fleetfold.sim.trainer import AddOne

LAYERS = (784, 128, 64, 10)

SHAPES: dict[str, tuple[int, ...]] = {}
for number, (inputs, outputs) in enumerate(pairwise(LAYERS)):
    SHAPES[f"{number}.weight"] = (outputs, inputs)
    SHAPES[f"{number}.bias"] = (outputs,)

trainer = AddOne(SHAPES)
