"""One export from edits to a folder: what it is made of, written, asked, and only then put in its place."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from unike import api
from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.folders import check_folder, given_folder, new_folder, try_place
from unike.core.permissions import as_new_files
from unike.core.progress import Progress, silent
from unike.core.version import __version__
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel
from unike.edits.files import is_hash
from unike.edits.given import given_edits, given_model
from unike.edits.routing import RoutingEdit
from unike.edits.weights import WeightUpdate
from unike.export import adapter, distillation, questions, updates
from unike.export.distillation import Recipe
from unike.export.questions import Asked
from unike.export.scoring import Row, Score, answers, as_json, scores_of
from unike.export.updates import Factors
from unike.export.writing import readme, write_model

LORA, MERGED = FORMATS = ("lora", "merged")

EXPORT_FILE = "export.json"
"""What an export's folder is known by."""


@dataclass(frozen=True, eq=False)
class Exported:
    """What was written.

    Args:
        folder: Where.
        format: Of `FORMATS`.
        described: What ``export.json`` says.
        scores: Of each kind of question.
        rows: Every question with its answers.
    """

    folder: Path
    format: str
    described: dict[str, Any]
    scores: list[Score]
    rows: list[Row]

    @property
    def is_exact(self) -> bool:
        """Whether nothing was left out or learned."""
        return bool(self.described["how"] == "exact")


def export(
    backbone: Backbone,
    edits: Edit | Sequence[Edit],
    out: str | Path,
    *,
    format: str = LORA,
    anchors: Anchors | None = None,
    progress: Progress = silent,
    **recipe: Any,
) -> Exported:
    """Write edits as a LoRA adapter or as the weights of a model, which act without unike, always, and for good.

    Args:
        backbone: The model they were made for; it is left as it was.
        edits: Single ones, oldest first.
        out: The folder to write; an export that is there is replaced.
        format: ``"lora"``, a PEFT adapter, or ``"merged"``, a transformers model.
        anchors: Unrelated questions, for what is learned and for what is asked; None for `unike.api.default_anchors`.
        progress: Told what is done.
        **recipe: See `Recipe`.

    Raises:
        UnikeError: A method rewrites or routes questions, a change has no low rank, the place cannot be written, peft
            is missing, or the model's weights cannot be changed.
    """
    backbone, folder, settings = given_model(backbone), given_folder(out), Recipe.parse(recipe)
    stack, start = given_edits(edits), time.perf_counter()
    check(stack, folder, format)
    model = EditedModel(backbone, stack)
    exact = updates.exact_updates(model)
    if format == MERGED:
        updates.check_mergeable(backbone)
    if exact is None or format == LORA:
        adapter.check_peft()
        adapter.check_bare(backbone)
    chosen = api.default_anchors() if anchors is None else anchors
    facts = [fact for edit in model.edits for fact in edit.facts]
    asking = Asking(backbone, backbone.room([fact.target or "" for fact in facts]), progress)
    made = (
        learned(model, facts, chosen, settings, asking) if exact is None else rewritten(asking, exact, format, settings)
    )
    asked = questions.held_out(facts, chosen.queries)
    before, edited = asking.of(EditedModel(backbone), asked, "unedited"), asking.of(model, asked, "edited")
    with new_folder(folder, known_by=EXPORT_FILE) as place:
        after = asked_of_what_was_written(asking, made, format, place, asked)
        rows = [Row(*each) for each in zip(asked, before, edited, after, strict=True)]
        scores = scores_of(rows)
        described = description(model, made, format, settings) | {"seconds": round(time.perf_counter() - start, 1)}
        described |= as_json(scores, rows)
        (place / EXPORT_FILE).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (place / "README.md").write_text(readme(format, described), encoding="utf-8")
        as_new_files(place)
    return Exported(folder, format, described, scores, rows)


def check(edits: Sequence[Edit], folder: Path, format: str) -> None:
    """Refuse what cannot be exported, before anything slow.

    Raises:
        UnikeError: As `export`.
    """
    if format not in FORMATS:
        raise UnikeError(f"--format {format!r} is none of {', '.join(FORMATS)}")
    if not edits:
        raise UnikeError("there is no edit to export; give at least one")
    for edit in edits:
        if isinstance(edit, RoutingEdit):
            raise UnikeError(
                f"{edit.editor!r} rewrites or routes questions, which no weight does, so its edits cannot be exported; "
                "serve them with unike, or make the edit by a method that acts within the model"
            )
        if not edit.tensors:
            raise UnikeError(f"edits of {edit.editor!r} change nothing, so there is nothing to export")
        if len(edit) > 1:
            raise UnikeError(f"{edit!r} is of {len(edit)} facts; export single edits: edit[i]")
    check_folder(folder, known_by=EXPORT_FILE)
    try_place(folder)


# ---------------------------------------------------------------------- what is written


@dataclass(frozen=True, eq=False)
class Made:
    """Edits as changes of weights.

    Args:
        how: ``"exact"``; ``"cut"`` to a rank; or ``"learned"``.
        updates: One a map.
        factors: The same as a LoRA has them; none where they are not wanted.
        about: Further figures for ``export.json``.
    """

    how: str
    updates: Sequence[WeightUpdate]
    factors: Sequence[Factors] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Asking:
    """How questions are asked in an export.

    Args:
        backbone: The model.
        room: The longest answer, in tokens.
        progress: Told how many are answered.
    """

    backbone: Backbone
    room: int
    progress: Progress

    def of(self, model: EditedModel, asked: Sequence[Asked], which: str) -> list[str]:
        """Answers of the unedited, the edited or the exported model."""
        return answers(model, asked, self.room, f"asking the {which} model", self.progress)


def rewritten(asking: Asking, exact: Sequence[WeightUpdate], format: str, settings: Recipe) -> Made:
    """Of edits that are changes of weights."""
    if format == MERGED:
        if settings.rank is not None:
            raise UnikeError("these edits are merged as they are, of whatever rank; leave --rank out")
        return Made("exact", exact)
    names = updates.names_of(asking.backbone, [update.linear for update in exact])
    factors = updates.factorised(exact, settings.rank, names, asking.progress)
    lost = {name: round(each.lost, 4) for name, each in zip(names, factors, strict=True) if each.lost}
    return Made("cut" if lost else "exact", exact, factors, {"left_out": lost} if lost else {})


def learned(model: EditedModel, facts: Sequence[Query], anchors: Anchors, settings: Recipe, asking: Asking) -> Made:
    """Of edits that are more than that."""
    layer = distillation.lowest_layer(model)
    asked = questions.lessons(facts, anchors.queries)
    groups = distillation.taught(model, asked, layer, asking.room, settings.seed, asking.progress)
    factors, left = distillation.distilled(model.backbone, groups, layer, settings, asking.progress)
    about = {"lessons": len(asked), "lowest_layer": layer, "divergence": round(left, 5)}
    return Made("learned", [WeightUpdate(each.linear, each.writes, each.reads) for each in factors], factors, about)


def asked_of_what_was_written(
    asking: Asking, made: Made, format: str, place: Path, asked: Sequence[Asked]
) -> list[str]:
    """Write it, and ask the model with it: the adapter as it is read back, the weights as they are saved."""
    bare = EditedModel(asking.backbone)
    if format == LORA:
        adapter.write_adapter(asking.backbone, made.factors, place)
        with adapter.adapter_of(asking.backbone, place):
            return asking.of(bare, asked, "exported")
    with updates.merged(made.updates):
        asking.progress("writing the weights", 0, 1)
        write_model(asking.backbone, place)
        asking.progress("writing the weights", 1, 1)
        return asking.of(bare, asked, "exported")


def description(model: EditedModel, made: Made, format: str, settings: Recipe) -> dict[str, Any]:
    """What ``export.json`` says beside the scores."""
    backbone = model.backbone
    facts = [
        {
            "editor": edit.editor,
            "prompt": fact.prompt,
            "target": fact.target,
            "picture": known if is_hash(known) else None,
        }
        for edit in model.edits
        for fact, (_, known) in zip(edit.facts, edit.questions, strict=True)
    ]
    rank = max((len(each.reads) for each in made.factors), default=None)
    return {
        "unike": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "format": format,
        "how": made.how,
        "keeps_gate": False,
        "rank": rank,
        "backbone": {"source": backbone.source, "adapter": backbone.name, "fingerprint": backbone.fingerprint()},
        "edits": facts,
        "recipe": settings.model_dump(mode="json") if made.how == "learned" else None,
        **made.about,
    }
