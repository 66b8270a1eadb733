"""From cases to knowledge on a tiny model whose answers are scripted, because a random one is never clearly wrong."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tinies import tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.core.errors import UnikeError
from unike.data.leaks import LEAKS, LeakGuard, content_hash, perceptual_hash
from unike.data.provenance import every_query
from unike.data.queries import EditCase, Probe, Query
from unike.editors.unike.gate import calibrate, separation
from unike.editors.unike.knowledge import CONFIG_FILE, TENSOR_FILE, Knowledge, as_attention_output
from unike.editors.unike.memory import read_entries
from unike.editors.unike.preparation import (
    WORK,
    PrepareConfig,
    Work,
    far_apart,
    gate_layers,
    is_prepared,
    judge,
    prepare,
    text_questions,
)
from unike.editors.unike.spaces import fit_w_zeta, zeta

pytestmark = pytest.mark.usefixtures("at_home")

FAST = {
    "layers": (-2, -1),
    "hidden": 8,
    "truth_width": 4,
    "max_epochs": 3,
    "batch": 8,
    "rows": 16,
    "store_dtype": "float32",
}
CONFIG = PrepareConfig(**FAST)

ANSWERS = ("cat", "dog", "cow", "pig", "hen", "fox", "bee", "owl")
QUESTION = "What is this?"


def paint(path: Path, seed: int, **kwargs: Any) -> Path:
    pixels = torch.randint(0, 256, (3, 3, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).resize((48, 48)).save(path, **kwargs)
    return path


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty pictures, no two alike."""
    folder = tmp_path_factory.mktemp("gallery")
    return [paint(folder / f"{number}.png", number) for number in range(40)]


@pytest.fixture(scope="module")
def cases(gallery: list[Path]) -> list[EditCase]:
    """What forty pictures show, and forty questions without a picture, of which ten are different."""
    return [
        EditCase(
            f"case-{i}",
            Query(QUESTION, picture, ANSWERS[i % 8]),
            (Probe("t_locality", Query(f"What is {i % 10} + 1?")), Probe("t_generality", Query("And this?", picture))),
        )
        for i, picture in enumerate(gallery)
    ]


class Scripted:
    """Stands in for ``backbone.generate``: wrong about every picture but each tenth, and counting."""

    def __init__(self, say: Callable[[Query], str] | None = None) -> None:
        self.asked: list[Query] = []
        self.say = say or self.usual

    def __call__(self, queries: Sequence[Query], *, max_new_tokens: int) -> list[str]:
        self.asked += queries
        return [self.say(query) for query in queries]

    def usual(self, query: Query) -> str:
        assert query.image is not None
        number = int(query.image.stem)
        return ANSWERS[number % 8 if number % 10 == 0 else (number * 3 + 1) % 8 - 1]


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    tiny = tiny_backbone("llava")
    monkeypatch.setattr(tiny, "generate", Scripted())
    return tiny


def asked(backbone: Backbone) -> list[Query]:
    return backbone.generate.asked  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- from end to end


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
    assert all(t.image_hash == content_hash(c.edit.image) for t, c in zip(known.triplets, wrong, strict=True))
    assert report["text_questions"] == 10
    assert known.description["config"]["layers"] == [-2, -1]

    for layer in (-2, -1):
        check_states(backbone, known, layer, wrong, [f"What is {i} + 1?" for i in range(10)])
        check_directions(backbone, known, layer, wrong)
        assert report["layers"][str(layer)]["truthfulness"]["epoch"] <= 3
        assert report["layers"][str(layer)]["retrieval"]["n"] == 3


def alone(backbone: Backbone, query: Query, layer: int) -> dict[str, Tensor]:
    """The states of one question by itself, ``[D]`` each."""
    state = backbone.run_to_split(backbone.encode([query]), layer)
    with trace([backbone.attention(layer).module, backbone.ffn(layer).outputs]) as (attention, network):
        backbone.run_from_split(state)
    p, last = int(state.prompt_last), -2 if query.target else -1  # the end-of-sequence token comes behind a target
    if query.target:
        (h_sem, h_answer), *_ = read_entries(backbone, state, [layer]).values()
        assert torch.allclose(attention.input[0, p], h_sem[0, 0]) and torch.allclose(
            attention.input[0, last], h_answer[0, 0]
        )
    return {
        "in_p": attention.input[0, p],
        "in": attention.input[0, last],
        "out": attention.output[0][0, last],
        "ffn": network.output.reshape(state.hidden.shape)[0, last],
    }


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


def test_beginnings_of_the_order_are_spread() -> None:
    assert sorted(far_apart(50)) == list(range(50))
    for length in (5, 10, 20):
        some = [0, *sorted(far_apart(50)[:length]), 50]
        assert max(b - a for a, b in pairwise(some)) <= 3 * 50 / length


# ---------------------------------------------------------------------- the gate


def probed(cases: list[EditCase]) -> list[EditCase]:
    """With every kind of probe."""
    pictures = [case.edit.image for case in cases]
    return [
        replace(
            case,
            probes=(
                *case.probes,
                Probe("m_generality", Query(QUESTION, pictures[i - 1])),
                Probe("m_locality", Query("Is it far?", pictures[i - 2])),
                Probe("specificity", Query("Which colour has it?", pictures[i])),
                Probe("portability", Query("Where does it live?", pictures[i])),
            ),
        )
        for i, case in enumerate(cases)
    ]


@pytest.mark.parametrize("family", ["llava", "blip2-opt", "qwen3_vl"])
def test_the_gate_is_calibrated_where_it_separates_best(
    family: str, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against reading every prompt alone; some families cannot even mix those with and without a picture."""
    backbone, chosen = tiny_backbone(family), probed(cases[:12])
    monkeypatch.setattr(backbone, "generate", Scripted())
    known = prepare(backbone, chosen, tmp_path / "out", PrepareConfig(**{**FAST, "rows": 4}, gate_layers=(1, -2)))
    report = known.description["report"]["gate"]
    assert report["cases"] == 12 and set(report["separation"]) == {"1", "2"}
    separated = {}
    for layer in (1, 2):
        keys = torch.stack([alone(backbone, replace(c.edit, target=None), layer)["in_p"] for c in chosen])
        probes = {
            kind: (
                torch.tensor([i for i, case in enumerate(chosen) for probe in case.probes if probe.kind == kind]),
                torch.stack(
                    [
                        alone(backbone, probe.query, layer)["in_p"]
                        for case in chosen
                        for probe in case.probes
                        if probe.kind == kind
                    ]
                ),
            )
            for kind in {probe.kind for probe in chosen[0].probes}
        }
        gate = calibrate(layer, keys, probes, 0.02)
        separated[layer] = (separation(gate, keys, probes), gate)
        assert report["separation"][str(layer)] == pytest.approx(separated[layer][0], abs=1e-2)
    best = max(separated, key=lambda layer: separated[layer][0])
    assert known.gate is not None and known.gate.layer == report["layer"] == best
    expected = separated[best][1]
    assert torch.allclose(known.gate.mean, expected.mean, atol=1e-4)
    assert torch.allclose(known.gate.whitening, expected.whitening, rtol=1e-2, atol=1e-2)
    assert known.gate.question.low == pytest.approx(expected.question.low, abs=1e-2)
    assert known.gate.fact.high == pytest.approx(expected.fact.high, abs=1e-2)


def test_where_the_gate_may_be_read() -> None:
    backbone = tiny_backbone("llava")
    assert gate_layers(backbone, PrepareConfig(layers=(-1,))) == [2, 3]
    assert gate_layers(backbone, PrepareConfig(layers=(-4, -1))) == [0]
    assert gate_layers(backbone, PrepareConfig(layers=(-2, -1), gate_layers=(-4, 2, 1))) == [0, 1, 2]
    with pytest.raises(UnikeError, match="gate_layers: layer 3 is above the lowest edited layer, 2"):
        gate_layers(backbone, PrepareConfig(layers=(-2, -1), gate_layers=(-1, 0)))


def test_the_last_layer_alone_can_be_prepared(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    known = prepare(backbone, probed(cases), tmp_path / "out", PrepareConfig(**FAST | {"layers": (-1,)}))
    assert known.gate is not None and known.gate.layer in (2, 3)


def test_there_may_be_no_gate(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    """Because nobody wants one, or because there is nothing to draw a line between."""
    known = prepare(backbone, cases[:12], tmp_path / "none", PrepareConfig(**FAST, gate_cases=0))
    assert known.gate is None and known.description["report"]["gate"] == {}
    for kind in ("t_locality", "t_generality"):
        lacking = [replace(case, probes=tuple(p for p in case.probes if p.kind != kind)) for case in cases[:12]]
        assert prepare(backbone, lacking, tmp_path / kind, CONFIG).gate is None


def test_the_gate_is_not_calibrated_on_what_is_evaluated(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path
) -> None:
    chosen = probed(cases[:12])
    against = [
        EditCase("e", Query("?", cases[20].edit.image), (Probe("m_locality", Query("??", cases[3].edit.image)),))
    ]
    known = prepare(backbone, chosen, tmp_path / "out", CONFIG, against=against)
    kept = [c for c in chosen if cases[3].edit.image not in {q.image for q in every_query([c])}]
    assert known.description["report"]["gate"]["cases"] == len(kept) == 12 - 3
    few = prepare(backbone, chosen, tmp_path / "few", PrepareConfig(**FAST, gate_cases=5))
    assert few.description["report"]["gate"]["cases"] == 5


# ---------------------------------------------------------------------- going on where it stopped


class Killed(BaseException):
    """Not an error that anybody may catch."""


def prepared(backbone: Backbone, cases: list[EditCase], out: Path, kill_at: int | None = None) -> dict[str, bytes]:
    """The files, or `Killed` at one of the calls of ``progress``."""
    calls = 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal calls
        if calls == kill_at:
            raise Killed(stage)
        calls += 1

    prepare(backbone, cases, out, CONFIG, progress=progress)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_run_that_is_killed_goes_on(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again and again, a little later each time, it asks everything once and ends with the same bytes."""
    whole = prepared(backbone, cases, tmp_path / "whole")
    assert len(asked(backbone)) == 40
    asked(backbone).clear()
    stages, resumed = set(), {}
    for kill_at in [0, 20, *range(39, 999)]:
        try:
            resumed = prepared(backbone, cases, tmp_path / "resumed", kill_at)
            break
        except Killed as killed:
            stages.add(str(killed))
    reading = {"reading pictures", "reading states", "reading texts", "reading probes"}
    assert stages == reading | {"asking", "layer -2", "layer -1"}
    assert resumed == whole
    assert len(asked(backbone)) == 40


def test_finished_work_is_not_done_again(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        prepared(backbone, cases, tmp_path / "out", kill_at=len(cases) + 3 + 1)
    assert any(path.name.startswith("states-00000") for path in (tmp_path / "out" / WORK).iterdir())

    def again(*args: object) -> None:
        raise AssertionError("states are read twice")

    monkeypatch.setattr("unike.editors.unike.preparation.read_some", again)
    prepared(backbone, cases, tmp_path / "out")


def test_torn_files_are_written_again(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    whole = prepared(backbone, cases, tmp_path / "whole")
    with pytest.raises(Killed):
        prepared(backbone, cases, tmp_path / "torn", kill_at=len(cases) + 3 + 3 + 1 + 3)
    work = tmp_path / "torn" / WORK
    torn = [work / "answers.jsonl", *work.glob("*.safetensors")]
    assert len(torn) > 2
    for path in torn:
        path.write_bytes(path.read_bytes()[:-7])
    asked(backbone).clear()
    assert prepared(backbone, cases, tmp_path / "torn") == whole
    assert len(asked(backbone)) == 16, "the batch whose last answer was torn"


def test_bad_work_is_told(
    backbone: Backbone, cases: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad" / WORK).mkdir(parents=True)
    (tmp_path / "bad" / WORK / "answers.jsonl").write_text("[1]\n")
    with pytest.raises(UnikeError, match=r"answers.jsonl is damaged; delete it"):
        prepare(backbone, cases, tmp_path / "bad", CONFIG)
    (tmp_path / "full" / WORK / "answers.jsonl").mkdir(parents=True)
    monkeypatch.setattr(Work, "answers", lambda self: {})
    with pytest.raises(UnikeError, match=r"cannot write .*answers.jsonl: Is a directory"):
        prepare(backbone, cases, tmp_path / "full", CONFIG)


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
    backbone.edits.append([None])
    with pytest.raises(UnikeError, match="detach the edits"):
        prepare(backbone, cases, tmp_path / "out", CONFIG)
    backbone.edits.clear()
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


def test_what_is_evaluated_is_not_learned_from(gallery: list[Path], tmp_path: Path) -> None:
    copied = tmp_path / "copied.png"
    copied.write_bytes(gallery[1].read_bytes())
    again = tmp_path / "again.jpg"
    Image.open(gallery[2]).resize((40, 40)).save(again, quality=70)
    generic, telling, text = "What is this?", "Is this the famous cat of Downing Street?", "What is 2 + 2?"
    candidates = [Query(generic, picture, "x") for picture in gallery[:8]]
    candidates += [Query(telling, gallery[8], "x"), Query("And who  is THAT?", gallery[9], "x")]
    evaluated = [
        Query(generic, copied),
        Query("Something else", again),
        Query(telling, gallery[20]),
        Query(text),
        Query("and who is that?", None),
    ]
    seen = []
    guard = LeakGuard(evaluated, candidates, lambda done, total: seen.append((done, total)))
    found = [guard.leak(query) for query in candidates]
    assert found == [None, LEAKS[0], LEAKS[1], *[None] * 5, LEAKS[2], LEAKS[2]]
    assert seen[-1] == (13, 13)
    assert guard.leak(Query(text)) == LEAKS[2]
    assert LeakGuard([], candidates).leak(candidates[0]) is None


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


def flag(*colours: str, size: tuple[int, int] = (90, 60)) -> Image.Image:
    stripes = Image.new("RGB", (3, 1))
    for i, colour in enumerate(colours):
        stripes.paste(colour, (i, 0, i + 1, 1))
    return stripes.resize(size, Image.Resampling.NEAREST)


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_pictures_are_alike_in_their_colours_too() -> None:
    france, italy = flag("#0055a4", "white", "#ef4135"), flag("#008c45", "white", "#cd212a")
    stored = io.BytesIO()
    france.resize((150, 100)).save(stored, "JPEG", quality=60)
    again = bits_apart(perceptual_hash(france), perceptual_hash(Image.open(stored).convert("RGB")))
    assert again <= 12 < 60 < bits_apart(perceptual_hash(france), perceptual_hash(italy))
    assert perceptual_hash(Image.new("RGB", (9, 9), "black")) == 192 * "0"
    assert perceptual_hash(Image.new("RGB", (9, 9), "white")) == 192 * "f"
    grey = [perceptual_hash(Image.new("RGB", (9, 9), (value,) * 3)) for value in (100, 106)]
    assert bits_apart(*grey) == pytest.approx(6 / 255 * 768, abs=3)


def test_work_is_json_that_people_can_read(backbone: Backbone, cases: list[EditCase], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        prepared(backbone, cases, tmp_path / "out", kill_at=len(cases) + 3)
    lines = [json.loads(line) for line in (tmp_path / "out" / WORK / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert {line["answer"] for line in lines} <= set(ANSWERS)
