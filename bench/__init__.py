"""Benchmarks: what fleetfold costs, measured the way a person would meet it, beside what else there is.

    python -m bench overhead            seconds a round and peak memory when training costs nothing
    python -m bench overhead --json     the same, one JSON object a row
    python -m bench --help              every benchmark

Run from the repository's folder. Each row is measured in a process of its own, so that a peak of memory
is that process's own and no row warms a cache for the next. What a figure is read against (cores,
interpreter, load, durability) goes to stderr. A new benchmark is one file here and one line in `__main__`.
"""
