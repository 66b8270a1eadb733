"""What stands side by side in a table: numbers of any methods that were measured under the same conditions."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unike.bench.header import Header
from unike.bench.protocols.base import the_protocol, views
from unike.bench.spec import Role
from unike.bench.summary import select
from unike.core.errors import UnikeError
from unike.core.registry import check_names
from unike.report.measurements import COLUMN, Measurement, check_shared

TASKS = {"vqa": "E-VQA", "caption": "E-IC"}


@dataclass(frozen=True)
class Entry:
    """One method's numbers in a block.

    Attributes:
        measurement: The runs they are of.
        rows: Of its summary.
    """

    measurement: Measurement
    rows: Sequence[Mapping[str, Any]]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.measurement.method


@dataclass(frozen=True)
class Block:
    """What stands side by side in a table: columns that were measured under the same conditions.

    Attributes:
        title: Of the columns together: ``"E-VQA"``, ``"K = 10"``.
        entries: One a method.

    Raises:
        UnikeError: Something was measured under other conditions, or one method comes twice.
    """

    title: str
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        check_shared(entry.measurement.header.values(*COLUMN) for entry in self.entries)
        methods = [entry.method for entry in self.entries]
        if len({*methods}) < len(methods):
            raise UnikeError(f"one table cannot have the same method twice ({', '.join(sorted(methods))})")

    @property
    def header(self) -> Header:
        """Of any of its runs; all have the same conditions."""
        return self.entries[0].measurement.header

    @property
    def conditions(self) -> str:
        """What all its numbers have in common, for people."""
        spec = self.header.spec
        return (
            f"{self.title}: {spec.dataset} {spec.split} (cases {self.header.cases}), "
            f"answers of at most {spec.max_new_tokens} tokens, normalisation {self.header.normalisation}"
        )

    @property
    def model(self) -> str:
        """Of all its numbers, for people."""
        spec = self.header.spec
        return f"{spec.model} ({self.header.fingerprint}, {spec.dtype})"


def views_of(measurements: Iterable[Measurement], protocols: Sequence[str] | None = None) -> list[str]:
    """The views that there are numbers for.

    Args:
        measurements: What was measured.
        protocols: Only of these; all if None.

    Raises:
        UnikeError: No run has such a protocol.
    """
    there = {row["protocol"] for measurement in measurements for row in measurement.rows}
    for protocol in protocols or ():
        if protocol not in there:
            raise UnikeError(f"no run has the protocol {protocol!r} (there: {', '.join(sorted(there)) or 'none'})")
    wanted = there if protocols is None else {*protocols}
    return [view for view in views() if view.partition("/")[0] in wanted]


def arrange(measurements: Sequence[Measurement], view: str) -> list[tuple[Block, ...]]:
    """The blocks of each table that a view needs.

    Blocks stand side by side if their titles tell them apart. If they do not (two versions of the data, for example),
    each is a table of its own.

    Raises:
        UnikeError: No such view.
    """
    check_names("view", [view], list(views()))
    entries: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for measurement in measurements:
        for setting in measurement.settings:
            if rows := select(measurement.rows, view, setting):
                entries[(setting, *measurement.header.values(*COLUMN).values())].append(Entry(measurement, rows))
    tables: dict[tuple[Any, ...], list[Block]] = defaultdict(list)
    for (setting, *_), found in entries.items():
        header = found[0].measurement.header
        spec, when = header.spec, setting.partition(":")[2]
        family, _, task = spec.dataset.partition("-")
        side: tuple[str, ...]
        if setting == "one-step":
            side = (family,)
            title = TASKS.get(task, spec.dataset)
        else:
            # The end, "own", and all intermediate times, are a table each.
            side = (spec.dataset, header.cases, str(spec.max_new_tokens), when.partition("-")[0])
            title = f"K = {spec.k}" + (f", {times(when)}" if when.startswith("at-") else "")
        shared = (spec.setting, *header.values(Role.MODEL).values(), spec.split)
        tables[(*shared, *side)].append(Block(title, tuple(found)))
    arranged: list[tuple[Block, ...]] = []
    for blocks in tables.values():
        told_apart = len({block.title for block in blocks}) == len(blocks)
        arranged += [tuple(blocks)] if told_apart else [(block,) for block in blocks]
    return arranged


def times(when: str) -> str:
    """When a sequence was asked, in words.

    >>> times("at-10")
    'after 10'
    """
    return {"": "at the end", "own": "right after each edit"}.get(when, when.replace("at-", "after "))


def at_the_end(block: Block) -> bool:
    """Whether its questions were asked after the last edit; in one-step editing, all are."""
    return ":" not in block.entries[0].rows[0]["setting"]


def check_view(blocks: Sequence[Block], view: str) -> None:
    """Refuse rows that another protocol or scorer made, or another time of a sequence.

    Raises:
        UnikeError: There are some.
    """
    check_names("view", [view], list(views()))
    rows = [row for block in blocks for entry in block.entries for row in entry.rows]
    the_protocol([view.partition("/")[0], *(row["protocol"] for row in rows)])
    others = sorted({row["scorer"] for row in rows} - {*views()[view]})
    if others:
        raise UnikeError(f"a table of {view} cannot have the scorer {', '.join(others)}; make a table of each")
    for block in blocks:
        if len({row["setting"] for entry in block.entries for row in entry.rows}) > 1:
            raise UnikeError(f"{block.title} mixes numbers of several times of a sequence; make a table of each")
