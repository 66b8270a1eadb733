"""Names to classes: a file in a package is an entry of its registry.

There is no list to keep. An editor called ``ft`` is the class whose ``name`` is ``"ft"`` in ``unike/editors/ft.py``, or
in ``unike/editors/ft/editor.py`` if it takes a folder; dropping the file in is all it takes, and nothing is imported
before it is asked for. Other distributions add entries under the entry-point group of that package's name::

    [project.entry-points."unike.editors"]
    my_method = "my_package.my_method"
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeVar

from unike.core.errors import UnikeError


def did_you_mean(kind: str, name: str, known: list[str]) -> str:
    """The message for an unknown name, with the closest known ones.

    Args:
        kind: What is being named, for example ``"editor"``.
        name: What the user wrote.
        known: Every name that would have worked.
    """
    close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})"


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that is not among those that are known, or none at all.

    Raises:
        UnikeError: With the closest one that is known.
    """
    for name in names or [""]:
        if name not in known:
            raise UnikeError(did_you_mean(kind, name, list(known)))


V = TypeVar("V")


def added(group: str, kind: type[V]) -> list[V]:
    """The values of a type that other distributions declare under an entry-point group, in the order of their names.

    Args:
        group: For example ``"unike.data.queries"``; each entry is a file.
        kind: The type; what a file has of it counts.
    """
    files = [importlib.import_module(entry.value) for entry in sorted(entry_points(group=group), key=lambda e: e.name)]
    return [value for file in files for value in vars(file).values() if isinstance(value, kind)]


class Registry:
    """The classes of one package, by the name of their file or folder.

    Args:
        kind: The word for an entry in messages, for example ``"editor"``; of an entry that is a folder, the file in it
            that has the class.
        package: The dotted package whose modules are the entries, for example ``"unike.editors"``. Those it names in
            ``SHARED`` are none, nor those that begin with an underscore.

    Example:
        >>> Registry("backbone", "unike.backbones.families").get("llava").name
        'llava'
    """

    def __init__(self, kind: str, package: str) -> None:
        """Remember where to look; nothing is imported."""
        self.kind = kind
        self.package = package

    def names(self) -> list[str]:
        """Every entry's name, sorted. Imports the package but none of its modules."""
        return sorted(self._homes())

    def get(self, name: str) -> Any:
        """The class called ``name``.

        Raises:
            UnikeError: No file of that name; the message names the closest one.
            TypeError: The file has no class whose ``name`` attribute is the file's name (a mistake in the file).
        """
        module = self.module(name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__ and getattr(value, "name", None) == name:
                return value
        raise TypeError(f"{module.__name__} has no class with `name = {name!r}`")

    def module(self, name: str) -> ModuleType:
        """The file of an entry, imported.

        Raises:
            UnikeError: As `get`.
        """
        home = f"{self.package}.{name}"
        if name not in self._own():  # looking through every distribution takes longer than reading an edit
            homes = self._homes()
            if not isinstance(name, str) or name not in homes:
                raise UnikeError(did_you_mean(self.kind, name, sorted(homes)))
            home = homes[name]
        module = importlib.import_module(home)
        return importlib.import_module(f"{home}.{self.kind}") if hasattr(module, "__path__") else module

    def _homes(self) -> dict[str, str]:
        """Name to dotted module; what ships with the package wins over what others add."""
        others = {entry.name: entry.value for entry in entry_points(group=self.package)}
        return others | {name: f"{self.package}.{name}" for name in self._own()}

    def _own(self) -> Iterator[str]:
        package = importlib.import_module(self.package)
        shared = getattr(package, "SHARED", frozenset({"base"}))
        for module in pkgutil.iter_modules(package.__path__):
            if module.name not in shared and not module.name.startswith("_"):
                yield module.name


editors = Registry("editor", "unike.editors")
backbones = Registry("backbone", "unike.backbones.families")
datasets = Registry("dataset", "unike.data.datasets")
protocols = Registry("protocol", "unike.bench.protocols")
studies = Registry("study", "unike.studies")
commands = Registry("command", "unike.cli")
