"""The bundled model, the real one: built from its parts, asked about real pictures, and edited."""

import json
from dataclasses import replace

import pytest
import torch

import unike
from unike import Query
from unike.backbones.answers import Answers
from unike.backbones.families import mini
from unike.bench.lines import questions as questions_of
from unike.bench.protocols.base import all_protocols
from unike.bench.replay import Examiner
from unike.cli.demo import DEMO_CASE, PROBES, questions
from unike.core.images import load_image
from unike.data.datasets.pocket import Pocket, image, read
from unike.editors import checks as laws
from unike.editors.ft import FT
from unike.edits.edited import EditedModel


@pytest.fixture(scope="module")
def model():
    return unike.load_backbone("mini", device="cpu")


@pytest.fixture(scope="module")
def case():
    return next(case for case in Pocket().cases("dev") if case.case_id == DEMO_CASE)


@pytest.fixture(scope="module")
def edit(model, case):
    return unike.edit(model, image=case.edit.image, prompt=case.edit.prompt, target=case.edit.target)


def test_is_built_once_and_loads_as_an_ordinary_model(model):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert mini.build() == mini.folder()
    assert mini.build(report=lambda step: pytest.fail(f"built again: {step}")).is_dir()
    plain = AutoModelForImageTextToText.from_pretrained(mini.folder())
    processor = AutoProcessor.from_pretrained(mini.folder())
    picture = load_image(image("flag/france/openmoji"))
    text = model.template.format(image="<image>", prompt="What is this?")
    inputs = processor(images=picture, text=text, return_tensors="pt")
    with torch.no_grad():
        logits = plain(**inputs).logits
    ours = model.forward(model.encode([Query("What is this?", image("flag/france/openmoji"))]))
    assert torch.allclose(logits, ours, atol=1e-4)


@pytest.mark.slow
def test_every_law_holds_of_it(model, tmp_path):
    """`unike models check` on a trained model, not a random one."""
    findings = laws.check(model, laws.some_questions(tmp_path)[:2])
    assert [finding.law.name for finding in findings if not finding.holds] == []


def test_knows_pictures_it_never_saw(model):
    held = {  # of known concepts, never trained on
        "photo": ("What is this?", "name"),
        "pictogram": ("What is this?", "name"),
        "flag": ("Which country does this flag belong to?", "country"),
    }
    facts = {(r["domain"], r["concept"]): json.loads(r["facts"]) for r in read("concepts")}
    rows = [r for r in read("images", ["image_id", "domain", "concept", "role"]) if r["role"] == "held"]
    right = []
    for domain, (question, kind) in held.items():
        asked = [r for r in rows if r["domain"] == domain][::8][:12]
        answers = model.generate([Query(question, image(row["image_id"])) for row in asked])
        for row, answer in zip(asked, answers, strict=True):
            right.append(answer.lower() == facts[domain, row["concept"]][kind].lower())
    assert sum(right) >= len(right) / 3  # far above chance; the exact figures are in results/mini


@pytest.mark.parametrize(("split", "side"), [(1, "left"), (26, "right")])
def test_the_split_law_with_and_without_pictures(model, split, side):
    queries = [
        Query("What is this?", image("flag/france/openmoji"), "a flag"),
        Query("What is the capital of France?", None, "Paris"),
        Query("Which country does this flag belong to, do you think?", image("flag/brazil/twemoji"), "Brazil"),
    ]
    batch = model.encode(queries, padding_side=side)
    with torch.no_grad():
        assert torch.equal(model.run_from_split(model.run_to_split(batch, split)), model.forward(batch))


def test_one_edit_from_wrong_to_right(model, case, edit):
    asked = questions(case)
    before = dict(zip(asked, model.generate(list(asked.values())), strict=True))
    after = dict(zip(asked, EditedModel(model, [edit]).generate(list(asked.values())), strict=True))
    for kind in ("edit", "t_generality", "m_generality"):
        assert before[kind] != case.edit.target
        assert after[kind] == case.edit.target
    for kind in ("m_locality", "t_locality"):
        assert after[kind] == before[kind]
    assert set(asked) == {"edit", *PROBES}


def test_detached_edit_leaves_no_trace(model, case, edit):
    batch = model.encode([case.edit])
    before = model.forward(batch)
    with edit.attached(model):
        assert not torch.equal(model.forward(batch), before)
    assert torch.equal(model.forward(batch), before)


def test_saved_edit_acts_as_before(model, case, edit, tmp_path):
    edit.save_pretrained(tmp_path / "edit")
    loaded = unike.Edit.from_pretrained(tmp_path / "edit")
    batch = model.encode([case.edit])
    with edit.attached(model):
        first = model.forward(batch)
    with loaded.attached(model):
        assert torch.equal(model.forward(batch), first)


def test_generation_under_an_edit_equals_decoding_without_a_cache(model, case, edit):
    query = Query(case.edit.prompt, case.edit.image)
    with edit.attached(model), torch.no_grad():
        answer = model.generate([query], max_new_tokens=6)[0]
        batch = model.encode([query])
        inputs, new = dict(batch.inputs), []
        for _ in range(6):
            token = model.forward(replace(batch, inputs=inputs))[:, -1].argmax(-1, keepdim=True)
            if token.item() == model.tokenizer.eos_token_id:
                break
            new.append(token.item())
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert model.tokenizer.decode(new).strip().split("\n")[0].strip() == answer


def test_batch_of_edits_equals_single_ones(model):
    facts = [case.edit for case in Pocket("vqa").cases("dev")[:3]]
    editor = FT(steps=3)
    together, alone = editor.edit(model, facts), [editor.edit(model, fact) for fact in facts]
    for row, single in enumerate(alone):
        for name, tensor in single.tensors.items():
            # Adam divides by the gradient's size, so rounding in other batch shapes shows where gradients are tiny
            difference = (together.tensors[name][row] - tensor[0]).norm() / tensor.norm()
            assert difference < 1e-2, (row, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unike", "ft"])
@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_replayed_answers_are_those_that_are_generated(model, name, task):
    cases = Pocket(task).cases("dev")[::60][:3]
    known = Answers(model, 32)
    known.ask([query for case in cases for _, query in questions_of(case)])
    editor = unike.make_editor(name)
    edits = editor.edit(model, [case.edit for case in cases])
    found = []
    for engine in ("fast", "plain"):
        examiner = Examiner(model, editor, known, protocols=tuple(all_protocols()), engine=engine)
        found.append(examiner.examine([examiner.read(case) for case in cases], edits))
    fast, plain = ([answer for asked in each for answer in asked] for each in found)
    assert [answer.after for answer in fast] == [answer.after for answer in plain]
    for one, other in zip(fast, plain, strict=True):
        for key in one.scores:  # the ten best of every position change places by rounding
            assert one.scores[key] == pytest.approx(other.scores[key], abs=0.05 if key == "mmedit/top10" else 0)
