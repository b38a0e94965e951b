"""load → decide → commit(expect=version) → act.

coordinator   the loop of one step, the outbox, the effects
opening       a new run; a new round and its cohort
intake        reports and files in, through the gate, to arrivals
late          updates that came too late: credited once, or let go
folding       what has arrived, folded into the next model
stepping      a server optimizer between the mean and the next model
registry      what a round teaches about its devices
turns         who many arrivals come to at once, one after another
policy        the run's settings as functions
accountant    what privacy a run has spent
"""

from fleetfold.coordinator.coordinator import Coordinator as Coordinator
from fleetfold.coordinator.policy import Policies as Policies
