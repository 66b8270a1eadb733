"""SERAC: what is in scope, who answers, and what its networks learn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unike import registry
from unike.backbones import tinies
from unike.backbones.base import Backbone
from unike.editors.base import Edit, answer
from unike.editors.serac import SERAC, SERACEdit
from unike.errors import UnikeError
from unike.functional import token_nll
from unike.modules import serac
from unike.modules.leak_guard import ImageHashes, Trace
from unike.modules.serac import (
    SeracModel,
    SERACNetworkSettings,
    counterfactual_query,
    losses,
    lowest_layers,
    optimizer,
    place,
    read_cases,
    save_networks,
)
from unike.types import EditCase, Query

SETTINGS = SERACNetworkSettings(n_layers=2, lr=1e-2, lr_scope=1e-2)
NOTHING = {"images": {}, "questions": []}
HAMLET = Query("Who wrote Hamlet?", None, "Bacon")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def backbone() -> Backbone:
    """With untrained networks, where SERAC looks for them."""
    backbone = tinies()["llava"]()
    save_networks(SeracModel(backbone, SETTINGS), backbone, place(backbone), NOTHING)
    return backbone


# ---------------------------------------------------------------------- the counterfactual model


@pytest.mark.parametrize("family", sorted(tinies()))
def test_of_as_many_layers_it_is_the_backbone(family: str, facts: list[Query]) -> None:
    """Bit for bit, for every family; with fewer it is not, and the backbone is never another."""
    backbone = tinies()[family]()
    batch = backbone.encode(facts)
    plain = backbone.forward(batch)
    assert torch.equal(lowest_layers(backbone, backbone.n_layers).forward(batch), plain)
    small = lowest_layers(backbone, 2)
    assert (small.n_layers, backbone.n_layers) == (2, 4)
    assert not torch.allclose(small.forward(batch), plain, atol=1e-2)
    with torch.no_grad():
        for weight in small.layers.parameters():
            weight.zero_()
    assert torch.equal(backbone.forward(batch), plain)
    own = {weight.data_ptr() for weight in small.layers.parameters()}
    rest = {weight.data_ptr() for weight in small.model.parameters()} - own
    assert rest <= {weight.data_ptr() for weight in backbone.model.parameters()}, "all else is shared"
    assert small.generate(facts[:1], max_new_tokens=2)


def test_edits_are_not_copied_with_the_layers(backbone: Backbone, facts: list[Query]) -> None:
    tuned = registry.editors.get("ft")(steps=1).edit(backbone, facts[0])
    with tuned.attached(backbone), pytest.raises(UnikeError, match=r"call editor.prepare\(model\) before"):
        SERAC().prepare(backbone)
    other = tinies()["llava"]()
    edit = SERAC().edit(backbone, facts[0])
    assert answer([tuned, edit], other, facts[:1], max_new_tokens=2), "the command line needs nothing prepared"


# ---------------------------------------------------------------------- who answers


def test_the_similarity_decides_who_answers(backbone: Backbone, pictures: list[Path]) -> None:
    fact = Query("What animal is this?", pictures[0], " Zebra")
    editor = SERAC()
    edit = editor.edit(backbone, fact)
    near = Query("Which animal is this? ", pictures[0], "wolf")
    asked = [HAMLET, near, Query("What animal is this?", pictures[1])]
    network = serac.load_networks(backbone)[0]
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
    assert edit.generate(backbone, asked, max_new_tokens=3) == [expected[row] for row in range(3)]
    logits = SERACEdit.target_logits([edit], backbone, asked[:2])
    alone = [Edit.target_logits([], backbone, [HAMLET]), Edit.target_logits([], network.counterfactual, [routed[1]])]
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


# ---------------------------------------------------------------------- training


def test_losses_are_the_paper_s(backbone: Backbone, cases: list[EditCase]) -> None:
    network = SeracModel(backbone, SETTINGS)
    reading = read_cases(backbone, network, cases[:2])
    found = losses(network, reading)
    assert reading.nbytes > 0
    for row, case in enumerate(cases[:2]):
        probes = {probe.kind: probe.query for probe in case.probes}

        def similarity(query: Query, fact: Query = case.edit) -> torch.Tensor:
            one, other = (network.scope(network.embed(backbone, [each]))[0] for each in (query, fact))
            return torch.exp(-((one - other) ** 2).sum())

        nll = []
        for kind in ("t_generality", "m_generality"):
            text = f"{case.edit.prompt} {case.edit.target} {probes[kind].prompt}"
            batch = network.counterfactual.encode([replace(probes[kind], prompt=text)])
            nll.append(token_nll(network.counterfactual.forward(batch), batch.labels)[0])
        assert found["nll"][row].item() == pytest.approx(sum(nll).item() / 2, rel=1e-3)
        inside = -sum(similarity(probes[kind]).log() for kind in ("t_generality", "m_generality")) / 2
        outside = -sum((1 - similarity(probes[kind])).log() for kind in ("t_locality", "m_locality")) / 2
        assert found["scope"][row].item() == pytest.approx((inside + outside).item() / 2, rel=1e-3)


def test_training_teaches_both_networks_and_not_the_backbone(backbone: Backbone, cases: list[EditCase]) -> None:
    weights = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    network = SeracModel(backbone, SETTINGS)
    steps, reading, history = optimizer(network), read_cases(backbone, network, cases), []
    for _ in range(12):
        steps.zero_grad()
        found = losses(network, reading)
        history.append({name: loss.mean().item() for name, loss in found.items()})
        sum(weight * found[name].mean() for name, weight in serac.WEIGHTS.items()).backward()
        steps.step()
    assert history[-1]["nll"] < 0.7 * history[0]["nll"]
    assert history[-1]["scope"] < 0.7 * history[0]["scope"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.model.state_dict().items())
    assert not any(weight.requires_grad for weight in backbone.model.parameters())


def test_a_question_that_is_the_edit_s_own_does_not_make_the_loss_infinite(
    backbone: Backbone, cases: list[EditCase]
) -> None:
    probes = tuple(replace(p, query=cases[0].edit) if p.kind == "m_locality" else p for p in cases[0].probes)
    network = SeracModel(backbone, SETTINGS)
    found = losses(network, read_cases(backbone, network, [replace(cases[0], probes=probes)]))
    assert found["scope"].isfinite().all()
    found["scope"].sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.scope.parameters())


def test_a_case_without_a_kind_of_probe_is_refused(backbone: Backbone, cases: list[EditCase]) -> None:
    poor = replace(cases[0], probes=tuple(probe for probe in cases[0].probes if probe.kind != "t_locality"))
    with pytest.raises(UnikeError, match="case case-0 cannot be learned from: it has no t_locality"):
        read_cases(backbone, SeracModel(backbone, SETTINGS), [poor])


def test_the_classifier_may_be_blind(backbone: Backbone, pictures: list[Path]) -> None:
    network = SeracModel(backbone, SERACNetworkSettings(sees_images=False))
    queries = [Query("What?", pictures[0]), Query("What?", pictures[1]), Query("Who?", pictures[0])]
    first, same, other = network.scope(network.embed(backbone, queries))
    assert torch.equal(first, same) and not torch.allclose(first, other, atol=1e-2)


# ---------------------------------------------------------------------- files


def test_networks_are_found_where_they_were_saved(backbone: Backbone, facts: list[Query], tmp_path: Path) -> None:
    trained = SeracModel(backbone, SETTINGS, seed=5)
    with torch.no_grad():
        next(iter(trained.layers.parameters())).mul_(1.5)
    hashes = {"ab" * 8: "0f" * 96}
    sources = {"images": hashes, "questions": [["What?", "ab" * 8], ["Who?", None]]}
    save_networks(trained, backbone, tmp_path / "mine", sources)
    loaded, fingerprint = serac.load_networks(backbone, tmp_path / "mine")
    assert loaded.settings == SETTINGS and not loaded.training
    state = trained.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert not torch.equal(fingerprint, serac.load_networks(backbone)[1])
    editor = SERAC(trained=str(tmp_path / "mine"))
    assert editor.sources(backbone) == [Trace("What?", ImageHashes("ab" * 8, "0f" * 96)), Trace("Who?", None)]
    assert SERAC().sources(backbone) == []


def test_what_does_not_fit_is_refused(backbone: Backbone, facts: list[Query], tmp_path: Path) -> None:
    def refused(match: str, make: Callable[[], object]) -> None:
        with pytest.raises(UnikeError, match=match) as caught:
            make()
        assert "\n" not in str(caught.value)

    other = tinies()["llava"](1)
    refused("serac has not been trained for 'tiny-llava' yet; run: unike train", lambda: SERAC().edit(other, facts[0]))
    elsewhere = SERAC(trained=str(place(backbone)))
    refused(r"was trained for 'serac' on 'tiny-llava', not for", lambda: elsewhere.edit(other, facts[0]))
    edit = SERAC().edit(backbone, facts[0])
    again = tinies()["llava"]()
    save_networks(SeracModel(again, SETTINGS, seed=1), again, place(again), NOTHING)
    refused("was made with other networks of serac", lambda: edit.generate(again, facts[:1]))
    save_networks(SeracModel(again, SETTINGS), again, tmp_path / "bad", NOTHING)
    save_file({"x": torch.zeros(1)}, tmp_path / "bad" / "trained.safetensors")
    refused("is damaged", lambda: SERAC(trained=str(tmp_path / "bad")).edit(again, facts[0]))
