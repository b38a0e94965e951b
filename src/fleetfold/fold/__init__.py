"""Aggregation as a fold over files: for each chunk, for each update, in a fixed order.

tensors   the file: its header, its layout, views without copies
gate      what an update must be before it counts
fold      the weighted mean or the user's own, in memory that never grows
robust    folds that a minority of arbitrary updates cannot carry off
"""
