"""The card of an edit on the hub, for people: the fact, what made the edit, for which model, and what was checked."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from unike.core.version import __version__
from unike.edits.edit import Edit

PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
REPO = re.compile(f"{PART}/{PART}")
"""What the hub calls a repository, ``organisation/name``."""


@dataclass(frozen=True)
class Check:
    """One question that was asked before an edit was pushed.

    Args:
        prompt: The question.
        before: The unedited model's answer.
        after: The edited model's.
        right: Whether that is the target.
    """

    prompt: str
    before: str
    after: str
    right: bool


def card(
    edit: Edit, described: Mapping[str, Any], repo: str, checks: Sequence[Check], pictures: Sequence[str] = ()
) -> str:
    """Markdown with a YAML head.

    Args:
        edit: As it is pushed.
        described: Its ``edit_config.json``.
        repo: ``organisation/name``.
        checks: What was asked; none if nothing was.
        pictures: Names of the files of pictures that go along.
    """
    fact, model = edit.facts[0], edit.source
    head: dict[str, Any] = {"library_name": "unike", "tags": ["unike", "knowledge-editing", edit.editor]}
    if REPO.fullmatch(model):
        head["base_model"] = model
    shown = [] if fact.image is None else ["--image", "PICTURE"]
    command = " ".join(["unike ask --model MODEL", *shown, "--prompt QUESTION", "--edit", f"hf://{repo}"])
    yaml = [f"{key}: {json.dumps(value)}" for key, value in head.items()]  # JSON is YAML
    parts = [
        "\n".join(["---", *yaml, "---"]),
        f"# An edit of {plain(model)}",
        f"An edit of the library `unike`: with it the model answers {len(edit)} question{'s' if len(edit) > 1 else ''} "
        "otherwise. It is no model, and brings none.",
        facts_table(edit),
        *(f"![the picture](./{name})" for name in pictures),
        f"```console\n$ {command}\n```",
        f'```python\nedit = unike.Edit.from_pretrained("{repo}")\n'
        "unike.EditedModel(model, [edit]).ask(picture, question)\n```",
        about(edit, described),
        "## Checks",
        checks_table(checks),
    ]
    return "\n\n".join(parts) + "\n"


def facts_table(edit: Edit) -> str:
    """Each fact: its question, its target, and the SHA-256 of its picture."""
    rows = []
    for fact, (_, known) in zip(edit.facts, edit.questions, strict=True):
        picture = "none" if fact.image is None else f"`{known}`" if known else "not known"
        rows.append((plain(fact.prompt), plain(fact.target or ""), picture))
    return table(("question", "answer", "SHA-256 of the picture"), rows)


def about(edit: Edit, described: Mapping[str, Any]) -> str:
    """What made it, for which model, in which versions, and how to tell that it is whole."""
    size = sum(tensor.nbytes for tensor in edit.tensors.values())
    settings = json.dumps(edit.config.fewest(), ensure_ascii=False)
    return table(
        ("", ""),
        [
            ("method", f"`{edit.editor}`, settings {plain(settings)}"),
            ("model", f"{plain(edit.source)}, fingerprint `{edit.fingerprint}`"),
            (
                "written with",
                f"unike {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
            ),
            ("tensors", f"{len(edit.tensors)}, {size:,} bytes"),
            ("seal (SHA-256 of both files)", f"`{described['sha256']}`"),
        ],
    )


def checks_table(checks: Sequence[Check]) -> str:
    """What was asked."""
    if not checks:
        return "The edit was not asked anything before it was pushed."
    rows = [(plain(c.prompt), plain(c.before), plain(c.after), "right" if c.right else "wrong") for c in checks]
    return table(("question", "answer without the edit", "with it", "verdict"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def plain(text: str) -> str:
    """What somebody wrote as text in one line: it is neither HTML nor Markdown."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~<>])", r"\\\1", " ".join(text.split()))
    return html.escape(escaped, quote=False).replace("\\&lt;", "&lt;").replace("\\&gt;", "&gt;") or "(nothing)"
