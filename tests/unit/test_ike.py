"""IKE: which demonstrations stand before a question, in which order, and how many."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.backbones.template import parse
from unike.bench.selection import Task, check_leaks, check_method
from unike.bench.spec import RunSpec
from unike.core.errors import UnikeError
from unike.data.queries import EditCase, Probe, Query
from unike.editors.common import demonstrations
from unike.editors.common.demonstrations import Pool
from unike.editors.ike import IKE, IKEConfig, IKEEdit, limit
from unike.editors.intrinsic_ike import IntrinsicIKE
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel

COUNTS = {"n_copy": 1, "n_update": 1, "n_retain": 1}

FACTS = [
    ("What animal is this?", "zebra"),
    ("What colour is the car?", "red"),
    ("Which country's flag is this?", "Kenya"),
    ("What animal is shown?", "horse"),
]


def case(prompt: str, target: str, *, image: Path | None = None) -> EditCase:
    probes = (
        Probe("t_generality", Query(f"So, {prompt}", image, target)),
        Probe("t_locality", Query(f"Not {prompt}", None, f"not {target}")),
    )
    return EditCase(prompt, Query(prompt, image, target), probes)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    found = Pool([case(*fact) for fact in FACTS])
    monkeypatch.setattr("unike.editors.ike.pool_of", lambda *_: found)
    return found


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone("llava")


def read_by(edit: Edit, backbone: Backbone, *queries: Query) -> list[str]:
    return [query.prompt for query in IKEEdit.rewritten([edit], backbone, queries)]


# ---------------------------------------------------------------------- the text


PONY = Query("Which animal do you see? ", None, " pony")


def whole_text(edit: Edit, cue: str) -> str:
    """What is read when Hamlet is asked about after an edit of `PONY`, from the words of the method."""
    gap = "" if cue.endswith("\n") else " "
    asked = {
        "copy": lambda prompt, target: f"{prompt}{cue}{gap}{target}",
        "update": lambda prompt, target: f"So, {prompt}{cue}{gap}{target}",
        "retain": lambda prompt, target: f"Not {prompt}{cue}{gap}not {target}",
    }
    nearest = list(zip(edit.tensors["demonstrations"][0].tolist(), edit.config.kinds, strict=True))
    text = "".join(
        f"New Fact: {' '.join(FACTS[index])}\nPrompt: {asked[kind](*FACTS[index])}\n\n"
        for index, kind in reversed(nearest)
    )
    text += f"New Fact: Which animal do you see? pony\nPrompt: Which animal do you see?{cue}{gap}pony\n\n"
    return text + "New Fact: Which animal do you see? pony\nPrompt: Who wrote Hamlet?"


def test_the_whole_text(backbone: Backbone, pool: Pool) -> None:
    """The nearest fact stands last but the edit itself; each kind as often as asked; nothing of the query's target."""
    edit = IKE(**COUNTS, seed=1, max_prompt_tokens=10_000).edit(backbone, PONY)
    assert sorted(edit.config.kinds) == ["copy", "retain", "update"]
    assert edit.tensors["demonstrations"][0].tolist()[:2] == [3, 0], "horse, then zebra"
    expected = whole_text(edit, "\nAnswer the question using a single word or phrase. ASSISTANT:")
    assert read_by(edit, backbone, Query(" Who wrote Hamlet?", None, "Bacon")) == [expected]


TURN = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("family", "template", "with_picture", "without", "turn"),
    [
        ("llava", "{image}Question: {prompt} Short answer:", " Short answer:", " Short answer:", ""),
        ("llava", "{image}Question: {prompt} Short answer: || {prompt}", " Short answer:", "", ""),
        ("llava", "{prompt} <see>{image}</see> Answer: ", " Answer:", " Answer:", ""),
        ("paligemma", None, "\n", "\n", ""),
        ("qwen3_vl", None, *["\nAnswer with a single word or phrase."] * 2, TURN),
    ],
)
def test_demonstrations_end_as_the_question_does(
    family: str,
    template: str | None,
    with_picture: str,
    without: str,
    turn: str,
    pool: Pool,
    pictures: list[Path],
) -> None:
    """The template's own words stand before each answer; where the turn of a conversation ends, only the last."""
    tiny = tiny_backbone(family)
    reader = type(tiny)(tiny.model, **tiny.processors, source="tiny", template=template)
    edit = IKE(**COUNTS, seed=1, max_prompt_tokens=10_000).edit(reader, PONY)
    for image, cue in ((pictures[0], with_picture), (None, without)):
        (text,) = read_by(edit, reader, Query("Who wrote Hamlet?", image, "Bacon"))
        assert text == whole_text(edit, cue)
        filled = parse(reader.template).fill(text, None if image is None else "")
        assert filled.rstrip(" ").endswith("Prompt: Who wrote Hamlet?" + cue + turn)


def test_the_default_mix_is_the_paper_s_and_shuffled_by_the_seed() -> None:
    kinds = IKEConfig().kinds
    assert [kinds.count(kind) for kind in ("copy", "update", "retain")] == [3, 12, 17]
    assert kinds == IKEConfig().kinds
    assert kinds != IKEConfig(seed=1).kinds
    assert kinds != sorted(kinds)


def test_the_least_similar_are_left_out_where_there_is_no_room(backbone: Backbone, pool: Pool) -> None:
    fact = Query("Which animal do you see?", None, "pony")
    whole = IKE(**COUNTS, max_prompt_tokens=10_000).edit(backbone, fact)
    (text,) = read_by(whole, backbone, fact)
    parts = text.split("New Fact: ")[1:]
    assert len(parts) == 5
    sizes = [len(backbone.tokenizer("New Fact: " + part, add_special_tokens=False)["input_ids"]) for part in parts]
    for kept in range(4):
        most = sum(sizes[3 - kept : 4])  # of the demonstrations, and the edit's own
        for room, count in ((most, kept), (most - 1, max(kept - 1, 0))):
            edit = IKE(**COUNTS, max_prompt_tokens=room).edit(backbone, fact)
            (text,) = read_by(edit, backbone, fact)
            assert text.split("New Fact: ")[1:] == parts[3 - count :], "the edit's own is never left out"
    assert limit(IKEConfig(), backbone) == 0.75 * 512
    backbone.encode(IKEEdit.rewritten([IKE().edit(backbone, fact)], backbone, [fact]))


def test_rows_have_the_demonstrations_of_their_own_fact(
    backbone: Backbone, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = [Query("What animal is it?", None, "cow"), Query("What's the car's colour?", None, "blue")]
    edits = IKE(n_copy=1, n_update=0, n_retain=0).edit(backbone, taught)
    asked = [Query("Who?"), Query("Where?"), Query("Why?"), Query("How?")]
    alone = [read_by(edits[row // 2], backbone, query)[0] for row, query in enumerate(asked)]
    assert read_by(edits, backbone, *asked) == alone
    assert "horse" in alone[0] and "red" in alone[2] and "red" not in alone[0]
    seen: list[Query] = []
    monkeypatch.setattr(backbone, "generate", lambda queries, **_: seen.extend(queries) or ["x"] * len(queries))
    EditedModel(backbone, [edits]).generate(asked)
    assert [query.prompt for query in seen] == alone


def test_logits_are_those_behind_the_whole_text(backbone: Backbone, pool: Pool, facts: list[Query]) -> None:
    edit = IKE(n_copy=1, n_update=0, n_retain=0).edit(backbone, facts[0])
    expected = EditedModel(backbone).target_logits(IKEEdit.rewritten([edit], backbone, facts))
    assert torch.allclose(EditedModel(backbone, [edit]).target_logits(facts), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "paligemma"])
def test_demonstrations_are_read_once_for_each_picture(family: str, pool: Pool, facts: list[Query]) -> None:
    """Unless what reads them reads both ways."""
    backbone = tiny_backbone(family)
    edit = IKE(**COUNTS).edit(backbone, facts[0])
    asked = [replace(fact, image=facts[number // 2].image) for number, fact in enumerate([*facts, facts[0]])]
    expected = EditedModel(backbone).target_logits(IKEEdit.rewritten([edit], backbone, asked))
    with trace(backbone.layers[-1], keep_all=True) as record:
        assert torch.allclose(EditedModel(backbone, [edit]).target_logits(asked), expected, atol=1e-4)
    passes = [(call.args or tuple(call.kwargs.values()))[0].shape[:2] for call in record.calls]
    if backbone.reads_prompts_both_ways:
        assert [rows for rows, _ in passes] == [4]
    else:
        (begun, whole), (left, rest) = passes
        assert (begun, left) == (2, 4), "one row a picture, then every question"
        assert 2 * rest < whole, "the demonstrations are not among what is left"


@pytest.mark.parametrize("everywhere", [False, True])
def test_beside_new_pairs_too(everywhere: bool, backbone: Backbone, pool: Pool, facts: list[Query]) -> None:
    """Which have to be there while demonstrations are read, if they act on those."""
    settings = {"lr": 3e-2, "steps": 5, "layers": (-2, -1), "everywhere": everywhere}
    edit = IntrinsicIKE(ike=COUNTS, intrinsic=settings).edit(backbone, facts[0])
    asked = [facts[0], replace(facts[1], image=facts[0].image)]
    rewritten = IKEEdit.rewritten([edit.half("ike")], backbone, asked)
    expected = EditedModel(backbone, [edit.half("unike")]).target_logits(rewritten)
    assert not torch.allclose(EditedModel(backbone).target_logits(rewritten), expected, atol=1e-2)
    assert torch.allclose(EditedModel(backbone, [edit]).target_logits(asked), expected, atol=1e-4)


# ---------------------------------------------------------------------- the pool


def test_a_pool_has_each_fact_once_and_none_that_is_incomplete() -> None:
    good, same = case(*FACTS[0]), case(*FACTS[0], image=Path("other.png"))
    unanswered = Probe("t_locality", Query("Who?"))
    silent = replace(good, edit=Query("What?", None, "x"), probes=(good.probes[0], unanswered))
    lonely = replace(good, edit=Query("Whose?", None, "x"), probes=good.probes[1:])
    assert [fact.prompt for fact in Pool([silent, good, lonely, same]).facts] == [FACTS[0][0]]
    with pytest.raises(UnikeError, match="there are no demonstrations"):
        Pool([silent, lonely])


def test_a_pool_can_be_smaller_than_what_is_asked_of_it(backbone: Backbone, pool: Pool) -> None:
    edit = IKE(n_copy=9).edit(backbone, Query("What animal?", None, "cow"))
    assert edit.tensors["demonstrations"].shape == (1, 4)
    bare = IKE(n_copy=0, n_update=0, n_retain=0).edit(backbone, Query("What animal?", None, "cow"))
    (text,) = read_by(bare, backbone, Query("Who?"))
    assert text.count("New Fact") == 2


def test_an_edit_belongs_to_its_pool(backbone: Backbone, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = IKE(**COUNTS).edit(backbone, Query("What animal?", None, "cow"))
    other = Pool([case(*fact) for fact in [*FACTS[:3], ("What animal is shown?", "mule")]])
    monkeypatch.setattr("unike.editors.ike.pool_of", lambda *_: other)
    with pytest.raises(UnikeError, match=r"was made with other demonstrations than 'pocket' has now; make it anew"):
        EditedModel(backbone, [edit]).generate([Query("Who?")])


def test_a_pool_is_a_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path | None, str]] = []

    class Data:
        def __init__(self, name: str, folder: Path | None) -> None:
            self.name, self.folder = name, folder

        def cases(self, split: str) -> list[EditCase]:
            asked.append((self.name, self.folder, split))
            return [case(f"{self.name}?", "x")]

    monkeypatch.setattr(demonstrations, "open_dataset", Data)
    find = demonstrations.read_pool
    assert [fact.prompt for fact in find("pocket", None, None).facts] == ["pocket-vqa?", "pocket-caption?"]
    assert len(find("mmedit-vqa", "there", None).facts) == 1
    assert asked[1:] == [("pocket-caption", None, "train"), ("mmedit-vqa", Path("there"), "train")]
    monkeypatch.undo()
    with pytest.raises(UnikeError, match="unknown data set 'pockets'"):
        find("pockets", None, None)


# ---------------------------------------------------------------------- the bench


def test_sequences_are_refused_before_anything_is_loaded(cli: Callable[..., object]) -> None:
    for setting in ("sequential", "cross-task"):
        result = cli("bench", "--editor", "ike", "--dataset", "pocket-vqa", "--setting", setting, "--out", "run")
        assert result.is_error(f"'ike' holds one edit at a time, so {setting} editing is not defined for it")  # type: ignore[attr-defined]
    assert not Path("run").exists()
    check_method(IKE, RunSpec())


def test_a_pool_with_an_evaluated_question_is_refused(
    backbone: Backbone, pool: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facts: list[Query]
) -> None:
    """Its own, the rephrased, or the unrelated one."""
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    for prompt in ("What animal is this?", "So, What animal is this?", "Not What animal is this?"):
        shared = replace(case("Who is it?", "bob"), edit=Query(prompt.lower(), facts[0].image, "dog"))
        with pytest.raises(UnikeError, match=rf"'ike' learned .* 1 of its 12 sources .*'{prompt[:-1]}\?'"):
            check_leaks(backbone, IKE(), [Task("mine", "eval", [shared])])
    check_leaks(backbone, IKE(), [Task("mine", "eval", [case("Who is it?", "bob")])])


def test_a_question_about_everything_does_not_leak(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a picture, which demonstrations do not show; a small pool counts what the whole of it asks."""
    whole = [case("What is it?", f"thing {n}", image=Path(f"{n}.png")) for n in range(5)]
    evaluated = Task("mine", "eval", [case("What is it?", "bob", image=None)])
    found = Pool(whole, size=2)
    assert len(found.facts) == 2 and [trace.prompt for trace in found.traces] == ["Not What is it?"]
    monkeypatch.setattr("unike.editors.ike.pool_of", lambda *_: Pool(whole[:4]))
    with pytest.raises(UnikeError, match="3 of its 3 sources"):
        check_leaks(backbone, IKE(), [evaluated])
