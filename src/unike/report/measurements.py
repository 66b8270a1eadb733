"""From runs on disk to measurements: what one method did in one setting, over all its seeds.

Runs that differ in nothing but their seed are one measurement. Whatever else differs keeps them apart: the conditions
(another model, data set or longest answer is another table), the method's settings and how much was asked (another
row, named by what differs).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unike.bench.header import Header
from unike.bench.outcome import CaseResult
from unike.bench.results import RunResults, find_runs, read_run
from unike.bench.spec import SETTINGS, Role
from unike.bench.summary import summarise
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.core.settings import folded

COLUMN = (Role.MODEL, Role.CONDITION)
"""What numbers must have in common to stand in one column."""


def check_shared(described: Iterable[Mapping[str, Any]]) -> None:
    """Refuse runs that differ in what a table or a figure has in common.

    Args:
        described: What that is, of each run: the same names for all, `Header.values` for example.

    Raises:
        UnikeError: With what differs.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for values in described:
        for name, value in values.items():
            found[name].append(str(value))
    for name, told in found.items():
        if len(different := dict.fromkeys(told)) > 1:
            raise UnikeError(f"one table cannot mix different {name} ({', '.join(different)}); make a table of each")


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one method did in one setting.

    Attributes:
        number: From 1, in the order of the report.
        method: The editor, and in brackets what sets it apart: ``"unike (ablation=only_intrinsic)"``.
        runs: Folder to run, in the order of their seeds.
        rows: As `unike.bench.results.summarise` makes them; over all seeds, which a row lists as ``"0+1+2"``.
    """

    number: int
    method: str
    runs: Mapping[Path, RunResults]
    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def header(self) -> Header:
        """Of the first run; all have its conditions and method."""
        return next(iter(self.runs.values())).header

    @property
    def settings(self) -> list[str]:
        """The setting at the end of a sequence first, then at its other times, as the rows have them."""
        return list(dict.fromkeys(row["setting"] for row in self.rows))

    @property
    def planned(self) -> int:
        """How many cases there are to edit."""
        return sum(run.header.counts.edited for run in self.runs.values())

    @property
    def done(self) -> int:
        """How many have been edited."""
        return sum(run.cases_done for run in self.runs.values())

    @property
    def finished(self) -> bool:
        """Whether every run is."""
        return self.done >= self.planned


def read(folders: Iterable[Path], *, progress: Progress = silent) -> list[Measurement]:
    """Every run below some folders.

    Args:
        folders: Of runs, or above them.
        progress: Told how many runs are read.

    Raises:
        UnikeError: No runs, a damaged one, or two that measured the same.
    """
    places = {place.resolve(): place for folder in folders for place in find_runs(folder)}
    runs = {}
    for number, place in enumerate(places.values()):
        progress("reading runs", number, len(places))
        runs[place] = read_run(place)
    progress("reading runs", len(places), len(places))
    return measure(runs, progress=progress)


def measure(runs: Mapping[Path, RunResults], *, progress: Progress = silent) -> list[Measurement]:
    """Runs that differ in their seeds alone, put together.

    Args:
        runs: Folder to run.
        progress: Told how many measurements are summarised.

    Raises:
        UnikeError: Two runs of one seed measured the same.
    """
    groups: dict[str, dict[Path, RunResults]] = defaultdict(dict)
    for place, run in sorted(runs.items(), key=lambda item: (item[1].header.spec.seed, item[0])):
        groups[_canonical(run.header, *Role)][place] = run
    for group in groups.values():
        _check_seeds(group)
    headers = [next(iter(group.values())).header for group in groups.values()]
    found = sorted(zip(method_names(headers), groups.values(), strict=True), key=lambda item: _order(*item))
    measurements = []
    for number, (name, group) in enumerate(found):
        progress("drawing intervals", number, len(found))
        measurements.append(Measurement(number + 1, name, group, _summary(name, group)))
    progress("drawing intervals", len(found), len(found))
    return measurements


def named(groups: Mapping[str, Mapping[Path, RunResults]]) -> list[Measurement]:
    """Measurements under names and in an order of one's own; the runs of one name are put together.

    Args:
        groups: Name to folder to run; those of one name have the same conditions.

    Raises:
        UnikeError: Scores that this version cannot read.
    """
    return [
        Measurement(number, name, runs, _summary(name, runs)) for number, (name, runs) in enumerate(groups.items(), 1)
    ]


def pool(runs: Sequence[RunResults]) -> RunResults:
    """Runs of several seeds as one, whose units are what is resampled.

    A case that several one-step runs edited is one unit: drawn or not with all its results. Sequences are units of
    their own, each with the seed that drew it.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    units: dict[str, list[CaseResult]] = defaultdict(list)
    for run in runs:
        for name, cases in run.units.items():
            units[f"{run.header.spec.seed}/{name}" if run.header.spec.in_sequences else name] += cases
    return replace(first, units=dict(units))


def _summary(name: str, group: Mapping[Path, RunResults]) -> list[dict[str, Any]]:
    runs = list(group.values())
    drawn = [run.header.spec.seed for run in runs]
    seeds = drawn[0] if len(drawn) == 1 else "+".join(dict.fromkeys(map(str, drawn)))
    try:
        rows = summarise(pool(runs))
    except (LookupError, TypeError, ValueError) as error:
        places = " and ".join(map(str, group))
        raise UnikeError(f"{places}: scores that this version cannot read ({error}); update unike") from None
    return [row | {"editor": name, "seed": seeds} for row in rows]


def _check_seeds(group: Mapping[Path, RunResults]) -> None:
    by_seed: dict[int, Path] = {}
    for place, run in group.items():
        seed = run.header.spec.seed
        other = by_seed.setdefault(seed, place)
        if other != place:
            raise UnikeError(f"{other} and {place} measured the same with seed {seed}; report one of them")


def _canonical(header: Header, *roles: Role) -> str:
    return json.dumps(header.values(*roles), sort_keys=True)


def _order(name: str, group: Mapping[Path, RunResults]) -> tuple[Any, ...]:
    """Settings and data as the paper has them, E-VQA before E-IC; the unedited model first, ``unike`` last."""
    header = next(iter(group.values())).header
    spec, model = header.spec, tuple(map(str, header.values(Role.MODEL).values()))
    rank = SETTINGS.index(spec.setting) if spec.setting in SETTINGS else len(SETTINGS)
    family, _, task = spec.dataset.partition("-")
    cases = (spec.split, header.cases, str(spec.max_new_tokens))
    method = (spec.editor == "unike", spec.editor != "no_edit", name)
    return rank, model, family, task != "vqa", task, spec.k, cases, *method


# ---------------------------------------------------------------------- names


def method_names(headers: Sequence[Header]) -> list[str]:
    """The name of each header's method, such that different ones never share a name under the same conditions.

    ``unike`` is the editor as it comes; ``unike (everywhere, memory.k=40)`` names what was set. If that does not tell
    methods apart, settings of an older version for example, all that differs is added.
    """
    told = [dict(header.spec.settings) for header in headers]
    extents = [header.values(Role.EXTENT) for header in headers]
    flat = [
        {**folded(header.config), "learned": header.learned, **extent}
        for header, extent in zip(headers, extents, strict=True)
    ]
    for in_one_column in (False, True):  # one config has one name everywhere; how much was asked matters in one column
        alike = defaultdict(list)
        for index, header in enumerate(headers):
            column = _canonical(header, *COLUMN) if in_one_column else ""
            alike[_name(header.spec.editor, told[index]), column].append(index)
        for group in alike.values():
            without = () if in_one_column else extents[0].keys()
            for name in _differing([flat[index] for index in group], without=without):
                for index in group:
                    told[index][name] = flat[index].get(name)
    return [_name(header.spec.editor, settings) for header, settings in zip(headers, told, strict=True)]


def _differing(settings: Sequence[Mapping[str, Any]], *, without: Iterable[str]) -> list[str]:
    keys = dict.fromkeys(key for found in settings for key in found if key not in without)
    return [key for key in keys if len({json.dumps(found.get(key)) for found in settings}) > 1]


def _name(editor: str, settings: Mapping[str, Any]) -> str:
    told = [key if value is True else f"{key}={_plain(value)}" for key, value in settings.items()]
    return f"{editor} ({', '.join(told)})" if told else editor


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
