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

from unike.bench.outcome import CaseResult
from unike.bench.results import Run, find_runs, read_run, summarise
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent

MODEL = ("model", "fingerprint", "dtype")
CONDITIONS = (*MODEL, "setting", "k", "dataset", "split", "cases", "max_new_tokens")
"""What numbers must have in common to stand in one column."""

METHOD = ("editor", "config", "learned")
EXTENT = ("limit", "sample", "evaluate_at", "protocols")
"""How much was asked: compared within one column, but never taken for the same."""

REQUIRED = (*CONDITIONS, "editor", "config", *EXTENT, "seed", "counts")
"""Without ``learned``: runs of older versions lack it."""


def check_shared(keys: Sequence[str], headers: Iterable[Mapping[str, Any]]) -> None:
    """Refuse runs that differ in what a table or a figure has in common.

    Raises:
        UnikeError: With what differs.
    """
    headers = list(headers)
    for key in keys:
        values = list(dict.fromkeys(str(header[key]) for header in headers))
        if len(values) > 1:
            raise UnikeError(f"one table cannot mix different {key} ({', '.join(values)}); make a table of each")


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one method did in one setting.

    Attributes:
        number: From 1, in the order of the report.
        method: The editor, and in brackets what sets it apart: ``"unike (only_intrinsic)"``.
        runs: Folder to run, in the order of their seeds.
        rows: As `unike.bench.results.summarise` makes them; over all seeds, which a row lists as ``"0+1+2"``.
    """

    number: int
    method: str
    runs: Mapping[Path, Run]
    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def header(self) -> dict[str, Any]:
        """Of the first run; all have its conditions and method."""
        return next(iter(self.runs.values())).header

    @property
    def settings(self) -> list[str]:
        """The setting at the end of a sequence first, then at its other times, as the rows have them."""
        return list(dict.fromkeys(row["setting"] for row in self.rows))

    @property
    def planned(self) -> int:
        """How many cases there are to edit."""
        return sum(run.header["counts"]["edited"] for run in self.runs.values())

    @property
    def done(self) -> int:
        """How many have been edited."""
        return sum(cases_done(run) for run in self.runs.values())

    @property
    def finished(self) -> bool:
        """Whether every run is."""
        return self.done >= self.planned

    def conditions(self, keys: Sequence[str] = CONDITIONS) -> tuple[Any, ...]:
        """The values of some keys of the header, to compare measurements by."""
        return tuple(self.header[key] for key in keys)


def cases_done(run: Run) -> int:
    """How many cases of a run have been edited: a unit is a case, or a sequence of k."""
    return len(run.units) * (1 if run.header["setting"] == "one-step" else int(run.header["k"]))


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
        runs[place] = _checked(place, read_run(place))
    progress("reading runs", len(places), len(places))
    return measure(runs, progress=progress)


def measure(runs: Mapping[Path, Run], *, progress: Progress = silent) -> list[Measurement]:
    """Runs that differ in their seeds alone, put together.

    Args:
        runs: Folder to run.
        progress: Told how many measurements are summarised.

    Raises:
        UnikeError: Two runs of one seed measured the same.
    """
    groups: dict[str, dict[Path, Run]] = defaultdict(dict)
    for place, run in sorted(runs.items(), key=lambda item: (item[1].header["seed"], item[0])):
        groups[_canonical(run.header, (*CONDITIONS, *METHOD, *EXTENT))][place] = run
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


def named(groups: Mapping[str, Mapping[Path, Run]]) -> list[Measurement]:
    """Measurements under names and in an order of one's own; the runs of one name are put together.

    Args:
        groups: Name to folder to run; those of one name have the same conditions.

    Raises:
        UnikeError: Scores that this version cannot read.
    """
    return [
        Measurement(number, name, runs, _summary(name, runs)) for number, (name, runs) in enumerate(groups.items(), 1)
    ]


def pool(runs: Sequence[Run]) -> Run:
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
            units[name if run.header["setting"] == "one-step" else f"{run.header['seed']}/{name}"] += cases
    return replace(first, units=dict(units))


def _summary(name: str, group: Mapping[Path, Run]) -> list[dict[str, Any]]:
    runs = list(group.values())
    seeds: Any = (
        runs[0].header["seed"] if len(runs) == 1 else "+".join(dict.fromkeys(str(run.header["seed"]) for run in runs))
    )
    try:
        rows = summarise(pool(runs))
    except (LookupError, TypeError, ValueError) as error:
        places = " and ".join(map(str, group))
        raise UnikeError(f"{places}: scores that this version cannot read ({error}); update unike") from None
    return [row | {"editor": name, "seed": seeds} for row in rows]


def _checked(place: Path, run: Run) -> Run:
    missing = [key for key in REQUIRED if key not in run.header]
    if missing:
        raise UnikeError(f"{place}: the header lacks {', '.join(missing)}; it was not written by unike bench")
    return run


def _check_seeds(group: Mapping[Path, Run]) -> None:
    by_seed: dict[int, Path] = {}
    for place, run in group.items():
        other = by_seed.setdefault(run.header["seed"], place)
        if other != place:
            raise UnikeError(
                f"{other} and {place} measured the same with seed {run.header['seed']}; report one of them"
            )


def _canonical(header: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps([header.get(key) for key in keys], sort_keys=True)


def _order(name: str, group: Mapping[Path, Run]) -> tuple[Any, ...]:
    """Settings and data as the paper has them, E-VQA before E-IC; ``unike`` after what it is compared with."""
    header = next(iter(group.values())).header
    rank = {"one-step": 0, "sequential": 1, "cross-task": 2}.get(header["setting"], 3)
    family, _, task = header["dataset"].partition("-")
    conditions = tuple(str(header[key]) for key in (*MODEL, "split", "cases", "max_new_tokens"))
    return rank, conditions[:3], family, task != "vqa", task, header["k"], conditions, header["editor"] == "unike", name


# ---------------------------------------------------------------------- names


def method_names(headers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of each header's method, such that different ones never share a name under the same conditions.

    ``unike`` is the editor as it comes; ``unike (only_intrinsic, k=40)`` names what was set (`chosen_settings`). If
    that does not tell methods apart, settings of an older version for example, all that differs is added.
    """
    known = registry.editors.names()
    told = [dict(chosen_settings(h["editor"], h["config"])) if h["editor"] in known else {} for h in headers]
    flat = [{**header["config"], **{key: header.get(key) for key in ("learned", *EXTENT)}} for header in headers]
    for keys in ((), CONDITIONS):  # one config has one name everywhere; how much was asked matters in one column alone
        alike = defaultdict(list)
        for index, header in enumerate(headers):
            alike[_name(header["editor"], told[index]), _canonical(header, keys)].append(index)
        for group in alike.values():
            for name in _differing([flat[index] for index in group], without=() if keys else EXTENT):
                for index in group:
                    told[index][name] = flat[index].get(name)
    return [_name(header["editor"], settings) for header, settings in zip(headers, told, strict=True)]


def chosen_settings(editor: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fewest settings that make this config of an editor: what has to be said with ``--set``.

    Args:
        editor: Name of the editor.
        config: All its settings, as a header has them. Those that follow from others, as from ``paper``, are left out.

    Returns:
        Key to value; everything, if this version does not have the editor.
    """
    if editor not in registry.editors.names():
        return dict(config)
    parse = registry.editors.get(editor).config_class.parse
    default = parse({}).model_dump(mode="json")
    chosen = {key: value for key, value in config.items() if key not in default or default[key] != value}
    for key in list(chosen):
        fewer = {name: value for name, value in chosen.items() if name != key}
        try:
            made = parse(fewer).model_dump(mode="json")
        except UnikeError:  # settings of another version
            continue
        if all(name in made and made[name] == value for name, value in config.items()):
            chosen = fewer
    return chosen


def _differing(settings: Sequence[Mapping[str, Any]], *, without: Iterable[str]) -> list[str]:
    keys = dict.fromkeys(key for found in settings for key in found if key not in without)
    return [key for key in keys if len({json.dumps(found.get(key)) for found in settings}) > 1]


def _name(editor: str, settings: Mapping[str, Any]) -> str:
    told = [key if value is True else f"{key}={_plain(value)}" for key, value in settings.items()]
    return f"{editor} ({', '.join(told)})" if told else editor


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
