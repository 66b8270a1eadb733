"""Names to classes: a file in a package is an entry of its registry.

There is no list to keep. An editor called ``ft`` is the class whose ``name`` is ``"ft"`` in ``unike/editors/ft.py``;
dropping the file in is all it takes, and nothing is imported before it is asked for.
"""

import difflib
import importlib
import inspect
import pkgutil
from typing import Any

from unike.errors import UnikeError


def did_you_mean(kind: str, name: str, known: list[str]) -> str:
    """The message for an unknown name, with the closest known ones.

    Args:
        kind: What is being named, for example ``"editor"``.
        name: What the user wrote.
        known: Every name that would have worked.
    """
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})"


class Registry:
    """The classes of one package, by the name of their file.

    Args:
        kind: The word for an entry in messages, for example ``"editor"``.
        package: The dotted package whose modules are the entries, for example ``"unike.editors"``.

    Example:
        >>> Registry("backbone", "unike.backbones").get("llava").name
        'llava'
    """

    def __init__(self, kind: str, package: str) -> None:
        """Remember where to look; nothing is imported."""
        self.kind = kind
        self.package = package

    def names(self) -> list[str]:
        """Every entry's name, sorted. Imports the package but none of its modules."""
        package = importlib.import_module(self.package)
        modules = (module.name for module in pkgutil.iter_modules(package.__path__))
        return sorted(name for name in modules if name != "base" and not name.startswith("_"))

    def get(self, name: str) -> Any:
        """The class called ``name``.

        Raises:
            UnikeError: No file of that name; the message names the closest one.
            TypeError: The file has no class whose ``name`` attribute is the file's name (a mistake in the file).
        """
        names = self.names()
        if name not in names:
            raise UnikeError(did_you_mean(self.kind, name, names))
        module = importlib.import_module(f"{self.package}.{name}")
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__ and getattr(value, "name", None) == name:
                return value
        raise TypeError(f"{module.__name__} has no class with `name = {name!r}`")


editors = Registry("editor", "unike.editors")
backbones = Registry("backbone", "unike.backbones")
datasets = Registry("dataset", "unike.datasets")
studies = Registry("study", "unike.studies")
