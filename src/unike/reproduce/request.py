"""What a reproduction is asked to do: the description of its runs, and what it alone needs; light, as options are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Self

from unike.bench.spec import RunSpec
from unike.core.errors import UnikeError
from unike.core.options import NAMES, Option, read_options
from unike.core.registry import check_names
from unike.reproduce.methods import ABLATION_OF, METHODS, PLANNED
from unike.reproduce.published import MODELS, TABLES

PROTOCOLS = ("mmedit", "teacher_forced", "strict")
"""What every run measures: the published toolkit's numbers, those at the gold tokens, and what the model says."""

VARIED = frozenset(
    {"editor", "settings", "dataset", "split", "setting", "k", "evaluate_at", "sample", "batch", "protocols", "engine"}
)
"""What a table says of its runs by itself."""

DATASETS = ("mmedit", "pocket", "pocket2")
"""Data sets with both of the paper's tasks."""

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is typed beside what `RunSpec` has.

    Attributes:
        table: A number of the paper's tables, or `ALL`.
        family: One of `DATASETS`.
        methods: Names of `unike.reproduce.methods.METHODS`; if empty, those that are planned by default.
        steps: Training steps of methods that have a network; None for the default of ``unike train``.
        triplets: As ``--limit`` of ``unike prepare``.
        stands_for: Which of the paper's models the model is; empty to find out.
        probe: Folder of an earlier, smaller reproduction, whose measured seconds and bytes are used for estimates.
    """

    table: Annotated[str, Option("1, 2, 3, 4, 5 or all.", metavar="1|2|3|4|5|all")] = ALL
    family: Annotated[
        str, Option("mmedit, whose files are in --data, or pocket or pocket2, which ship.", "--dataset")
    ] = "mmedit"
    methods: Annotated[
        tuple[str, ...],
        Option(f"Of {', '.join(METHODS)}; with commas, repeatable.", "--methods", NAMES, "all but serac_mmedit"),
    ] = ()
    steps: Annotated[
        int | None, Option("Train networks for at most so many steps.", "--train-steps", shown="5000", least=0)
    ] = None
    triplets: Annotated[int | None, Option("Prepare at most so many triplets.", shown="all", least=1)] = None
    stands_for: Annotated[
        str, Option(f"Which of the paper's models this is: {' or '.join(MODELS)}.", "--as", shown="found out")
    ] = ""
    probe: Annotated[
        str | None,
        Option("Folder of a smaller reproduction on this machine, to estimate from.", shown="none", metavar="DIR"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is reproduced, with nothing left open.

    Attributes:
        tables: Numbers of the paper's tables, ascending.
        methods: Names of `METHODS`, in the order of the paper.
        spec: Of every run, but for what is `VARIED`.
        family: Name of the data set, without a task.
        data: Folder of its files; None if it ships with the package.
        out: Folder of everything.
        workers: Processes that share each run.
        stands_for: Which of the paper's models the model is, or None.
        steps: As in `Asked`.
        triplets: As in `Asked`.
        probe: As in `Asked`.
        left_out: Why some of all tables are not among them, in sentences.
    """

    tables: tuple[int, ...]
    methods: tuple[str, ...]
    spec: RunSpec
    family: str
    data: Path | None
    out: Path
    workers: int = 1
    stands_for: str | None = None
    steps: int | None = None
    triplets: int | None = None
    probe: Path | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def from_options(cls, given: Mapping[str, Any], data: Path | None, out: Path | None, workers: int = 1) -> Self:
        """What was typed, checked as far as that goes without data or model.

        Args:
            given: Name of a field of `RunSpec` or `Asked` to what the command line handed on.
            data: ``--data``.
            out: ``--out``; None for a folder named after model and data.
            workers: ``--workers``.

        Raises:
            UnikeError: Something that does not exist or makes no sense.
        """
        asked = Asked(**read_options(Asked, given))
        spec = RunSpec(**read_options(RunSpec, {k: v for k, v in given.items() if k not in VARIED}))
        spec.check()
        check_names("table", [asked.table], [*map(str, TABLES), ALL])
        check_names("data set", [asked.family], DATASETS)
        if asked.stands_for:
            check_names("model of the paper", [asked.stands_for], MODELS)
        if (asked.family == "mmedit") != (data is not None):
            told = "--data is the folder of MMEdit's files; give it" if data is None else "name no --data for it"
            raise UnikeError(f"--dataset {asked.family}: {told}")
        methods = methods_of(asked.methods)
        tables, left_out = tables_of(asked.table, methods, asked.family)
        name = f"{Path(spec.model.rstrip('/')).name or 'model'}-{asked.family}"
        return cls(
            tables=tables,
            methods=methods,
            spec=spec,
            family=asked.family,
            data=data,
            out=out or Path("reproduction") / name,
            workers=workers,
            stands_for=asked.stands_for or which_model(spec.model),
            steps=asked.steps,
            triplets=asked.triplets,
            probe=Path(asked.probe) if asked.probe else None,
            left_out=left_out,
        )


def methods_of(typed: tuple[str, ...]) -> tuple[str, ...]:
    """The methods that are meant, each once, in the order of the paper.

    Raises:
        UnikeError: An unknown one.
    """
    names = [name.strip() for text in typed for name in text.split(",")]
    if typed:
        check_names("method", names, list(METHODS))
    return tuple(name for name in METHODS if name in (names or PLANNED))


def tables_of(table: str, methods: tuple[str, ...], family: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The numbers of the tables that are meant, and why others of all are not.

    Raises:
        UnikeError: A table that has no place for the methods or the data set.
    """
    hindrances = {}
    if ABLATION_OF not in methods:
        hindrances[4] = f"Table 4 compares the parts of {ABLATION_OF!r}, which is not among --methods"
    if family == "pocket2":
        hindrances[3] = "Table 3 mixes two tasks, and pocket2 has three; take --dataset pocket"
    if not any(METHODS[name].sequential for name in methods):
        for number in (2, 3):
            hindrances.setdefault(number, f"Table {number} is of sequences, which the paper has none of --methods in")
    if table == ALL:
        return tuple(number for number in TABLES if number not in hindrances), tuple(hindrances.values())
    if int(table) in hindrances:
        raise UnikeError(hindrances[int(table)])
    return (int(table),), ()


def which_model(model: str) -> str | None:
    """Which of the paper's models a folder or hub id is: by its config, or as long as there is none, by its name.

    BLIP-2 around a LLaMA is what `unike.backbones.convert` makes of MiniGPT-4.
    """
    config = Path(model) / "config.json"
    if not config.is_file():
        name = Path(model).name.lower().replace("-", "")
        return next((known for known in MODELS if name.startswith(known.replace("-", ""))), None)
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        kinds: Any = (found.get("model_type"), (found.get("text_config") or {}).get("model_type"))
    except (OSError, ValueError, AttributeError):
        return None  # whoever loads it tells what is wrong
    return {("blip-2", "opt"): "blip2-opt", ("blip-2", "llama"): "minigpt4"}.get(kinds)
