"""``unike edit``: change one answer of a model, see what it does, and keep the edit."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unike.cli import _shared as shared
from unike.cli._bulk import edit_facts
from unike.core.errors import UnikeError
from unike.core.options import parse_settings

if TYPE_CHECKING:
    from unike.data.queries import Query
    from unike.edits.edit import Edit

ORDER = 10


def edit(
    prompt: Annotated[str | None, typer.Option(help="The question that is answered wrongly.")] = None,
    target: Annotated[str | None, typer.Option(help="The answer it should get.")] = None,
    image: shared.Image = None,
    facts: Annotated[
        Path | None,
        typer.Option(help="Many facts, each an edit: JSON lines or CSV with prompt, target and perhaps image."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Facts that share a pass.", show_default="16")] = None,
    model: shared.Model = "mini",
    editor: Annotated[str, typer.Option(help="The method, see: unike ls editors.")] = "unike",
    rephrase: Annotated[
        list[str] | None, typer.Option(help="The same question in other words, asked before and after; repeatable.")
    ] = None,
    settings: shared.Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to save the edit.", show_default="edits/<target>, edits/<FILE>")
    ] = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Edit one fact, ask before and after, and save the edit; or, with --facts, each of many."""
    loading = (model, device, dtype, quantize, trust_remote_code, template)
    chosen = parse_settings(settings or [])
    if facts is not None:
        given = {"--prompt": prompt, "--target": target, "--image": image, "--rephrase": rephrase}
        if both := [name for name, value in given.items() if value]:
            raise UnikeError(f"--facts has its own prompts, targets and images; leave {' and '.join(both)} out")
        edit_facts(facts, out, editor, chosen, batch or 16, loading, as_json)
        return
    if prompt is None or target is None:
        raise UnikeError("say what is to be edited: --prompt and --target, or --facts FILE")
    if batch is not None:
        raise UnikeError("--batch is for many facts; give --facts FILE, or leave it out")
    check_texts(prompt, target, rephrase or [])
    edit_one((prompt, *(rephrase or [])), image, target, out, editor, chosen, loading, as_json)


def edit_one(
    prompts: Sequence[str],
    image: Path | None,
    target: str,
    out: Path | None,
    editor: str,
    settings: Mapping[str, Any],
    loading: shared.Loading,
    as_json: bool,
) -> None:
    """Edit one fact.

    Args:
        prompts: Its question, then the same in other words.
        image: Its picture.
        target: The answer it should get.
        out: Where to save the edit; ``edits/<target>`` if None.
        editor: The method's name.
        settings: Its own.
        loading: As `shared.load` takes it.
        as_json: Print one JSON object.
    """
    model, device, dtype, quantize, _, template = loading
    shared.check_image(image)
    with shared.working("starting"):
        from unike import api
        from unike.core import registry
        from unike.data.queries import Query

        registry.editors.get(editor).config_class.parse(dict(settings))
        shared.check_loading(device, dtype, quantize, template)
        asked = [Query(text, image, target) for text in prompts]
        place = out or free_place(asked[0], model=model, editor=editor)
        shared.check_place(place)
    backbone, load_seconds = shared.load(*loading)
    with shared.working("asking") as report:
        room = backbone.room([target])
        before = shared.answers(backbone, asked, [], room)
        made, seconds = shared.edited(backbone, api.make_editor(editor, **settings), asked[0], report)
        report("asking again")
        after = shared.answers(backbone, asked, [made], room)
    made.save_pretrained(place)
    rows = make_rows(asked, before, after)
    command = command_to_ask(made, model, asked[0], place, backbone.chosen_template)
    say_whether_it_took(rows[0], target, asked[0].accepts(before[0]))
    if not as_json:
        shared.OUT.print(shared.table(rows))
        typer.echo(f"edited in {seconds:.1f} s, saved in {place}; ask with:\n  {command}")
        return
    about: dict[str, Any] = {"model": model, "editor": editor, "image": None if image is None else str(image)}
    about |= {"prompt": asked[0].prompt, "target": target, "took": rows[0].verdict == "right"}
    seconds_taken = {"load_seconds": round(load_seconds, 3), "edit_seconds": round(seconds, 3)}
    shared.print_json(about | {"answers": shared.as_json(rows)} | seconds_taken | {"saved": str(place), "ask": command})


def say_whether_it_took(row: shared.Row, target: str, before: bool) -> None:
    """A line if the answer is not the target now, or if it was ``before``."""
    if row.verdict != "right":
        shared.ERR.print(f"the edit did not take: the answer is {row.after!r}, not {target!r}; try other settings")
    elif before:
        shared.ERR.print("the model gave this answer before: there was nothing to edit")


def command_to_ask(made: "Edit", model: str, fact: "Query", place: Path, template: str | None = None) -> str:
    """How to ask under a saved edit; whoever asks names whatever it would load beside what ships."""
    named = [] if model == "mini" else ["--model", model]
    named += [part for name in made.config.encoders() for part in ("--encoder", name)]
    named += [] if template is None else ["--template", template]
    picture = [] if fact.image is None else ["--image", str(fact.image)]
    return shlex.join(["unike", "ask", *named, *picture, "--prompt", fact.prompt, "--edit", str(place)])


def check_texts(prompt: str, target: str, rephrasings: Sequence[str]) -> None:
    """Refuse what says nothing."""
    shared.check_text(prompt, "prompt", "say which question is to be answered differently")
    shared.check_text(target, "target", "say what the answer should be")
    for other in rephrasings:
        shared.check_text(other, "rephrasing", "leave --rephrase out, or say the question in other words")


def make_rows(asked: "Sequence[Query]", before: Sequence[str], after: Sequence[str]) -> list[shared.Row]:
    """The edit and its rephrasings with their verdicts."""
    rows = []
    for number, (query, old, new) in enumerate(zip(asked, before, after, strict=True)):
        right = query.accepts(new)
        verdict = "right" if right else "unchanged" if old == new else "changed"
        kind, image = "rephrase" if number else "edit", None if query.image is None else str(query.image)
        rows.append(shared.Row(kind, query.prompt, image, old, new, verdict))
    return rows


def free_place(fact: "Query", *, model: str, editor: str) -> Path:
    """``edits/<target>``, with a number if an edit of something else is there; the same edit is replaced."""
    from unike.edits.files import SAVED

    wanted = (fact.prompt, None if fact.image is None else str(fact.image), fact.target, model, editor)
    stem = Path("edits") / (re.sub(r"[\W_]+", "-", fact.target or "").strip("-").casefold()[:40].strip("-") or "edit")
    place, number = stem, 1
    while place.exists():
        try:
            found = SAVED.describe(place)
            (old,) = found["facts"]
            if (old["prompt"], old["image"], old["target"], found["backbone"]["source"], found["editor"]) == wanted:
                break
        except (UnikeError, LookupError, TypeError, ValueError):
            pass  # something else: it is left alone
        number += 1
        place = stem.with_name(f"{stem.name}-{number}")
    return place
