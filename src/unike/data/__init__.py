"""What an edit is about and what tests it, as values: queries, probes, cases, the data sets that hold them.

Paths and strings only, never pixels or tensors; also how two answers are compared, and what counts as a leak.
"""
