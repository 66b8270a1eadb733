"""What the gate is made from: which pictures, of which things, as each is seen alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preparing import CONFIG, FAST, QUESTION, Scripted
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.core.images import load_image
from unike.data.provenance import every_query
from unike.data.queries import EditCase, Probe, Query
from unike.editors.unike.calibration import calibrate
from unike.editors.unike.pictures import Pictures
from unike.editors.unike.prepare.config import PrepareConfig
from unike.editors.unike.prepare.gate import SHOWN, images_of, kinds, pairs_of, shown_by_hands, things
from unike.editors.unike.prepare.pipeline import is_prepared, prepare
from unike.editors.unike.prepare.views import Hand

pytestmark = pytest.mark.usefixtures("at_home")


def probed(cases: list[EditCase], gallery: list[Path]) -> list[EditCase]:
    """Each with another picture of the thing, that no case shares, and one of a thing of its kind."""
    pictures = [case.edit.image for case in cases]
    return [
        replace(
            case,
            probes=(
                *case.probes,
                Probe("m_generality", Query(QUESTION, gallery[20 + i])),
                Probe("near_locality", Query(QUESTION, pictures[i - 2])),
                Probe("m_locality", Query("Is it far?", pictures[i - 3])),
                Probe("portability", Query("Where does it live?", pictures[i])),
            ),
        )
        for i, case in enumerate(cases)
    ]


@pytest.mark.parametrize("family", ["llava", "blip2-opt", "qwen3_vl"])
def test_the_gate_is_that_of_every_picture_seen_alone(
    family: str, cases: list[EditCase], gallery: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thing is what an edit and its other picture show; near ones are those that are asked the same question."""
    backbone, chosen = tiny_backbone(family), probed(cases[:12], gallery)
    monkeypatch.setattr(backbone, "generate", Scripted())
    known = prepare(backbone, chosen, tmp_path / "out", PrepareConfig(**{**FAST, "rows": 5}))
    images = sorted([*gallery[:12], *gallery[20:32]])
    row = {image: number for number, image in enumerate(images)}
    alone = [backbone.run_to_split(backbone.encode([Query("What is this?", image)]), 0).pictures for image in images]
    same = [(row[gallery[i]], row[gallery[20 + i]]) for i in range(12)]
    near = [(row[gallery[i]], row[gallery[i - 2 + 12 * (i < 2)]]) for i in range(12)]
    thing, none = things(24, same), torch.zeros(24, dtype=torch.long)
    drawn = shown_by_hands(thing, none, FAST["gate_hands"])
    for row, hand in drawn:
        Hand.drawn(hand).show(load_image(images[row])).save(view := tmp_path / f"{row}-{hand}.png")
        alone.append(backbone.run_to_split(backbone.encode([Query(QUESTION, view)]), 0).pictures)
    of = torch.tensor([*range(24), *(row for row, _ in drawn)])
    pictures = Pictures(torch.cat(alone), thing[of], none[of * 0], torch.tensor([0] * 24 + [by for _, by in drawn]))
    gate, shares = calibrate(pictures, same, near, steps=FAST["gate_steps"])
    report = known.description["report"]["gate"]
    assert (report["cases"], report["pictures"], report["things"], report["views"]) == (12, 24, 12, 24)
    assert report["let_in"] == pytest.approx(shares, abs=0.1)
    assert known.gate is not None
    assert torch.allclose(known.gate.metric.mean, gate.metric.mean, atol=1e-4)
    assert known.gate.about.low == pytest.approx(gate.about.low, abs=1e-2)
    (known_z, z), seen = ((g.metric(pictures.seen) for g in (known.gate, gate)), pictures.seen)
    assert len(seen) == 48 and torch.allclose(known_z @ known_z.T, z @ z.T, atol=1e-2)


def test_made_up_hands_show_some_things_of_each_kind_once() -> None:
    thing = torch.arange(300).repeat(2)
    kind = (thing >= 290).long()
    drawn = shown_by_hands(thing, kind, 3)
    assert drawn == shown_by_hands(thing, kind, 3) and {hand for _, hand in drawn} == {1, 2, 3}
    for hand in (1, 2, 3):
        rows = torch.tensor([row for row, by in drawn if by == hand])
        assert len(thing[rows].unique()) == len(rows) and kind[rows].bincount().tolist() == [SHOWN, 10]
    assert {row for row, by in drawn if by == 1} != {row for row, by in drawn if by == 2}
    assert shown_by_hands(thing, kind, 0) == []


def test_a_picture_is_of_the_kind_that_the_first_case_says(gallery: list[Path]) -> None:
    probe = Probe("m_generality", Query(QUESTION, gallery[1]))
    flag = EditCase("a", Query(QUESTION, gallery[0], "cat"), (probe,), "flag")
    photo = EditCase("b", Query(QUESTION, gallery[2], "cat"), (probe,), "photo")
    assert kinds(gallery[:3], [flag, photo]).tolist() == [0, 0, 1]
    assert kinds(gallery[:3], [photo, flag]).tolist() == [0, 1, 1]


def test_things_are_what_pairs_link() -> None:
    assert things(6, [(0, 1), (4, 5), (5, 2)]).tolist() == [0, 0, 2, 1, 2, 2]
    assert things(3, []).tolist() == [0, 1, 2]
    assert things(3, [(0, 1), (1, 2), (2, 0), (0, 0)]).tolist() == [0, 0, 0]


def test_pairs_are_of_the_edits_picture_and_another(gallery: list[Path]) -> None:
    edit = Query(QUESTION, gallery[0], "cat")
    probes = [
        Probe("m_generality", Query(QUESTION, gallery[1])),
        Probe("m_generality", Query(QUESTION, gallery[0])),
        Probe("m_generality", Query(QUESTION, None)),
        Probe("m_locality", Query("Is it far?", gallery[3])),
    ]
    case = EditCase("a", edit, tuple(probes))
    assert images_of(case, "m_generality") == [gallery[1]], "its own picture and none are not another"
    assert pairs_of([case], "m_generality") == [(gallery[0], gallery[1])]
    assert pairs_of([case], "near_locality", "m_locality") == [(gallery[0], gallery[3])]
    nearer = replace(case, probes=(*case.probes, Probe("near_locality", Query(QUESTION, gallery[4]))))
    assert pairs_of([nearer], "near_locality", "m_locality") == [(gallery[0], gallery[4])], "the first that there is"
    assert pairs_of([replace(case, edit=Query(QUESTION, None, "cat"))], "m_generality") == []


def test_the_gate_may_be_made_from_other_cases(
    backbone: Backbone, cases: list[EditCase], gallery: list[Path], tmp_path: Path
) -> None:
    """What is learned otherwise stays the same; and other cases for the gate are other knowledge."""
    chosen = cases[:12]
    without = prepare(backbone, chosen, tmp_path / "without", CONFIG)
    scope = probed(cases[:12], gallery)
    known = prepare(backbone, chosen, tmp_path / "out", CONFIG, scope=scope)
    assert without.gate is None and known.gate is not None
    assert known.triplets == without.triplets
    for index, layer in known.layers.items():
        assert all(torch.equal(t, without.layers[index].tensors()[name]) for name, t in layer.tensors().items())
    assert known.description["data"] != without.description["data"]
    assert is_prepared(tmp_path / "out", backbone.source, chosen, CONFIG, scope=scope)
    for other in (None, scope[:11]):
        assert not is_prepared(tmp_path / "out", backbone.source, chosen, CONFIG, scope=other)


def test_there_may_be_no_gate(backbone: Backbone, cases: list[EditCase], gallery: list[Path], tmp_path: Path) -> None:
    """Because nobody wants one, or because there is nothing to draw a line between."""
    chosen = probed(cases[:12], gallery)
    known = prepare(backbone, chosen, tmp_path / "none", PrepareConfig(**FAST, gate_cases=0))
    assert known.gate is None and known.description["report"]["gate"] == {}
    for number, without in enumerate([{"m_generality"}, {"near_locality", "m_locality"}]):
        lacking = [replace(case, probes=tuple(p for p in case.probes if p.kind not in without)) for case in chosen]
        assert prepare(backbone, lacking, tmp_path / str(number), CONFIG).gate is None


def test_the_gate_is_not_calibrated_on_what_is_evaluated(
    backbone: Backbone, cases: list[EditCase], gallery: list[Path], tmp_path: Path
) -> None:
    chosen = probed(cases[:12], gallery)
    evaluated = Probe("m_locality", Query("??", cases[3].edit.image))
    against = [EditCase("e", Query("?", cases[15].edit.image), (evaluated,))]
    known = prepare(backbone, chosen, tmp_path / "out", CONFIG, against=against)
    kept = [c for c in chosen if cases[3].edit.image not in {q.image for q in every_query([c])}]
    assert known.description["report"]["gate"]["cases"] == len(kept) == 12 - 3
    few = prepare(backbone, chosen, tmp_path / "few", PrepareConfig(**FAST, gate_cases=5))
    assert few.description["report"]["gate"]["cases"] == 5


def test_one_thing_alone_gives_no_gate(
    backbone: Backbone, cases: list[EditCase], gallery: list[Path], tmp_path: Path
) -> None:
    """Where what is said to be near is another picture of the thing itself."""
    probes = [
        Probe("m_generality", Query(QUESTION, gallery[20])),
        Probe("near_locality", Query(QUESTION, gallery[20])),
    ]
    scope = [replace(cases[1], probes=tuple(probes))]
    assert prepare(backbone, cases[:12], tmp_path / "out", CONFIG, scope=scope).gate is None
