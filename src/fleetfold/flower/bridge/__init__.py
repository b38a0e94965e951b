"""Devices of ours behind an existing SuperLink: a real SuperNode for each, whose ClientApp is the device's.

nodes keeper    SuperNodes: how they are started, and who keeps them running
app lines       what a SuperNode runs for a message, and what it says to the bridge
bridge          the process in the middle
post run        the way on: exchanges of a run of ours        hub local    whose devices they are
"""
