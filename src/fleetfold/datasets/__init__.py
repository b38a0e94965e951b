"""Data sets of simulated fleets: read from standard files, split into the shares of devices."""

from fleetfold.datasets.partition import by_column, dirichlet, iid, shards

__all__ = ["by_column", "dirichlet", "iid", "shards"]
