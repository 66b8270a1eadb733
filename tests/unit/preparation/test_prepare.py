"""From cases to knowledge: what is read in batches is what each question gives alone, and nothing leaks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from preparing import ANSWERS, CONFIG, FAST, QUESTION, Scripted, alone, asked, paint
from tinies import tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.folders import WORK
from unike.data.leaks import LEAKS, content_hash
from unike.data.queries import EditCase, Probe, Query
from unike.editors.ft import FT
from unike.editors.unike.knowledge import CONFIG_FILE, TENSOR_FILE, Knowledge, as_attention_output
from unike.editors.unike.prepare.candidates import text_questions
from unike.editors.unike.prepare.collect import judge
from unike.editors.unike.prepare.config import PrepareConfig
from unike.editors.unike.prepare.pipeline import is_prepared, prepare
from unike.editors.unike.spaces import fit_w_zeta, zeta

pytestmark = pytest.mark.usefixtures("at_home")


def test_from_cases_to_knowledge(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    known = prepare(backbone, cases, tmp_path / "out", CONFIG, tags={"case-1": "incorrect reasoning"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [CONFIG_FILE, TENSOR_FILE]
    found = Knowledge.from_pretrained(tmp_path / "out")
    found.check(backbone)
    assert found.fingerprint == known.fingerprint
    assert found.triplets == known.triplets

    wrong = [case for case in cases if int(case.case_id.removeprefix("case-")) % 10]
    wrong = [case for case in wrong if Scripted().usual(case.edit) != case.edit.target]
    report = known.description["report"]
    assert report["answers"] == {"asked": 40, "right": 40 - len(wrong), "wrong": len(wrong), "beyond the limit": 0}
    assert [(t.prompt, t.positive, t.negative) for t in known.triplets] == [
        (QUESTION, case.edit.target, Scripted().usual(case.edit)) for case in wrong
    ]
    assert [t.tag for t in known.triplets] == ["incorrect reasoning"] + [""] * (len(wrong) - 1)
    assert report["tags"] == {"incorrect reasoning": 1, "untagged": len(wrong) - 1}
    assert all(t.image.content == content_hash(c.edit.image) for t, c in zip(known.triplets, wrong, strict=True))
    assert report["text_questions"] == 10
    assert known.description["config"]["layers"] == [-2, -1]

    for layer in (-2, -1):
        check_states(backbone, known, layer, wrong, [f"What is {i} + 1?" for i in range(10)])
        check_directions(backbone, known, layer, wrong)
        assert report["layers"][str(layer)]["truthfulness"]["epoch"] <= 3
        assert report["layers"][str(layer)]["retrieval"]["n"] == 3


def check_states(backbone: Backbone, known: Knowledge, layer: int, cases: list[EditCase], texts: list[str]) -> None:
    """Everything that is read in batches is what each question gives alone."""
    kept, at_p = known.layer(layer), []
    for row, (case, triplet) in enumerate(zip(cases, known.triplets, strict=True)):
        true, false = (
            alone(backbone, replace(case.edit, target=answer), layer) for answer in (triplet.positive, triplet.negative)
        )
        for name, expected in [("h_sem", true["in_p"]), ("h_pos", true["in"]), ("h_neg", false["in"])]:
            assert torch.allclose(getattr(kept, name)[row], expected, atol=1e-4), name
        assert torch.allclose(kept.raw_pos[row], true["out"], atol=1e-4)
        at_p.append(true["in_p"])
    of_texts = torch.stack([alone(backbone, Query(text), layer)["in_p"] for text in texts]).mean(dim=0)
    assert torch.allclose(kept.mean, (torch.stack(at_p).mean(dim=0) + of_texts) / 2, atol=1e-4)


def check_directions(backbone: Backbone, known: Knowledge, layer: int, cases: list[EditCase]) -> None:
    """Zetas, their maps and the scale of what is written follow from encoders and states."""
    kept, site = known.layer(layer), backbone.attention(layer)
    written: dict[str, list[Tensor]] = {"positive": [], "negative": []}
    for case, triplet in zip(cases, known.triplets, strict=True):
        for side, rows in written.items():
            rows.append(alone(backbone, replace(case.edit, target=getattr(triplet, side)), layer)["ffn"])
    pos, neg = (torch.stack(rows) for rows in written.values())
    f = [kept.truthfulness(states) for states in (kept.h_pos, kept.h_neg)]
    g = [kept.semantic(as_attention_output(site, states)) for states in (kept.h_pos, kept.h_neg)]
    for (true, false), direction, to_write in [(f, kept.zeta, kept.w_zeta), (g, kept.semantic_zeta, kept.w_semantic)]:
        assert torch.allclose(direction, zeta(true, false), atol=1e-5)
        assert torch.allclose(to_write, fit_w_zeta(true - false, pos - neg, CONFIG.ridge), rtol=1e-2, atol=1e-3)
    assert kept.ffn_norm.item() == pytest.approx(pos.norm(dim=1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("family", ["blip2-opt", "qwen3_vl"])
def test_other_families(family: str, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone(family)
    monkeypatch.setattr(backbone, "generate", Scripted())
    known = prepare(backbone, cases[:12], tmp_path / "out", CONFIG)
    wrong = [case for case in cases[:12] if Scripted().usual(case.edit) != case.edit.target]
    check_states(backbone, known, -2, wrong, [f"What is {i} + 1?" for i in range(10)])
    check_directions(backbone, known, -2, wrong)


def test_a_limit_is_spread_evenly_and_asks_no_more_than_it_needs(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = prepare(backbone, cases, tmp_path / "out", PrepareConfig(**FAST | {"limit": 9, "rows": 4}))
    assert len(known) == 9
    assert len(asked(backbone)) <= 16
    numbers = sorted(int(query.image.stem) for query in asked(backbone) if query.image)
    assert numbers[0] < 10 and numbers[-1] >= 30, "from all over the cases"


def test_what_is_there_is_not_made_again(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    out, against = tmp_path / "out", [EditCase("e", Query("Who?", None, "me"), ())]
    first = prepare(backbone, cases, out, CONFIG, against=against)
    stamps = [path.stat().st_mtime_ns for path in sorted(out.iterdir())]
    assert is_prepared(out, "tiny-llava", cases, CONFIG, against=against)
    assert prepare(backbone, cases, out, CONFIG, against=against).fingerprint == first.fingerprint
    assert [path.stat().st_mtime_ns for path in sorted(out.iterdir())] == stamps
    other = PrepareConfig(**FAST, seed=1)
    for changed in [
        ("tiny-other", cases, CONFIG, against),
        ("tiny-llava", cases[1:], CONFIG, against),
        ("tiny-llava", cases, other, against),
        ("tiny-llava", cases, CONFIG, []),
    ]:
        assert not is_prepared(out, *changed[:3], against=changed[3])
    second = prepare(backbone, cases, out, other, against=against)
    assert second.description["config"]["seed"] == 1
    assert Knowledge.from_pretrained(out).fingerprint == second.fingerprint != first.fingerprint
    assert not (out / WORK).exists()


def test_what_cannot_be_prepared(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years of work")
    with pytest.raises(UnikeError, match="choose another folder"):
        prepare(backbone, cases, tmp_path / "mine", CONFIG)
    with pytest.raises(UnikeError, match="layer 7 is out of range"):
        prepare(backbone, cases, tmp_path / "out", PrepareConfig(layers=(7,)))
    with pytest.raises(UnikeError, match="names a layer of tiny-llava twice"):
        prepare(backbone, cases, tmp_path / "out", PrepareConfig(layers=(-1, 3)))
    edit = FT(steps=0).edit(backbone, cases[0].edit)
    with pytest.raises(UnikeError, match="detach the edits"), edit.attached(backbone):
        prepare(backbone, cases, tmp_path / "out", CONFIG)
    backbone.generate = Scripted(lambda query: ANSWERS[int(query.image.stem) % 8])  # type: ignore[assignment, union-attr]
    with pytest.raises(UnikeError, match="no clear mistake among 40 answers"):
        prepare(backbone, cases, tmp_path / "out", CONFIG)
    with pytest.raises(UnikeError, match="none of 1 cases can be learned from: 1 no picture"):
        prepare(backbone, [replace(cases[0], edit=Query("Why?", None, "so"))], tmp_path / "none", CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden": 3}, "unknown setting 'hiden'; did you mean 'hidden'"),
        ({"tau": 0}, "setting tau=0: "),
        ({"store_dtype": "int8"}, "setting store_dtype='int8': "),
        ({"layers": []}, "setting layers="),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnikeError, match=message):
        PrepareConfig.parse(settings)


# ---------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("The grand piano.", "right"),
        ("", "empty"),
        ("...", "empty"),
        ("the", "empty"),
        ("piano", "substring"),
        ("grand pianos", "substring"),
        ("piano, grand", "reordered"),
        ("a grand sofa", "wrong"),
        ("grand grand piano sofa and so on", "truncated"),
    ],
)
def test_verdicts(answer: str, verdict: str) -> None:
    assert judge(tiny_backbone("llava"), answer, "grand piano", 25) == verdict


def test_answers_end_alike(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    """A full stop behind one kind of answer alone would tell it from the other."""
    backbone.generate = Scripted(lambda query: "a zebra. ")  # type: ignore[assignment]
    ended = [replace(case, edit=replace(case.edit, target=f"{case.edit.target}!")) for case in cases[:8]]
    known = prepare(backbone, ended, tmp_path / "out", CONFIG)
    assert {t.negative for t in known.triplets} == {"a zebra"}
    assert [t.positive for t in known.triplets] == list(ANSWERS)
    assert known.description["report"]["answer_tokens"] == {"pos": 3.5, "neg": 7.0}
    assert known.description["report"]["layers"]["-1"]["probe"] == {
        "h": None,
        "f": None,
        "g": None,
        "n": 0,
        "answers": 0,
    }


# ---------------------------------------------------------------------- leaks


def test_leaks_are_counted_and_stay_out(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    """A picture of a probe, a picture like one, a question, one case twice, and a question without a picture."""
    like = paint(tmp_path / "like.jpg", 2, quality=90)
    own = replace(cases[5], edit=replace(cases[5].edit, prompt="What sits on the mat?"))
    against = [
        EditCase("a", Query("?", tmp_path / "like.jpg", "x"), (Probe("m_locality", Query("??", cases[1].edit.image)),)),
        EditCase("b", Query("What sits on the mat?", None, "x"), (Probe("t_locality", Query("What is 3 + 1?")),)),
    ]
    mixed = [*cases[:5], own, *cases[6:], cases[7], replace(cases[8], edit=Query("2 + 2?", None, "five"))]
    known = prepare(backbone, mixed, tmp_path / "out", CONFIG, against=against)
    candidates = known.description["report"]["candidates"]
    assert candidates == {
        "cases": 42,
        "dropped": {"no picture": 1, **dict.fromkeys(LEAKS, 1), "repeated": 1},
        "left": 37,
    }
    numbers = {int(query.image.stem) for query in asked(backbone) if query.image}
    assert numbers == set(range(40)) - {1, 2, 5}
    assert content_hash(like) != content_hash(cases[2].edit.image)  # type: ignore[arg-type]
    assert text_questions(cases, against) == [f"What is {i} + 1?" for i in range(10) if i != 3]
