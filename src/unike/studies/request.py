"""What a study is asked to do: a description of its runs, and what it alone needs; light, for the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from unike.bench.spec import RunSpec
from unike.core.options import REALS, Option

VARIED = frozenset({"editor", "setting", "k", "evaluate_at", "sample", "engine"})
"""What a study says of its runs by itself."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is studied.

    Attributes:
        spec: Of every run, but for what is `VARIED`; its settings are those of `unike`, the same in all variants, and
            figures show the first of its protocols.
        data: Folder of the data set's files, or None.
        workers: Processes that share each run.
        numbers: What is gone through: sizes, values or numbers of edits; if empty, those of the study.
        count: How many cases are shown, states are drawn, or questions are asked; None for as many as the study has.
        rule: By which cases are chosen.
    """

    spec: RunSpec = field(default_factory=RunSpec)
    data: Path | None = None
    workers: int = 1
    numbers: Annotated[
        tuple[float, ...],
        Option(
            "What is gone through: values of alpha, numbers of examples or edits, or layers (spaces).",
            "--at",
            REALS,
            shown="the study's own",
            metavar="NUMBERS",
        ),
    ] = ()
    count: Annotated[
        int | None,
        Option("How many cases are shown, states drawn (spaces), or questions asked (drift).", shown="the study's own"),
    ] = None
    rule: Annotated[
        str, Option("Which cases are shown: drawn from all, or only right, failed, gained or lost ones.")
    ] = "drawn"
