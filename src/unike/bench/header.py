"""The header of a run's results: what was to be measured, and what the numbers depend on beside that.

==============  ============================================================================================
key             what it holds
==============  ============================================================================================
of `RunSpec`    every field under its own name, resolved: the dtype, device and longest answer that were used
others          the fields of `Header` under theirs
==============  ============================================================================================
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import Self, TypedDict

from unike.bench.spec import Role, RunSpec
from unike.core.options import declared
from unike.core.schema import what_is_wrong
from unike.data.matching import NORMALISATION

LATER = {"template"}
"""What earlier versions did not write, for there was nothing to choose."""


@dataclass(frozen=True)
class Counts:
    """What became of a data set's cases.

    Args:
        read: Cases that were looked at.
        skipped: Bad ones, records without a case included.
        right: That the model gets right by itself.
        edited: That are edited.
    """

    read: Annotated[int, Field(ge=0)] = 0
    skipped: Annotated[int, Field(ge=0)] = 0
    right: Annotated[int, Field(ge=0)] = 0
    edited: Annotated[int, Field(ge=0)] = 0


class Git(TypedDict):
    """The commit of a checkout, and whether there were changes."""

    commit: str
    dirty: bool


@dataclass(frozen=True, kw_only=True)
class Header:
    """Everything the numbers of a run depend on.

    Args:
        spec: What was measured; nothing in it is left open.
        config: All settings of the method.
        fingerprint: Of the model.
        cases: Hash of the cases.
        counts: What became of them.
        learned: Hash of what the method learned before its first edit, or None.
        anchors: Hash of the questions that an edit was to leave alone, or None.
        unike: The version.
        git: The commit, and whether there were changes; None outside of a checkout.
        threads: Of torch, in one process.
        normalisation: Version of `unike.data.matching.normalise`, on which strict scores depend.
    """

    spec: RunSpec
    config: Annotated[Mapping[str, Any], Role.METHOD]
    fingerprint: Annotated[str, Role.MODEL]
    cases: Annotated[str, Role.CONDITION]
    counts: Counts
    learned: Annotated[str | None, Role.METHOD] = None
    anchors: str | None = None
    unike: str = "unknown"
    git: Git | None = None
    threads: int | None = None
    normalisation: Annotated[int, Role.CONDITION] = NORMALISATION

    def values(self, *roles: Role) -> dict[str, Any]:
        """The values of the fields that have one of these roles, by name."""
        found = {}
        for holder in (self.spec, self):
            for name, declaration in declared(type(holder)).items():
                if any(role in declaration.notes for role in roles):
                    found[name] = getattr(holder, name)
        return found

    def to_json(self) -> dict[str, Any]:
        """As the first line of the results has it, all of one level."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "spec"}
        first = {key: own.pop(key) for key in ("unike", "git", "fingerprint")}
        entry = first | asdict(self.spec) | own | {"counts": asdict(self.counts)}
        plain: dict[str, Any] = json.loads(json.dumps(entry))
        return plain

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """The other way round. Keys that a version did not write yet are taken to be what they were then.

        Raises:
            KeyError: Some are missing; names all of them.
            ValueError: One is of another type; names it.
        """
        roles = {name for name, each in declared(RunSpec).items() if {*Role} & {*each.notes}}
        needed = [name for name in declared(RunSpec) if name == "seed" or name in roles - LATER]
        needed += [each.name for each in fields(cls) if each.default is MISSING and each.name != "spec"]
        if missing := [key for key in needed if key not in entry]:
            raise KeyError(", ".join(missing))
        told = {key: entry[key] for key in declared(RunSpec) if key in entry}
        told.setdefault("settings", settings_of_0_1(entry["editor"], entry["config"]))
        own = {each.name: entry[each.name] for each in fields(cls) if each.name in entry}
        own.setdefault("normalisation", 1)
        try:
            found: Self = TypeAdapter(cls).validate_json(json.dumps(own | {"spec": told}), strict=True)
        except ValidationError as error:
            raise ValueError(what_is_wrong(error)) from None
        return found


def settings_of_0_1(editor: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fewest settings that make a config of version 0.1, whose headers have the whole config alone.

    Args:
        editor: Name of the editor.
        config: All its settings then.

    Returns:
        Key to value; all of them if the version did not have the editor.
    """
    if editor not in _known_to_0_1():
        return dict(config)
    default, follows = _known_to_0_1()[editor]["defaults"], _known_to_0_1()[editor].get("follows", {})
    chosen = {key: value for key, value in config.items() if key not in default or default[key] != value}
    for key in list(chosen):
        fewer = {name: value for name, value in chosen.items() if name != key}
        made = (
            default | {k: v for flag in fewer if fewer[flag] is True for k, v in follows.get(flag, {}).items()} | fewer
        )
        if all(name in made and made[name] == value for name, value in config.items()):
            chosen = fewer
    return chosen


@cache
def _known_to_0_1() -> dict[str, Any]:
    """Editor to its ``defaults``, and to what a setting changes of them (``follows``)."""
    text = resources.files("unike.bench").joinpath("settings_0_1.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
