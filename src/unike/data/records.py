"""From a record in MMEdit's keys to an edit case: what every data set here is read with.

======================  ====================================================================
raw key                 becomes
======================  ====================================================================
``src``, ``alt``        prompt and target of the edit (and ``image``)
``rephrase``            ``t_generality``: this prompt, or each of a list, the same image and target
``image_rephrase``      ``m_generality``: ``src`` about this image, the same target
``loc``, ``loc_ans``    ``t_locality``: a question without an image
``m_loc*``              ``m_locality``: image ``m_loc``, question ``m_loc_q``, answer ``m_loc_a``
``m_loc_more``          more of these (PocketEdit 2): ``[{"image", "Question", "Answer"}]``
``near``                ``near_locality`` (PocketEdit 2): the same
``port_new``            ``portability`` (VLKEB, PocketEdit): ``[{"Q&A": {"Question", "Answer"}}]``, or null;
                        with ``port_type`` (VLKEB), ``"1-hop"`` to ``"4-hop"``: how far it is from the fact
``spec``                ``specificity`` (PocketEdit): ``[{"Question", "Answer"}]``
``pred``                ignored: the wrong answer of BLIP-2, never of another backbone
======================  ====================================================================

Questions are text; answers are text or numbers, or a list of these, any of which is right: the first is the target. An
edit about text alone has null for ``image`` and ``image_rephrase``, and no ``m_generality``.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unike.core.errors import UnikeError
from unike.data.queries import EditCase, Probe, Query

PICTURES = ("image", "image_rephrase")
ANSWERS = ("alt", "loc_ans", "m_loc_a")
HOP = re.compile(r"([1-9])-hop$")
REQUIRED = ("src", "rephrase", "alt", "image", "image_rephrase", "loc", "loc_ans", "m_loc", "m_loc_q", "m_loc_a")
PICTURED = {"m_loc_more": "m_locality", "near": "near_locality"}
ASKED = {"port_new": "portability", "spec": "specificity"}


def case_from_record(
    record: Mapping[str, Any], *, case_id: str, image: Callable[[str], Path], where: str, domain: str = ""
) -> EditCase:
    """One record in MMEdit's keys as an `EditCase`.

    Args:
        record: See the table in this module's docstring.
        case_id: Unique in its data set.
        image: Turns a record's image path into a path on disk.
        where: File and index, for messages.
        domain: A tag to group results by.

    Raises:
        UnikeError: A key is missing, the target or a prompt is empty, or a text is not valid.
    """
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise UnikeError(f"{where}: {', '.join(missing)} missing")
    lone = PICTURES if all(record[key] is None for key in PICTURES) else ()
    once = [key for key in REQUIRED if key not in (*ANSWERS, *lone, "rephrase")]
    text = {key: _text(record[key], f"{where}: {key}") for key in once}
    answers = {key: _answers(record[key], f"{where}: {key}") for key in ANSWERS}
    targets = tuple(answer.strip() for answer in answers["alt"])
    if not all(targets) or not text["src"].strip():
        raise UnikeError(f"{where}: the {'prompt (src)' if all(targets) else 'target (alt)'} is empty")
    _check_lines(targets, f"{where}: the target (alt)")
    picture = None if lone else image(text["image"])
    probes = [Probe("t_generality", _asked(each, picture, targets)) for each in _rewordings(record, where)]
    if not lone:
        probes.append(Probe("m_generality", _asked(text["src"], image(text["image_rephrase"]), targets)))
    probes.append(Probe("t_locality", _asked(text["loc"], None, answers["loc_ans"])))
    probes.append(Probe("m_locality", _asked(text["m_loc_q"], image(text["m_loc"]), answers["m_loc_a"])))
    for key, kind in PICTURED.items():
        probes += [Probe(kind, query) for query in _pictured(record, key, image, where)]
    for key, kind in ASKED.items():
        probes += [
            Probe(kind, _asked(question, picture, right), hop)
            for question, right, hop in _questions(record, key, where)
        ]
    for probe in probes:
        if not probe.query.prompt.strip():
            raise UnikeError(f"{where}: the question for {probe.kind} is empty")
    return EditCase(case_id, _asked(text["src"], picture, targets), tuple(probes), domain)


def _asked(prompt: str, picture: Path | None, right: tuple[str, ...]) -> Query:
    return Query(prompt, picture, right[0], right[1:])


def _rewordings(record: Mapping[str, Any], where: str) -> list[str]:
    """One, or every one of a list."""
    value = record["rephrase"]
    if value == []:
        raise UnikeError(f"{where}: rephrase is an empty list; give at least one")
    return [_text(each, f"{where}: rephrase") for each in (value if isinstance(value, list) else [value])]


def _pictured(record: Mapping[str, Any], key: str, image: Callable[[str], Path], where: str) -> list[Query]:
    """The questions of ``near`` or ``m_loc_more``, each with a picture of its own or, of null, none."""
    pictures = [entry.get("image") if isinstance(entry, dict) else None for entry in _entries(record, key, where)]
    return [
        _asked(
            question,
            None if name is None else image(_text(name, f"{where}: image {number} of {key}")),
            right,
        )
        for number, (name, (question, right, _)) in enumerate(
            zip(pictures, _questions(record, key, where), strict=True)
        )
    ]


def _entries(record: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """What a key that holds a list has; null and a missing key are nothing."""
    entries = record.get(key)
    if not isinstance(entries, list | None):
        raise UnikeError(f"{where}: {key} is not a list of questions with answers")
    return entries or []


def _questions(record: Mapping[str, Any], key: str, where: str) -> list[tuple[str, tuple[str, ...], int | None]]:
    """The questions of a list, their answers and hops."""
    entries = _entries(record, key, where)
    try:
        pairs = [entry["Q&A"] if key == "port_new" else entry for entry in entries]
        found = [(pair["Question"], pair["Answer"]) for pair in pairs]
        hops = [HOP.match(str(entry.get("port_type"))) for entry in entries]
    except (LookupError, TypeError, AttributeError):
        raise UnikeError(f"{where}: {key} is not a list of questions with answers") from None
    asked = [
        (
            _text(question, f"{where}: question {number} of {key}"),
            tuple(answer.strip() for answer in _answers(right, f"{where}: answer {number} of {key}")),
            hop and int(hop[1]),
        )
        for number, ((question, right), hop) in enumerate(zip(found, hops, strict=True))
    ]
    for _, right, _ in asked if key == "port_new" else ():
        if not all(right):
            raise UnikeError(f"{where}: the answer to a question of port_new is empty")
        _check_lines(right, f"{where}: the answer to a question of port_new")
    return asked


def _answers(value: Any, what: str) -> tuple[str, ...]:
    """An answer, or a list of them, each once.

    Raises:
        UnikeError: As `_text`, or the list is empty.
    """
    if isinstance(value, list) and not value:
        raise UnikeError(f"{what} is an empty list; give at least one answer")
    every = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_text(each, what) for each in every))


def _check_lines(answers: Sequence[str], what: str) -> None:
    """Refuse answers that are never right: of what a model says one line counts."""
    for answer in answers:
        if len(answer.splitlines()) > 1:
            raise UnikeError(f"{what} has several lines, and an answer is one: {json.dumps(answer)[:40]}")


def _text(value: Any, what: str) -> str:
    """A text, or a number such as 2 as one.

    Raises:
        UnikeError: It is neither, or has half a character in it, which JSON can hold and no model reads.
    """
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str):
        raise UnikeError(f"{what} is {json.dumps(value)[:40]}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnikeError(f"{what} is not valid text: {json.dumps(value)[:40]}") from None
    return value
