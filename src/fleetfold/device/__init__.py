"""What runs on a device: joins a fleet, waits for tasks, does them in a process of their own.

commands  `fleetfold join`, `fleetfold agent status`      supervisor  the link, and when to work
worker    the process that trains                         conditions  when the device may
budget    bytes of a day                                  unit        for systemd
"""
