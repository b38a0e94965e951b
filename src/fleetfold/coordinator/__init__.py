"""load → decide → commit(expect=version) → act.

coordinator   the loop of one step, the outbox, opening and ending rounds
intake        reports and files in, through the gate, to arrivals
folding       what has arrived, folded into the next model
policy        the run's settings as functions
"""

from fleetfold.coordinator.coordinator import Coordinator as Coordinator
from fleetfold.coordinator.policy import Policies as Policies
