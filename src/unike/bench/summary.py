"""What runs measured in numbers: means with intervals, and which of them may stand in one column.

A summary is made from results alone, without torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unike.bench.outcome import Asked
from unike.bench.protocols.base import all_protocols, the_protocol, views
from unike.bench.results import RunResults
from unike.bench.verdicts import metric_heads, verdicts

RESAMPLES = 1000

COLUMNS = (
    "model",
    "editor",
    "dataset",
    "setting",
    "k",
    "protocol",
    "scorer",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "seed",
)
"""Keys of a summary's rows, in the order of a CSV file."""


def summarise(run: RunResults, *, resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """Means with bootstrap 95 % intervals: a row for each setting, protocol, scorer and metric.

    What is resampled are the units that were edited independently: cases in one-step editing, sequences otherwise. A
    sequence asked at other times than its end has settings of its own, ``"sequential:own"``, ``"sequential:at-10"``.

    Args:
        run: From `read_run`.
        resamples: Draws of the bootstrap, with the run's seed.

    Returns:
        Rows with the keys of `COLUMNS`. A metric is a kind of question. Where it is known how far questions are from a
        fact, those of each distance are one too, ``"portability:2-hop"``; so are those that the unedited model answers
        when it is told the fact, ``"portability:known"``, and the others, ``"portability:rest"``; and what is said of
        edits as a whole (`unike.bench.verdicts`). ``value``, ``low`` and ``high`` are shares from 0 to 1, None where a
        score is not defined for the method; ``n`` counts questions, of ``scope`` edits.
    """
    spec = run.header.spec
    shared = {"model": spec.model, "editor": spec.editor, "dataset": spec.dataset}
    # (when, key, metric) -> unit -> [sum, count]
    sums: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for unit, cases in run.units.items():
        for case in cases:
            for asked in case.asked:
                for key, value in asked.scores.items():
                    for metric in _metrics(asked):
                        totals = sums.setdefault((case.when, key, metric), {}).setdefault(unit, [0.0, 0.0])
                        if value is not None:
                            totals[0] += value
                            totals[1] += 1
            for key, metric, total, count in verdicts(case):
                totals = sums.setdefault((case.when, key, metric), {}).setdefault(unit, [0.0, 0.0])
                totals[0] += total
                totals[1] += count
    rows = []
    for when, key, metric in sorted(sums, key=_order):
        protocol, scorer = key.split("/")
        value, low, high, n = interval(list(sums[when, key, metric].values()), spec.seed, resamples)
        setting = spec.setting if when == "end" else f"{spec.setting}:{when}"
        row = shared | {"setting": setting, "k": spec.k, "protocol": protocol, "scorer": scorer, "metric": metric}
        rows.append(row | {"value": value, "low": low, "high": high, "n": n, "seed": spec.seed})
    return rows


def select(rows: Iterable[Mapping[str, Any]], view: str, setting: str) -> list[Mapping[str, Any]]:
    """The rows of one column of a table.

    Args:
        rows: From `summarise`.
        view: One of `unike.bench.protocols.base.views`.
        setting: As the rows have it, ``"sequential:own"`` for example.
    """
    wanted = (setting, view.partition("/")[0])
    return [row for row in rows if (row["setting"], row["protocol"]) == wanted and row["scorer"] in views()[view]]


def column(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The rows of one column of a table, by their metric.

    Args:
        rows: From `summarise`, of one setting and at most one scorer for each metric.

    Raises:
        UnikeError: They are of several protocols, whose numbers do not compare.
        ValueError: A metric comes twice.
    """
    the_protocol([row["protocol"] for row in rows])
    found = {row["metric"]: row for row in rows}
    if len(found) != len(rows):
        raise ValueError("a metric comes twice: choose one scorer and one setting")
    return found


def interval(
    totals: Sequence[Sequence[float]], seed: int, resamples: int = RESAMPLES
) -> tuple[float | None, float | None, float | None, int]:
    """A mean over questions and its 95 % percentile interval, resampling whole units.

    Args:
        totals: For each unit, the sum of its scores and their number.
        seed: Of the draws.
        resamples: How many draws.

    Returns:
        Mean, 2.5 % and 97.5 % quantiles (None without any score), and the number of scores.
    """
    import numpy as np

    scores, counts = np.array(sorted(map(list, totals)), dtype=float).T  # in whichever order units were finished
    n = int(counts.sum())
    if not n:
        return None, None, None, 0
    draws = np.random.default_rng(seed).integers(0, len(scores), size=(resamples, len(scores)))
    drawn_counts = counts[draws].sum(axis=1)
    means = scores[draws].sum(axis=1)[drawn_counts > 0] / drawn_counts[drawn_counts > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(scores.sum() / n), float(low), float(high), n


def _metrics(asked: Asked) -> list[str]:
    """What a question is counted as: its kind, and with its hop, and with whether what it asks is known."""
    found = [asked.kind]
    if asked.hop:
        found.append(f"{asked.kind}:{asked.hop}-hop")
    if asked.known is not None:
        found.append(f"{asked.kind}:{'known' if asked.known else 'rest'}")
    return found


def _order(key: tuple[str, str, str]) -> tuple[Any, ...]:
    when, score, metric = key
    protocol, scorer = score.split("/")
    kind, _, hop = metric.partition(":")
    # "at-10" before "at-100"; the end of a sequence first
    return (
        when != "end",
        len(when),
        when,
        [*all_protocols()].index(protocol),
        scorer,
        [*metric_heads()].index(kind),
        hop,
    )
