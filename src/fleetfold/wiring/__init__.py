"""Picks the adapters; nobody else does.

local    a run on one machine: files and SQLite, or memory
hub      a hub on site: the same records and files, a broker, signed addresses
device   what runs on a device: four dependencies and no more
"""
