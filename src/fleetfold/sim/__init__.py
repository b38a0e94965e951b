"""A fleet under a virtual clock: the real coordinator and agents, on memory, a thousand rounds in seconds.

profile   what the fleet is like: how fast, how far, how reliable, by classes of devices
clock     the virtual time, and what happens when
run       the devices' doors wrapped with that time, and the loop
"""
