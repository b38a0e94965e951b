"""What runs on a device: joins a fleet, waits for tasks, does them in a process of their own.

commands     `fleetfold join`, `fleetfold agent`      terms   what it may use, and its home
supervisor   the waiting process: link, when to work  hand, errands, guard, presence, budget   it decides by
worker       the process that trains                  child, lines   that process as its supervisor has it
status       one screen        unit   for systemd     keys    that never leave it      own   its models
"""
