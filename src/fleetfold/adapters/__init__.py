"""Implementations of the ports. Each passes the port's contract; only `wiring` picks one."""
