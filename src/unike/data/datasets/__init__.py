"""Benchmarks as lists of edit cases; a data set is a file, and holds paths and strings only."""
