"""What runs on a device: joins a fleet, waits for tasks, does them in a process of their own.

commands  `fleetfold join`, `fleetfold agent`       supervisor  the waiting process: the link, and when to work
terms     what it may use, its home       hand, errands, guard, presence, budget  it decides by
worker    the process that trains                   child, lines  that process as its supervisor has it
status    one screen      unit  for systemd         keys  that never leave the device      own  its models
"""
