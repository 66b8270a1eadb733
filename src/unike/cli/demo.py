"""``unike demo``: one edit, and the five questions that tell a good edit from a bad one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unike.cli import _shared as shared
from unike.data.matching import exact_match
from unike.data.queries import PUBLISHED

if TYPE_CHECKING:
    from unike.data.queries import EditCase, Query

ORDER = 30

DEMO_CASE = "vqa-dev-0017"
"""Of PocketEdit's dev split."""

SHOWN = ("t_generality", "m_generality", "m_locality", "t_locality")

PROBES = {name: kind.says for name in SHOWN for kind in PUBLISHED if kind.name == name}
"""Kind of probe to what the table calls it, in the order of the table; the last two should not change."""


def demo(
    model: shared.Model = "mini",
    out: Annotated[Path, typer.Option(help="Where to save the edit.")] = Path("edits/demo"),
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    as_json: shared.Json = False,
) -> None:
    """Edit one answer, and show what else changes with it."""
    with shared.working("starting"):
        from unike import api
        from unike.data.datasets.pocket import Pocket

        shared.check_loading(device, dtype, quantize)
        shared.check_place(out)
        case = next(case for case in Pocket().cases("dev") if case.case_id == DEMO_CASE)
    backbone, load_seconds = shared.load(model, device, dtype, quantize)

    asked = questions(case)
    target = case.edit.target or ""
    with shared.working("asking") as report:
        room = backbone.room([target])
        before = shared.answers(backbone, list(asked.values()), [], room)
        made, seconds = shared.edited(backbone, api.make_editor(), case.edit, report)
        report("asking again")
        after = shared.answers(backbone, list(asked.values()), [made], room)
    made.save_pretrained(out)

    rows = []
    for (kind, query), old, new in zip(asked.items(), before, after, strict=True):
        verdict = judge(kind, old, new, target)
        picture = None if query.image is None else "/".join(query.image.with_suffix("").parts[-3:])
        rows.append(shared.Row(PROBES.get(kind, "the edit"), query.prompt, picture, old, new, verdict))
    if as_json:
        shared.print_json(
            {
                "model": model,
                "case": case.case_id,
                "target": target,
                "answers": shared.as_json(rows),
                "load_seconds": round(load_seconds, 3),
                "edit_seconds": round(seconds, 3),
                "saved": str(out),
            }
        )
        return
    typer.echo(f"{model} is taught to answer {case.edit.prompt!r} with {target!r}:")
    shared.OUT.print(shared.table(rows, kinds=True))
    typer.echo(f"loaded in {load_seconds:.1f} s, edited in {seconds:.1f} s, saved in {out}")


def questions(case: "EditCase") -> "dict[str, Query]":
    """The edit itself and one probe of each kind, in the order of the table."""
    first = {probe.kind: probe.query for probe in reversed(case.probes)}
    return {"edit": case.edit} | {kind: first[kind] for kind in PROBES}


def judge(kind: str, before: str, after: str, target: str) -> str:
    """Right or wrong where the target is the answer, unchanged or changed where the edit has no business."""
    if kind.endswith("locality"):
        return "unchanged" if before == after else "changed"
    return "right" if exact_match(after, target) else "wrong"
