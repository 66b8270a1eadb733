"""A whole table of the paper by one command: planned as steps, run, resumed, and shown beside the published figures.

A step is one command of `unike` (prepare, train, bench, study or report) and runs through the same functions. The room
measures nothing by itself: what enters is how steps follow from a table, how they are gone through, and what the paper
has published.
"""
