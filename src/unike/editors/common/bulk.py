"""Many facts, each an edit of its own in a folder of its own: in batches, resumable, and no failure is lost."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from unike.backbones.adapter import Backbone
from unike.backbones.answers import content_key
from unike.backbones.given import check_unicode, given_queries
from unike.core.errors import UnikeError
from unike.core.files import append_lines, open_file
from unike.core.images import load_image
from unike.core.progress import Progress, silent
from unike.core.schema import STRICT, FileName, Schema, checked, parse_json
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.edits.edited import EditedModel
from unike.edits.files import SAVED

TOLD = 5
"""So many facts that cannot be edited are told one by one."""


class WrittenFact(Schema):
    """A line of a file of facts; the picture's path is relative to the file."""

    model_config = ConfigDict(**STRICT | {"extra": "forbid"})

    prompt: str
    target: str
    image: FileName | None = None


LOG = "edits.jsonl"
"""In the folder: a line for each edit, as soon as it is saved."""


class Outcome(Schema):
    """What became of a fact.

    Attributes:
        prompt: Of the fact.
        image: The same, or None.
        target: The same.
        edit: Name of the edit's folder.
        answer: Under the edit, to the fact's own question.
        took: Whether that is the target.
        new: Whether the edit was made just now; it was there before otherwise.
    """

    prompt: str
    image: FileName | None
    target: str
    edit: str = Field(pattern="^[0-9a-f]{16}$")
    answer: str
    took: bool
    new: bool = False


def read_facts(file: Path) -> list[Query]:
    """The facts in a file: JSON lines, or CSV with a head; ``prompt``, ``target`` and perhaps ``image``.

    Raises:
        UnikeError: It cannot be read, or a line says something else; names the first ones.
    """
    try:
        with open_file(file) as opened:
            text = opened.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnikeError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    facts: list[Query] = []
    wrong: list[str] = []
    wanted: dict[Query, tuple[int, str | None]] = {}
    for line, record in _csv(text) if file.suffix.casefold() == ".csv" else _json_lines(text):
        try:
            if isinstance(record, ValueError):
                raise record
            fact = _fact(checked(WrittenFact, record), file.parent)
            first, target = wanted.setdefault(fact.question, (line, fact.target))
            if target != fact.target:
                raise ValueError(f"it asks what line {first} asks, and wants another answer")
            facts.append(fact)
        except (ValueError, UnikeError) as error:
            wrong.append(f"line {line}: {error}")
    if wrong:
        more = f"; and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        raise UnikeError(f"{file}: {'; '.join(wrong[:TOLD])}{more}; mend these lines or leave them out")
    if not facts:
        raise UnikeError(f"{file} has no fact; write lines with a prompt, a target and perhaps an image")
    return facts


def _fact(written: WrittenFact, folder: Path) -> Query:
    image = None if not written.image else folder / written.image
    if image is not None:
        load_image(image)
    for name in ("prompt", "target"):
        if not getattr(written, name).strip():
            raise ValueError(f"the {name} is empty")
        check_unicode(getattr(written, name))
    return Query(written.prompt, image, written.target)


def _json_lines(text: str) -> Iterator[tuple[int, Any]]:
    for line, each in enumerate(text.split("\n"), 1):
        if each.strip():
            try:
                yield line, parse_json(each)
            except ValueError:
                yield line, ValueError("it is not JSON")


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        head = list(rows.fieldnames or ())
        known = {"prompt", "target"} <= set(head) <= set(WrittenFact.model_fields)
        if head and not (known and len(set(head)) == len(head)):
            yield 1, ValueError(f"its columns are {', '.join(map(repr, head))}; name them prompt, target, image")
            return
        for row in rows:
            given = {key: value for key, value in row.items() if value}
            yield rows.line_num, ValueError("it has more fields than the head") if None in row else given
    except csv.Error as error:
        yield rows.line_num, ValueError(f"it is not CSV: {error}")


def edit_all(
    backbone: Backbone,
    editor: Editor[Any],
    facts: Sequence[Query],
    folder: Path,
    *,
    batch: int = 16,
    progress: Progress = silent,
) -> list[Outcome]:
    """Make an edit of each fact, independently of the others, and save it at once in a folder of its own.

    An edit that is there already is left as it is, so a run that was interrupted goes on where it stopped. Facts of
    like length share a pass, and all are checked before the first edit is made. `LOG` names what became of each.

    Args:
        backbone: The model.
        editor: The method.
        facts: With targets; one that comes twice is edited once.
        folder: Of the edits' folders.
        batch: Edits that are made in one pass.
        progress: Told how many are made.

    Returns:
        What became of each fact, in their order.

    Raises:
        UnikeError: A fact cannot be edited, or a place cannot be written.
    """
    if not editor.sequential:
        raise UnikeError(f"{editor.name!r} puts one new fact in force at a time; use a method that holds several")
    facts = given_queries(facts, "fact")
    for fact in facts:
        editor.check(backbone, fact)
    _log(folder, [])  # the folder is known by it, even if there is no edit yet
    names = {fact: name_of(backbone, editor, fact) for fact in facts}
    logged = {outcome.edit: outcome for outcome in read_log(folder)}
    newest = {(each.prompt, each.image): each.edit for each in logged.values()}
    found = {fact: logged[name] for fact, name in names.items() if name in logged and is_there(folder / name)}
    _log(folder, [each for each in found.values() if newest[each.prompt, each.image] != each.edit])
    left = [fact for fact in names if fact not in found]
    left.sort(key=lambda fact: len(fact.prompt) + len(fact.target or ""))
    for with_picture in (False, True):
        alike = [fact for fact in left if (fact.image is not None) is with_picture]
        for start in range(0, len(alike), batch):
            progress("editing", len(found), len(names))
            part = alike[start : start + batch]
            found |= zip(part, _edit_some(backbone, editor, part, folder), strict=True)
    progress("editing", len(found), len(names))
    return [found[fact] for fact in facts]


def _edit_some(backbone: Backbone, editor: Editor[Any], facts: Sequence[Query], folder: Path) -> list[Outcome]:
    """Edits made in one pass, saved, asked and logged."""
    made = editor.edit(backbone, facts)
    room = backbone.room([fact.target or "" for fact in facts])
    answers = EditedModel(backbone, [made]).generate([fact.question for fact in facts], max_new_tokens=room)
    found = []
    for row, (fact, answer) in enumerate(zip(facts, answers, strict=True)):
        name, image = name_of(backbone, editor, fact), None if fact.image is None else str(fact.image)
        made[row].save_pretrained(folder / name)
        about: dict[str, Any] = {"prompt": fact.prompt, "image": image, "target": fact.target, "edit": name}
        found.append(Outcome(**about, answer=answer, took=fact.accepts(answer), new=True))
    _log(folder, found)
    return found


def _log(folder: Path, found: Sequence[Outcome]) -> None:
    lines = "".join(json.dumps(each.model_dump(exclude={"new"})) + "\n" for each in found)
    try:
        append_lines(folder / LOG, lines)
    except OSError as error:
        raise UnikeError(f"cannot write {folder / LOG}: {error.strerror}") from None


def read_log(folder: Path) -> list[Outcome]:
    """What was logged, the latest last; a line that a kill cut short says nothing, and its edit is made again."""
    try:
        with open_file(folder / LOG) as file:
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnikeError(f"cannot read {folder / LOG}: {error.strerror}") from None
    found: dict[str, Outcome] = {}
    for line in lines:
        try:
            outcome = checked(Outcome, parse_json(line))
        except ValueError:
            continue
        found.pop(outcome.edit, None)
        found[outcome.edit] = outcome
    return list(found.values())


def edits_in(folder: Path) -> list[Path]:
    """The folders of the edits that a run left, the newest last; the folder itself if it is no such.

    Raises:
        UnikeError: No edit was finished there.
    """
    if not (folder / LOG).is_file():
        return [folder]
    found = [folder / outcome.edit for outcome in read_log(folder)]
    if not found:
        raise UnikeError(f"{folder} has no edit; run unike edit --facts again")
    return found


def name_of(backbone: Backbone, editor: Editor[Any], fact: Query) -> str:
    """A folder's name that is the same for the same fact, model and method, and for no others."""
    about = [content_key(fact), fact.target, backbone.fingerprint(), editor.name, editor.config.model_dump_json()]
    about.append(editor.learned(backbone))
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def is_there(place: Path) -> bool:
    """Whether an edit was saved in a folder, whole."""
    try:
        SAVED.read(place)
    except UnikeError:
        return False
    return True
