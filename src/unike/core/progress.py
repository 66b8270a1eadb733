"""How anything that takes a while says how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is; it may end before all of it is."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
