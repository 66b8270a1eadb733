"""What stands around a question: how it is written, which commands take it, and what names it afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tinies import tiny_backbone

from unike import UnikeError, load_backbone
from unike.backbones.adapter import Backbone
from unike.backbones.identity import fingerprint_0_1
from unike.backbones.template import PRESETS, Template, named, parse, written
from unike.bench.spec import RunSpec
from unike.cli import _shared
from unike.data.queries import Query
from unike.edits.edit import Edit

Cli = Callable[..., Any]

TWO = "{image}Q: {prompt} A: || {prompt}"


def through(template: str | None, family: str = "llava") -> Backbone:
    """A tiny model with a template."""
    tiny = tiny_backbone(family)
    return type(tiny)(tiny.model, **tiny.processors, source="tiny", template=template)


def test_a_template_is_one_text_or_two() -> None:
    assert parse("{image}Q: {prompt} A:") == Template("{image}Q: {prompt} A:")
    assert parse("{image}Q: {prompt} A:").fill("who?", None) == "Q: who? A:"
    assert parse(TWO) == Template("{image}Q: {prompt} A:", "{prompt}")
    assert parse(TWO).fill("who?", None) == "who?"
    assert parse(TWO).fill("who?", "<image>") == "<image>Q: who? A:"
    assert parse(TWO).fill("who?", "") == "Q: who? A:", "a question with a picture, but without what stands for it"
    assert parse("<Img>{image}</Img> {prompt}").fill("who?", None) == "who?", "nothing is left of a tag"
    assert parse(TWO).fill("{image}", None) == "{image}", "what a question says is not filled in"


def test_presets_are_the_published_prompts() -> None:
    questions, captions = (parse(PRESETS[name]) for name in ("mmedit-vqa", "mmedit-caption"))
    assert questions.fill("who?", "<i>") == "<i>Question: who? Short answer:"
    assert questions.fill("who?", None) == captions.fill("who?", None) == "who?"
    assert captions.fill("a photo of", "<i>") == "<i>a photo of"
    assert written("mmedit-vqa") == PRESETS["mmedit-vqa"] and named(PRESETS["mmedit-vqa"]) == "mmedit-vqa"
    assert named(TWO) == written(TWO) == TWO


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("mmedit-vga", "did you mean 'mmedit-vqa'"),
        ("{image}", "must hold {image} and {prompt} once each"),
        ("{image}{prompt}{prompt}", "must hold {image} and {prompt} once each"),
        ("{image}{prompt} || nothing", "must hold {prompt} once, for questions without"),
        ("{image}{prompt} || {image}{prompt}", "may hold only {prompt} in braces"),
        ("{image}{prompt}{0}", "may hold only {image} and {prompt} in braces"),
        ("{image.size}{prompt}", "may hold only {image} and {prompt} in braces"),
        ("{image}{prompt}\udcff", "not valid Unicode"),
    ],
)
def test_what_is_no_template_is_refused(template: str, said: str) -> None:
    with pytest.raises(UnikeError) as error:
        written(template)
    assert said in str(error.value) and "\n" not in str(error.value)


QUESTIONS = (
    "What is this?",
    "Who wrote it, and when?  And why?",
    "a photo of",
    "Wer schrieb „Faust“?",
    "What does USER mean?",
    "Is 1 < 2 {x}?",
    "北京是什么？",
)
WRITTEN = (
    *PRESETS.values(),
    TWO,
    "{image}{prompt}",
    "{prompt}{image}",
    "{image} {prompt}",
    "Look: {image}\n{prompt} Answer:",
    "USER: {image}\n{prompt} ASSISTANT:",
    "Q: {prompt} {image} A:",
    "<Img>{image}</Img> {prompt}",
    "User:<Img>{image}</Img> {prompt}\nAnswer: || Say {prompt} now",
)


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("image_text", [None, ""])
def test_a_question_is_found_in_what_was_made_of_it(text: str, image_text: str | None) -> None:
    """The placeholders of a picture have been taken out."""
    template = parse(text)
    for question in QUESTIONS:
        assert template.question_in(template.fill(question, image_text)) == question.strip()


def test_the_last_question_of_a_conversation_is_found() -> None:
    template = parse("USER: {image}{prompt} ASSISTANT:")
    talk = "USER: Who is it? ASSISTANT: Ann. USER: And where? ASSISTANT:"
    assert template.question_in(talk) == "And where?"
    assert template.question_in("something else altogether ") == "something else altogether"
    assert parse("{image}{prompt}").question_in(" a photo of ") == "a photo of"
    assert parse(TWO).question_in("") == ""


@pytest.mark.parametrize("family", ["llava", "blip2-opt", "instructblip", "paligemma"])
def test_questions_are_read_within_it(family: str, pictures: list[Path]) -> None:
    model = through("mmedit-vqa", family)
    bare = model.tokenizer.decode(model.encode([Query("who is it?")]).inputs["input_ids"][0], skip_special_tokens=True)
    pictured = model.tokenizer.decode(model.encode([Query("who is it?", pictures[0])]).inputs["input_ids"][0])
    assert bare == "who is it?"
    assert "Question: who is it? Short answer:" in pictured


def test_it_is_a_part_of_what_tells_a_model_from_others(tmp_path: Path) -> None:
    own, preset, same, two = (through(each) for each in (None, "mmedit-vqa", PRESETS["mmedit-vqa"], TWO))
    assert own.chosen_template is None and through(own.template).chosen_template is None
    assert (preset.chosen_template, two.chosen_template) == ("mmedit-vqa", TWO)
    assert preset.fingerprint() == same.fingerprint()
    assert len({model.fingerprint() for model in (own, preset, two)}) == 3
    assert preset.as_options == "--model tiny --template mmedit-vqa" and own.as_options == "--model tiny"
    older = tmp_path / fingerprint_0_1(own)
    older.mkdir()  # of a version that knew nothing of templates
    assert own.folder_in(tmp_path) == older and own.is_known_as(older.name)
    assert two.folder_in(tmp_path) == tmp_path / two.fingerprint() and not two.is_known_as(older.name)


def test_the_loader_takes_it(tiny_folder: Path) -> None:
    assert load_backbone(tiny_folder, template=TWO).template == TWO
    with pytest.raises(UnikeError, match="unknown template 'mmedit'"):
        load_backbone("no/such-model-is-asked-for", template="mmedit")


# ---------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "--prompt", "?"),
        ("edit", "--prompt", "?", "--target", "x"),
        ("prepare",),
        ("train", "--editor", "mend"),
        ("bench", "--dataset", "pocket-vqa", "--out", "run"),
        ("study", "zeta", "--out", "study"),
    ],
)
def test_a_mistake_is_known_before_the_model_is_loaded(early: Cli, command: tuple[str, ...]) -> None:
    result = early(*command, "--template", "mmedit-vga")
    assert result.is_error("unknown template 'mmedit-vga'; did you mean 'mmedit-vqa'?"), result


def test_an_edit_is_asked_through_the_template_it_was_made_with(cli: Cli, tiny_folder: Path) -> None:
    few = ("--editor", "ft", "--set", "steps=2")
    made = cli("edit", "--model", tiny_folder, "--prompt", "who?", "--target", "x", *few, "--template", TWO, "--json")
    assert made.code == 0 and "the edit did not take: the answer is" in made.err, made
    told = json.loads(made.out)
    assert f"--template '{TWO}'" in told["ask"]
    model = load_backbone(tiny_folder, template=TWO)
    Edit.from_pretrained(told["saved"]).check_fits(model)
    assert cli("ask", "--model", tiny_folder, "--prompt", "who?", "--edit", told["saved"], "--template", TWO).code == 0
    other = cli("ask", "--model", tiny_folder, "--prompt", "who?", "--edit", told["saved"])
    assert other.is_error("or the same with another template"), other


def test_the_command_of_a_run_names_it() -> None:
    spec = RunSpec(template="mmedit-vqa")
    assert "--template mmedit-vqa" in spec.command()
    assert RunSpec.from_options({"template": TWO}).template == TWO
    with pytest.raises(UnikeError, match="unknown template"):
        RunSpec(template="mine").check()


def test_asking_uses_it(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(_shared, "answers", lambda backbone, *rest: loaded.append(backbone.template) or ["yes"])
    assert cli("ask", "--model", tiny_folder, "--prompt", "who?", "--template", "mmedit-caption").code == 0
    assert loaded == [PRESETS["mmedit-caption"]]
