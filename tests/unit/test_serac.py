"""SERAC: what is in scope, who answers, and what its networks learn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import miniature
import pytest
import torch
from decoding import greedy_without_cache
from PIL import Image
from tinies import TINIES, tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers
from unike.backbones.forward.functional import token_nll
from unike.bench.lines import questions
from unike.bench.replay import Examiner
from unike.bench.selection import Task, check_leaks
from unike.bench.spec import ENGINES
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.folders import replace_folder
from unike.data.leaks import ImageHashes, Trace
from unike.data.queries import EditCase, Probe, Query
from unike.editors.serac import networks as serac
from unike.editors.serac.editor import SERAC, SERACConfig, SERACEdit, networks_of
from unike.editors.serac.networks import SeracModel, SERACNetworkSettings, counterfactual_query, with_layers_copied
from unike.editors.trained.artifact import CONFIG_FILE, SAVED, Trained, place, read_log
from unike.editors.trained.config import TrainConfig
from unike.editors.trained.loop import train
from unike.edits.edited import EditedModel

SETTINGS = SERACNetworkSettings(n_layers=2, lr=1e-2, lr_scope=1e-2, finetune_encoder=False)
HAMLET = Query("Who wrote Hamlet?", None, "Bacon")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def save(backbone: Backbone, tensors: dict[str, Tensor], folder: Path, sources: Sequence[Trace] = ()) -> None:
    description = {
        "editor": "serac",
        "backbone": {"source": backbone.source, "fingerprint": backbone.fingerprint()},
        "network": SETTINGS.model_dump(mode="json"),
        "sources": [trace.to_json() for trace in sources],
    }
    replace_folder(folder, Trained(description, tensors).files(), known_by=CONFIG_FILE)


@pytest.fixture
def backbone() -> Backbone:
    """With untrained networks, where SERAC looks for them."""
    backbone = tiny_backbone("llava")
    save(backbone, SeracModel(backbone, SETTINGS).state_dict(), place("serac", backbone))
    return backbone


# ---------------------------------------------------------------------- the counterfactual model


@pytest.mark.parametrize("family", sorted(TINIES))
def test_of_as_many_layers_it_is_the_backbone(family: str, facts: list[Query]) -> None:
    """Bit for bit, for every family; with fewer it is not, and the backbone is never another."""
    backbone = tiny_backbone(family)
    batch = backbone.encode(facts)
    plain = backbone.forward(batch)
    assert torch.equal(with_layers_copied(backbone, backbone.n_layers).forward(batch), plain)
    small = with_layers_copied(backbone, 2)
    assert (small.n_layers, backbone.n_layers) == (2, 4)
    assert not torch.allclose(small.forward(batch), plain, atol=1e-2)
    with torch.no_grad():
        for weight in small.layers.parameters():
            weight.zero_()
    assert torch.equal(backbone.forward(batch), plain)
    own = {weight.data_ptr() for weight in small.layers.parameters()}
    rest = {weight.data_ptr() for weight in small.model.parameters()} - own
    assert rest <= {weight.data_ptr() for weight in backbone.model.parameters()}, "all else is shared"
    asked = Query("Who wrote it?")
    assert small.generate([asked], max_new_tokens=4) == [greedy_without_cache(small, asked, 4)]


def test_edits_are_not_copied_with_the_layers(backbone: Backbone, facts: list[Query]) -> None:
    tuned = registry.editors.get("ft")(steps=1).edit(backbone, facts[0])
    with tuned.attached(backbone), pytest.raises(UnikeError, match=r"call editor.prepare\(model\) before"):
        SERAC().prepare(backbone)
    other = tiny_backbone("llava")
    edit = SERAC().edit(backbone, facts[0])
    asked = EditedModel(other, [tuned, edit]).generate(facts[:1], max_new_tokens=2)
    assert asked, "the command line needs nothing prepared"


# ---------------------------------------------------------------------- who answers


def test_the_similarity_decides_who_answers(backbone: Backbone, pictures: list[Path]) -> None:
    fact = Query("What animal is this?", pictures[0], " Zebra")
    editor = SERAC()
    edit = editor.edit(backbone, fact)
    near = Query("Which animal is this? ", pictures[0], "wolf")
    asked = [HAMLET, near, Query("What animal is this?", pictures[1])]
    network, _ = networks_of(backbone, SERACConfig())
    own = network.scope(network.embed(backbone, [fact]))
    similar = torch.exp(-(network.scope(network.embed(backbone, asked)) - own).square().sum(dim=1)).tolist()
    assert similar[1] > 0.5 > similar[0]
    routed = SERACEdit.routed([edit], backbone, asked)
    assert routed == {
        row: Query(f"What animal is this? Zebra {query.prompt.strip()}", query.image, query.target)
        for row, query in enumerate(asked)
        if similar[row] > 0.5
    }
    between = SERAC(threshold=(similar[0] + similar[1]) / 2).edit(backbone, fact)
    assert 1 in SERACEdit.routed([between], backbone, asked)
    assert 1 not in SERACEdit.routed([SERAC(threshold=similar[1] + 1e-3).edit(backbone, fact)], backbone, asked)

    expected = {
        row: network.counterfactual.generate([routed[row]], max_new_tokens=3)[0]
        if row in routed
        else backbone.generate([query], max_new_tokens=3)[0]
        for row, query in enumerate(asked)
    }
    assert EditedModel(backbone, [edit]).generate(asked, max_new_tokens=3) == [expected[row] for row in range(3)]
    logits = EditedModel(backbone, [edit]).target_logits(asked[:2])
    within = EditedModel(network.counterfactual).target_logits([routed[1]])
    alone = [EditedModel(backbone).target_logits([HAMLET]), within]
    assert torch.allclose(logits, torch.cat(alone), atol=1e-4)


def test_the_nearest_edit_of_a_stack_counts(backbone: Backbone, pictures: list[Path]) -> None:
    facts = [
        Query("What animal is this?", pictures[0], "zebra"),
        Query("What colour is it?", pictures[0], "red"),
        HAMLET,
    ]
    stack = [SERAC().edit(backbone, fact) for fact in facts]
    for fact in facts:
        assert SERACEdit.routed(stack, backbone, [fact]) == {0: counterfactual_query(fact, fact)}
    assert SERACEdit.routed(stack[:2], backbone, [HAMLET]) == {}, "once it is revoked"


def test_only_mmedit_s_version_is_given_the_answer(backbone: Backbone, facts: list[Query]) -> None:
    """And has it only where there is one: not when a question is really asked."""
    queries = [replace(facts[0], target=target) for target in ("a cat", "a thing that nobody ever saw", None)]

    def similarities(editor: SERAC) -> list[dict[int, Query]]:
        stack = [editor.edit(backbone, facts[0])]
        return [SERACEdit.routed(stack, backbone, [query]) for query in queries]

    assert all(similarities(SERAC(threshold=0.99)))
    given = similarities(SERAC(threshold=0.99, compat="mmedit"))
    assert [bool(each) for each in given] == [True, False, False]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("compat", [None, "mmedit"])
def test_fast_equals_plain(taught: Backbone, compat: str | None, threshold: float) -> None:
    """With the leak too, where a question that is read with its answer goes elsewhere than when it is asked."""
    save(taught, SeracModel(taught, SETTINGS).state_dict(), place("serac", taught))
    near = ("What animal is that?", "What animals are these?", "Who?")
    probes = tuple(Probe("t_locality", Query(prompt, None, "x y")) for prompt in near)
    case = EditCase("near", Query("What animal is this?", None, "zebra"), probes)
    editor, answers, found = SERAC(compat=compat, threshold=threshold), Answers(taught, 4), []
    answers.ask([query for _, query in questions(case)])
    for engine in ENGINES:
        examiner = Examiner(taught, editor, answers, engine=engine)
        found.append(examiner.examine([examiner.read(case)], editor.edit(taught, case.edit)))
    assert found[0] == found[1]


def test_a_batch_of_edits_below_is_not_mixed_up(backbone: Backbone, facts: list[Query]) -> None:
    SERAC().prepare(backbone)
    below = registry.editors.get("ft")(steps=1).edit(backbone, facts)
    edit = SERAC().edit(backbone, facts[0])
    with pytest.raises(UnikeError, match=r"attach one edit: edit\[i\]"):
        EditedModel(backbone, [below, edit]).generate(facts, max_new_tokens=2)


# ---------------------------------------------------------------------- training


def test_losses_are_the_paper_s(backbone: Backbone, cases: list[EditCase]) -> None:
    network = SeracModel(backbone, SETTINGS)
    frozen = serac.read(backbone, network, cases[:2])
    found = serac.objective(network, frozen).losses
    assert frozen.nbytes > 0
    for row, case in enumerate(cases[:2]):
        probes = {probe.kind: probe.query for probe in case.probes}

        def similarity(query: Query, fact: Query = case.edit) -> Tensor:
            one, other = (network.scope(network.embed(backbone, [each]))[0] for each in (query, fact))
            return torch.exp(-((one - other) ** 2).sum())

        nll = []
        for kind in ("t_generality", "m_generality"):
            text = f"{case.edit.prompt} {case.edit.target} {probes[kind].prompt}"
            batch = network.counterfactual.encode([replace(probes[kind], prompt=text)])
            nll.append(token_nll(network.counterfactual.forward(batch), batch.labels)[0])
        assert found["nll"][row].item() == pytest.approx(sum(nll).item() / 2, rel=1e-3)
        inside = -sum(similarity(probes[kind]).log() for kind in ("t_generality", "m_generality"))
        outside = -sum((1 - similarity(probes[kind])).log() for kind in ("t_locality", "m_locality"))
        assert found["scope"][row].item() == pytest.approx((inside + outside).item() / 4, rel=1e-3)


def test_training_teaches_both_networks_and_not_the_backbone(backbone: Backbone, cases: list[EditCase]) -> None:
    weights = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    editor = SERAC()
    network = editor.build(backbone, SETTINGS).train()
    assert network.training and not any(module.training for module in network.layers.modules()), "no dropout"
    steps, frozen, history = editor.optimizer(network, SETTINGS), editor.read(backbone, network, cases), []
    for _ in range(12):
        steps.zero_grad()
        found = editor.objective(backbone, network, frozen)
        history.append({name: loss.mean().item() for name, loss in found.losses.items()})
        editor.total(network, found.losses).backward()
        steps.step()
    assert history[-1]["nll"] < 0.7 * history[0]["nll"]
    assert history[-1]["scope"] < 0.7 * history[0]["scope"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.model.state_dict().items())
    assert not any(weight.requires_grad for weight in backbone.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_are_trained_in_full_precision(cases: list[EditCase], dtype: torch.dtype) -> None:
    """A step of 3e-5 is less than most weights of half precision can change by."""
    backbone, editor, settings = tiny_backbone("llava"), SERAC(), SETTINGS.model_copy(update={"lr": 3e-5})
    backbone.model.to(dtype)
    network = editor.build(backbone, settings).train()
    steps, frozen = editor.optimizer(network, settings), editor.read(backbone, network, cases)
    weight = network.layers.get_parameter("0.self_attn.o_proj.weight")
    before = weight.detach().clone()
    editor.total(network, editor.objective(backbone, network, frozen).losses).backward()
    steps.step()
    assert (weight != before).float().mean() > 0.9
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_unike_train_trains_it(backbone: Backbone, tmp_path: Path) -> None:
    """The loop that all methods share leaves networks that the editor finds, and that know what they learned from."""
    generator, gallery = torch.Generator().manual_seed(1), []
    for number in range(11):
        pixels = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8).numpy()
        gallery.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(gallery[-1])
    # About eight pictures, so that what all ask says nothing about one of them.
    learned = [miniature.case(number, [gallery[(number + i) % 8] for i in range(3)]) for number in range(6)]
    judged = [miniature.case(number, gallery[8:]) for number in (20, 21)]
    out, config = place("serac", backbone), TrainConfig(steps=10, every=5, batch=3)
    trained = train(backbone, SERAC(), learned, judged, out, network_settings=SETTINGS, config=config)
    first, *later = read_log(out)
    assert [entry["step"] for entry in later] == [5, 10]
    assert trained.description["report"]["best"]["validation"]["loss"] < first["validation"]["loss"]
    assert {trace.prompt for trace in SERAC().learned_from(backbone)} >= {case.edit.prompt for case in learned}
    assert SERAC().learned(backbone) == SAVED.describe(out)["sha256"][:16]
    fact = learned[0].edit
    edit = SERAC().edit(backbone, fact)
    assert SERACEdit.routed([edit], backbone, [fact]) == {0: counterfactual_query(fact, fact)}
    with pytest.raises(UnikeError, match="'serac' learned from what is to be evaluated"):
        check_leaks(backbone, SERAC(), [Task("mine", "eval", learned[:1])])
    check_leaks(backbone, SERAC(), [Task("mine", "eval", judged)])


def test_a_question_that_is_the_edit_s_own_does_not_make_the_loss_infinite(
    backbone: Backbone, cases: list[EditCase]
) -> None:
    probes = tuple(replace(p, query=cases[0].edit) if p.kind == "m_locality" else p for p in cases[0].probes)
    network = SeracModel(backbone, SETTINGS)
    found = serac.objective(network, serac.read(backbone, network, [replace(cases[0], probes=probes)]))
    assert found.losses["scope"].isfinite().all() and found.scores["m_locality"].tolist() == [0]
    found.losses["scope"].sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.scope.parameters())


def test_the_classifier_may_be_blind(backbone: Backbone, pictures: list[Path]) -> None:
    network = SeracModel(backbone, SERACNetworkSettings(sees_images=False))
    queries = [Query("What?", pictures[0]), Query("What?", pictures[1]), Query("Who?", pictures[0])]
    first, same, other = network.scope(network.embed(backbone, queries))
    assert torch.equal(first, same) and not torch.allclose(first, other, atol=1e-2)


# ---------------------------------------------------------------------- files


def test_an_edit_belongs_to_its_networks(backbone: Backbone, facts: list[Query], tmp_path: Path) -> None:
    tensors = SeracModel(backbone, SETTINGS, seed=5).state_dict()
    sources = (Trace("What?", ImageHashes("ab" * 8, "0f" * 96)), Trace("Who?", None))
    save(backbone, tensors, tmp_path / "mine", sources)
    mine, other = SERAC(trained=str(tmp_path / "mine")), SERAC()
    assert mine.learned_from(backbone) == sources and other.learned_from(backbone) == ()
    edit = other.edit(backbone, facts[0])
    assert EditedModel(backbone, [edit]).generate(facts[:1], max_new_tokens=2)
    save(backbone, tensors, place("serac", backbone))
    with pytest.raises(UnikeError, match="was made with other networks of serac"):
        EditedModel(backbone, [edit]).generate(facts[:1])
    again = tiny_backbone("llava")
    save(again, tensors, place("serac", again))
    with pytest.raises(UnikeError, match="was made with other networks of serac") as caught:
        EditedModel(again, [edit]).generate(facts[:1])
    assert "\n" not in str(caught.value)


def test_an_editor_without_networks_says_what_to_run(facts: list[Query]) -> None:
    other = tiny_backbone("llava", seed=1)
    uses: list[Callable[[], object]] = [lambda: SERAC().edit(other, facts[0]), lambda: SERAC().lowest_layer(other)]
    for use in uses:
        with pytest.raises(UnikeError, match="serac has not been trained for 'tiny-llava' yet; run: unike train"):
            use()
