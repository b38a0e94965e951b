"""Drives any implementation of a device through the contract (docs/protocol.md), and says which rules hold.

rules     what is demanded, by ids that the documentation shows      scratch   a hub of its own, for an hour
program   the device: a process that may be killed                   trials    one situation after another
"""

from fleetfold.hub.check.bench import Bench
from fleetfold.hub.check.program import Program
from fleetfold.hub.check.rules import RULES, Rule, Seen
from fleetfold.hub.check.scratch import Scratch
from fleetfold.hub.check.trials import run

__all__ = ["RULES", "Bench", "Program", "Rule", "Scratch", "Seen", "run"]
