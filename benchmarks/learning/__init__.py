"""Long runs whose results are committed: one JSON file a study, cell and seed, and only missing ones are run.

A *study* is a module here. It has ``SEEDS``, ``CELLS`` (a name for each cell, and the function of a seed that runs all
of it in this process and returns plain numbers), ``table`` (Markdown lines of all results) and ``draw`` (figures).
"""
