"""The figures of the paper's Tables 1 to 5, transcribed by hand (``published.json``): what others measured, not we.

Pan et al., *Towards Unified Multimodal Editing with Enhanced Knowledge Collaboration*, NeurIPS 2024. They are
teacher-forced, of the paper's checkpoints, on MMEdit.

Note:
    Table 5 is said to hold means of Tables 1 and 2. Three of its figures do not follow from these: one-step locality of
    KE (72.4; the mean is 80.7), one-step reliability and generality of MEND (98.6 and 88.6; 97.7 and 87.6). They are
    kept as printed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from unike.data.queries import GENERALITY, LOCALITY, RELIABILITY

TABLES = (1, 2, 3, 4, 5)

MODELS = ("blip2-opt", "minigpt4")
"""What the paper edits; ``both`` is a mean over them."""

PROPERTIES = {"reliability": (RELIABILITY.name,), "generality": GENERALITY, "locality": LOCALITY}
"""The paper's three properties (section 2), and the metrics that each is the mean of."""

METRICS = tuple(metric for metrics in PROPERTIES.values() for metric in metrics)
"""The columns of Tables 1 to 4."""


@dataclass(frozen=True)
class Block:
    """Figures that stand side by side in one of the paper's tables.

    Attributes:
        table: Its number.
        title: Of the columns together.
        model: One of `MODELS`, or ``both``.
        setting: As in `unike.bench.spec.SETTINGS`.
        task: ``vqa`` (E-VQA), ``caption`` (E-IC) or ``both``.
        k: Edits in a sequence; 1 in one-step editing, 0 for a mean over several.
        columns: Names of metrics, or of the properties that metrics are averaged to.
        rows: Method, or in Table 4 the row's name, to its figures in percent.
    """

    table: int
    title: str
    model: str
    setting: str
    task: str
    k: int
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]

    def figures(self, row: str) -> dict[str, float]:
        """Column to figure in percent; empty if the paper does not have the row."""
        return dict(zip(self.columns, self.rows.get(row, ()), strict=False))


@cache
def _read() -> dict[str, Any]:
    text = resources.files("unike.reproduce").joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def blocks() -> tuple[Block, ...]:
    """All of them, in the order of the paper."""
    return tuple(
        Block(
            **each
            | {"columns": tuple(each["columns"]), "rows": {name: tuple(row) for name, row in each["rows"].items()}}
        )
        for each in _read()["blocks"]
    )


def source() -> str:
    """Where the figures are from."""
    return str(_read()["source"])


def model_title(model: str) -> str:
    """How the paper calls a model, with its size: ``"MiniGPT-4 (7.3B)"``."""
    return str(_read()["models"][model])


def method_title(method: str) -> str:
    """How the paper calls a method; in Table 4, a row is called what it is called."""
    return str(_read()["methods"].get(method, method))


def protocol() -> str:
    """How answers were judged."""
    return str(_read()["protocol"])


def averages(block: Block, row: str) -> dict[str, float]:
    """The means of a row's figures that Table 5 is made of, in percent.

    Returns:
        ``reliability``, ``generality`` and ``locality``; empty if the paper does not have the row.
    """
    figures = block.figures(row)
    return {
        name: sum(figures[metric] for metric in metrics) / len(metrics)
        for name, metrics in PROPERTIES.items()
        if figures.keys() >= set(metrics)
    }
