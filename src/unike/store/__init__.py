"""Where edits live in service: what is in force in which set, since when, why and by whom; and all that was before.

`Store` keeps them, `admission` lets them in. A database holds facts, sets and the log, `blobs` tensors and pictures.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unike.store.store import Store
    from unike.store.values import Canary, Entry, Stored

__all__ = ["Canary", "Entry", "Store", "Stored"]


def __getattr__(name: str) -> Any:
    """Read on first use: SQLAlchemy is an extra.

    Raises:
        UnikeError: It is not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unike.core.extras import needing

    with needing("store"):
        from unike.store import store, values

    return getattr(store if name == "Store" else values, name)
