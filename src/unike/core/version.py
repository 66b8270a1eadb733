"""The version, in one place for the package and for what it writes into files; and what pip calls all of it."""

__version__ = "0.2.0"

DISTRIBUTION = "unike-edit"
"""The name to install by, ``unike-edit[serve]`` with an extra; `unike` on PyPI is another project."""
