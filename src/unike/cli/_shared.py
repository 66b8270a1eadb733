"""What the subcommands share: options, checks, loading with a spinner, asking, and showing the answers."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from unike.core.errors import UnikeError

if TYPE_CHECKING:
    from unike.backbones.adapter import Backbone
    from unike.core.progress import Progress
    from unike.data.queries import Query
    from unike.editors.base import Editor
    from unike.edits.edit import Edit

# What people and models write is shown as it is, so nothing is read as rich's markup.
OUT = Console(markup=False, highlight=False, emoji=False)
ERR = Console(markup=False, highlight=False, emoji=False, stderr=True)

STYLES = {"right": "green", "unchanged": "green", "changed": "yellow", "wrong": "red"}

Model = Annotated[str, typer.Option(help="'mini', a folder with a saved model, or a hub id 'organisation/name'.")]
Image = Annotated[Path | None, typer.Option(help="The picture that is asked about.", show_default="none")]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', 'mps', or 'split' over all there are.")]
Dtype = Annotated[str, typer.Option(help="'auto', 'float32', 'bfloat16' or 'float16'.")]
Quantize = Annotated[
    str | None, typer.Option(metavar="8bit|4bit", help="Keep matrices in so many bits (bitsandbytes).")
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|PRESET",
        help="What stands around a question: a text with {image} and {prompt}, then ' || ' and one with {prompt} for "
        "questions without a picture, if that is another; or mmedit-vqa, mmedit-caption.",
        show_default="the model's own",
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that a model brings along; else such a model is refused.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeatable.")
]
Data = Annotated[Path | None, typer.Option(help="Folder of the data set's files.", show_default="in the cache folder")]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        metavar="EDIT",
        help="A saved edit, a folder of many, or one on the hub, hf://organisation/name[@revision]; repeatable, "
        "attached in order.",
    ),
]
Encoder = Annotated[
    str | None, typer.Option(help="A sentence encoder that the edit may load.", show_default="the one that ships")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


Loading = tuple[str, str, str, str | None, bool, str | None]
"""Model, device, dtype, quantization, whether to trust its code, template: the arguments of `load`."""


# ---------------------------------------------------------------------- checks, before anything slow


def check_text(text: str, what: str, advice: str) -> None:
    """Refuse a text with nothing in it, or one that is not text.

    Raises:
        UnikeError: With ``what`` it is and the advice.
    """
    if not text.strip():
        raise UnikeError(f"the {what} is empty; {advice}")
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 arrive from the shell as lone surrogates
        raise UnikeError(f"the {what} is not valid UTF-8: {text!r}") from None


def check_image(image: Path | None) -> None:
    """Read a picture once, so that a bad one is known before the model is loaded."""
    if image is not None:
        from unike.core.images import load_image

        load_image(image)


def check_place(out: Path) -> None:
    """Refuse a folder where an edit could not be saved."""
    from unike.core.folders import check_folder, try_place
    from unike.edits.files import CONFIG_FILE

    check_folder(out, known_by=CONFIG_FILE)
    try_place(out)


def check_out(out: Path | None, check: Callable[[Path], None]) -> None:
    """Refuse a place that was chosen and fails a check, or in which nothing can be made."""
    from unike.core.folders import try_place

    if out is not None:
        check(out)
        try_place(out)


def check_loading(device: str, dtype: str, quantize: str | None, template: str | None = None) -> None:
    """Refuse a device, dtype, quantization or template that does not exist."""
    from unike.backbones.loading import resolve_placement
    from unike.backbones.template import written

    resolve_placement(device, dtype, quantize)
    if template is not None:
        written(template)


def edits_named(names: Iterable[str], encoder: str | None = None) -> "list[tuple[str, Edit]]":
    """Read saved edits, each with what it is called: a folder, one of a folder of many, or its name on the hub.

    Args:
        names: As they were typed, see `Edits`.
        encoder: A sentence encoder that they may name, beside the one that ships.

    Raises:
        UnikeError: One cannot be read or fetched, names another encoder, or holds several independent edits.
    """
    from unike.editors.common.bulk import edits_in
    from unike.edits.edit import Edit
    from unike.edits.hub import is_on_the_hub, located

    edits = []
    for name in names:
        folder = located(name if is_on_the_hub(name) else Path(name))
        for each in edits_in(folder):
            called = str(each) if each != folder else name
            edit = Edit.from_pretrained(each, encoder=encoder)
            if len(edit) != 1:
                raise UnikeError(
                    f"{called} holds {len(edit)} independent edits; save one, as in edit[0].save_pretrained(...)"
                )
            edits.append((called, edit))
    return edits


def confirmed(edits: "Iterable[tuple[str, Edit]]") -> str:
    """The bundled model: another one, which an edit names, is only loaded for somebody who names it too.

    Raises:
        UnikeError: An edit was made for another model.
    """
    from unike.backbones import MINI

    for name, edit in edits:
        if edit.source != MINI:
            raise UnikeError(
                f"the edit in {name} was made for {edit.source!r}; if you trust that model, name it: "
                f"--model {shlex.quote(edit.source)}"
            )
    return MINI


# ---------------------------------------------------------------------- work


@contextmanager
def progress_bars() -> "Iterator[Progress]":
    """A bar for each thing that is done, with the time left; on stderr, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=ERR, disable=not ERR.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if not total:
                return
            if what not in tasks:
                for task in tasks.values():  # what was done before may have ended sooner than it might
                    bars.update(task, completed=bars.tasks[task].total)
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


@contextmanager
def working(message: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on stderr, if that is a terminal; yields a function that changes its text."""
    with ERR.status(message) as status:
        yield lambda text: status.update(text)


def load(
    model: str,
    device: str,
    dtype: str,
    quantize: str | None,
    trust_remote_code: bool = False,
    template: str | None = None,
) -> "tuple[Backbone, float]":
    """Load a model (the bundled one is built first if need be), and say how many seconds that took."""
    from unike.backbones import load_backbone, quiet

    start = time.perf_counter()
    build(model)
    with working(f"loading {model}"):
        quiet()
        backbone = load_backbone(
            model,
            device=device,
            dtype=dtype,
            quantize=quantize,
            template=template,
            trust_remote_code=trust_remote_code,
        )
    return backbone, time.perf_counter() - start


def build(model: str) -> None:
    """Put the bundled model together, if it is the one that is named and that has not been done."""
    from unike.backbones import MINI, quiet

    if model == MINI:
        with working(f"loading {model}") as report:
            quiet()
            from unike.backbones.families import mini

            mini.build(lambda step: report(f"building {model}, once: {step}"))


def edited(
    backbone: "Backbone", editor: "Editor[Any]", fact: "Query", report: Callable[[str], None]
) -> "tuple[Edit, float]":
    """One edit and the seconds it took, without what is read once for all edits."""
    report("reading what the method needs of the model")
    editor.progress = lambda what, done, total: report(f"{what}, to leave them alone: {done} of {total}")
    editor.prepare(backbone)
    report("editing")
    start = time.perf_counter()
    return editor.edit(backbone, fact), time.perf_counter() - start


def answers(
    backbone: "Backbone", queries: "Sequence[Query]", edits: "Sequence[Edit]", max_new_tokens: int = 16
) -> list[str]:
    """Ask every question under a stack of edits."""
    from unike.edits.edited import EditedModel

    return EditedModel(backbone, edits).generate(queries, max_new_tokens=max_new_tokens)


# ---------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Row:
    """One question, before and after an edit.

    Args:
        kind: What the question tests.
        question: As it was asked.
        image: The picture it is about, or None.
        before: The answer without the edit.
        after: The answer with it.
        verdict: One of `STYLES`.
    """

    kind: str
    question: str
    image: str | None
    before: str
    after: str
    verdict: str


def table(rows: Sequence[Row], *, kinds: bool = False) -> Table:
    """Rows as a table for people.

    Args:
        rows: At least one.
        kinds: Whether to show what each question tests, and its picture.
    """
    grid = Table(show_lines=kinds)
    for heading in (*(["what is asked"] if kinds else []), "question", "before", "after", "verdict"):
        grid.add_column(heading, overflow="fold")
    for row in rows:
        question = Text(printable(row.question))
        if kinds:
            question.append(f"\n{row.image or 'no picture'}", style="dim")
        cells: list[str | Text] = [question, printable(row.before), printable(row.after)]
        grid.add_row(*([row.kind] if kinds else []), *cells, Text(row.verdict, style=STYLES[row.verdict]))
    return grid


def printable(text: str) -> str:
    """A model can answer anything, escape sequences of terminals included; they are shown as U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text) or "(nothing)"


def print_json(result: dict[str, Any]) -> None:
    """The result as one JSON object on stdout, escaped if that could not hold it otherwise."""
    text = json.dumps(result, indent=2, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(result, indent=2)
    typer.echo(text)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [asdict(row) for row in rows]
