"""Parts that need a library which is not installed with the rest."""

from collections.abc import Iterator
from contextlib import contextmanager

from unike.core.errors import UnikeError
from unike.core.version import DISTRIBUTION


def bring(extra: str) -> str:
    """The command that installs what an extra brings, in a checkout too.

    Args:
        extra: Its name in the project's metadata.
    """
    return f'pip install "{DISTRIBUTION}[{extra}]"'


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import what an extra brings within the block.

    Args:
        extra: Its name in the project's metadata.

    Raises:
        UnikeError: A library is not installed; names it and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "unike":
            raise
        raise UnikeError(f"{error.name.split('.')[0]} is not installed; bring it with: {bring(extra)}") from None
