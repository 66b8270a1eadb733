"""The loop that trains editors' networks, on a tiny model: it learns, keeps the best, and goes on after a kill."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniature
import pytest
import torch
from PIL import Image
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import kl, target_positions, token_nll
from unike.backbones.forward.hooks import Hooks
from unike.cli import _shared
from unike.cli.train import split_cases
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import WORK
from unike.data.datasets.pocket import Pocket
from unike.data.leaks import Trace, read_hashes
from unike.data.queries import EditCase, Probe, Query
from unike.editors.common.low_rank import install_low_rank
from unike.editors.ft import FT
from unike.editors.ke.editor import KENetworkSettings
from unike.editors.mend.editor import MEND, MENDNetworkSettings
from unike.editors.trained import loop as training
from unike.editors.trained import meta_objective
from unike.editors.trained.artifact import Trained
from unike.editors.trained.base import matrix
from unike.editors.trained.loop import Readings, TrainConfig, batches_of, choose, parse_settings, train, trainable
from unike.editors.trained.meta_objective import KINDS, UNRELATED, probes_of
from unike.editors.trained.token_gradients import token_gradients

FAST: dict[str, Any] = {
    "mend": MENDNetworkSettings(layers=(-2, -1), rank=4, step_size=1e-2, lr=1e-3, lr_step_size=1e-2),
    "ke": KENetworkSettings(layers=(-2, -1), lr=1e-2, margin=0.1, enough=0.1),
}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve pictures that nobody would mix up."""
    folder, generator = tmp_path_factory.mktemp("gallery"), torch.Generator().manual_seed(1)
    for number in range(10, 22):
        pixels = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def learned(gallery: list[Path]) -> list[EditCase]:
    """About eight pictures, so that what all ask says nothing about one of them."""
    return [miniature.case(number, [gallery[(number + i) % 8] for i in range(3)]) for number in range(6)]


@pytest.fixture(scope="module")
def judged(gallery: list[Path]) -> list[EditCase]:
    return [miniature.case(number, gallery[8:11]) for number in range(20, 23)]


@pytest.fixture(scope="module")
def model(learned: list[EditCase]) -> Backbone:
    return miniature.teach(learned)


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))


class Killed(Exception):
    """What a test ends a run with."""


def trained(
    model: Backbone,
    learned: list[EditCase],
    judged: list[EditCase],
    out: Path,
    kill_at: int | None = None,
    editor: str = "mend",
    **kwargs: Any,
) -> Trained:
    def watch(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == kill_at:
            raise Killed

    settings = {"steps": 16, "batch": 2, "every": 4} | kwargs
    return train(
        model,
        registry.editors.get(editor)(),
        learned,
        judged,
        out,
        network_settings=FAST[editor],
        config=TrainConfig(**settings),
        progress=watch,
    )


def log_of(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in training.read_log(out)]


# ---------------------------------------------------------------------- it learns


def test_an_editor_is_told_of_each_step_and_each_validation(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    norms: list[float] = []
    told: list[set[str]] = []

    class Spy(MEND):
        clip = 1e-3

        def stepped(self, network: Any) -> None:
            norms.append(torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm().item())

        def validated(self, network: Any, settings: Any, scores: Mapping[str, float]) -> None:
            told.append({*scores})

    config = TrainConfig(steps=6, batch=2, every=3)
    train(model, Spy(), learned, judged, tmp_path / "out", network_settings=FAST["mend"], config=config)
    assert len(norms) == 6 and max(norms) == pytest.approx(1e-3, rel=1e-3)
    assert told == [{*KINDS}] * 3, "before the first step, too"


def test_the_loss_falls_and_the_best_network_is_kept(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    found = trained(model, learned, judged, tmp_path / "out", steps=18, every=3)  # an epoch each
    log = log_of(tmp_path / "out")
    losses = [entry["validation"]["loss"] for entry in log]
    assert [entry["step"] for entry in log] == list(range(0, 19, 3))
    assert min(losses) < 0.97 * losses[0]
    learning = [sum(w * entry["train"][kind] for kind, w in MEND.weights.items()) for entry in log[1:]]
    assert learning[-1] < 0.97 * learning[0]
    best = min(log, key=lambda entry: entry["validation"]["loss"])
    assert found.description["report"]["best"] == best
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())

    network = MEND(trained=str(tmp_path / "out")).network(model)
    outcome = MEND().outcome(model, network, MEND().read(model, network, judged))
    for kind in KINDS:
        assert outcome.losses[kind].mean().item() == pytest.approx(best["validation"]["losses"][kind], abs=1e-4)
    edit = MEND(trained=str(tmp_path / "out")).edit(model, judged[0].edit)
    assert edit.tensors["-1.down_proj.reads"].any()


def test_a_run_that_diverged_keeps_the_network_from_before(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    wild = FAST["mend"].model_copy(update={"lr_step_size": 30.0})
    config = TrainConfig(steps=6, batch=2, every=1, patience=3)
    found = train(model, MEND(), learned, judged, tmp_path / "out", network_settings=wild, config=config)
    log = log_of(tmp_path / "out")
    assert found.description["report"]["best"]["step"] == 0
    assert [entry["step"] for entry in log] == [0, 1, 2, 3], "three validations without a gain are enough"
    assert torch.equal(found.tensors["step_sizes"], torch.full((6,), 1e-2))


def test_what_is_not_finite_ends_the_run(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MEND, "total", lambda self, network, losses: losses["t_generality"].sum() / 0)
    with pytest.raises(UnikeError, match=r"training diverged at step 1: the loss is inf; set a lower lr"):
        trained(model, learned, judged, tmp_path / "out")


# ---------------------------------------------------------------------- it goes on


@pytest.mark.parametrize(("editor", "kill_at"), [("mend", 0), ("mend", 9), ("ke", 14)])
def test_killed_and_resumed_is_as_if_never_killed(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path, editor: str, kill_at: int
) -> None:
    whole = trained(model, learned, judged, tmp_path / "whole", editor=editor)
    with pytest.raises(Killed):
        trained(model, learned, judged, tmp_path / "torn", kill_at, editor=editor)
    steps: list[int] = []
    original = training.Run.take_step

    def count(self: training.Run, step: int) -> dict[str, float]:
        steps.append(step)
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Run, "take_step", count)
        again = trained(model, learned, judged, tmp_path / "torn", editor=editor)
    assert steps == list(range(kill_at // 4 * 4 + 1, 17)), "from the last checkpoint on"
    assert log_of(tmp_path / "torn") == log_of(tmp_path / "whole")
    assert again.description == whole.description
    assert again.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in again.tensors.items())
    assert sorted(path.name for path in (tmp_path / "torn").iterdir()) == [
        "log.jsonl",
        "trained.json",
        "trained.safetensors",
    ]


def test_a_torn_run_may_end_sooner_or_later(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    """With the best network so far; or as if it had been asked for more steps from the start."""
    for place in ("sooner", "later"):
        with pytest.raises(Killed):
            trained(model, learned, judged, tmp_path / place, 9)
    sooner = trained(model, learned, judged, tmp_path / "sooner", steps=4)
    assert [entry["step"] for entry in log_of(tmp_path / "sooner")] == [0, 4, 8]
    assert sooner.description["report"]["best"] in [
        {key: entry[key] for key in ("step", "train", "validation")} for entry in log_of(tmp_path / "sooner")
    ]
    trained(model, learned, judged, tmp_path / "later", steps=20)
    trained(model, learned, judged, tmp_path / "at once", steps=20)
    assert log_of(tmp_path / "later") == log_of(tmp_path / "at once")


def test_what_is_there_is_not_trained_again(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    trained(model, learned, judged, tmp_path / "out", steps=2)
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").iterdir())]
    trained(model, learned, judged, tmp_path / "out", steps=2, cache_gb=1.0)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").iterdir())] == stamps
    trained(model, learned, judged, tmp_path / "out", steps=1)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").iterdir())] != stamps


def test_another_model_of_that_name_is_trained_anew(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    before = trained(model, learned, judged, tmp_path / "out", steps=1)
    other = miniature.teach(learned[:3])
    assert other.source == model.source and other.fingerprint() != model.fingerprint()
    after = trained(other, learned, judged, tmp_path / "out", steps=1)
    assert after.description["backbone"]["fingerprint"] == other.fingerprint()
    assert before.description["backbone"]["fingerprint"] == model.fingerprint()


def test_a_layer_that_is_not_there_is_told_before_anything_is_asked(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LeakGuard", lambda *_: pytest.fail("pictures were read"))
    with pytest.raises(UnikeError, match="layer 7 is out of range"):
        train(model, MEND(), learned, judged, tmp_path / "out", network_settings=MENDNetworkSettings(layers=(7,)))


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Killed):
        trained(model, learned, judged, out, 5)
    with pytest.raises(UnikeError, match=r"of a run with other settings, data or model; delete .*\.work"):
        trained(model, learned, judged, out, seed=1)
    checkpoint = out / WORK / "checkpoint" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(UnikeError, match=r"the checkpoint in .* is damaged"):
        trained(model, learned, judged, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years of work")
    with pytest.raises(UnikeError, match="choose another folder"):
        trained(model, learned, judged, tmp_path / "mine")


def test_a_small_cache_changes_nothing(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    whole = trained(model, learned, judged, tmp_path / "whole", steps=6)
    small = trained(model, learned, judged, tmp_path / "small", steps=6, cache_gb=0)
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in small.tensors.items())


def test_readings_are_kept_as_long_as_they_fit() -> None:
    class Ten:
        nbytes = 10

    asked: list[int] = []
    readings = Readings(lambda cases: asked.append(len(cases)) or Ten(), [[None] * n for n in range(4)], 25)  # type: ignore[list-item, func-returns-value]
    for _ in range(2):
        for number in range(4):
            assert readings[number].nbytes == 10
    assert asked == [0, 1, 2, 3, 2, 3]


# ---------------------------------------------------------------------- cases


def test_only_what_the_model_gets_wrong_and_has_every_probe(model: Backbone, learned: list[EditCase]) -> None:
    right = replace(learned[0], case_id="right", edit=replace(learned[0].edit, target="tin bat"))
    bare = replace(learned[1], case_id="bare", probes=learned[1].probes[:3])
    no_answer = Probe("t_locality", Query("?", None, None))
    mute = replace(learned[2], case_id="mute", probes=(*learned[2].probes[:2], no_answer, learned[2].probes[3]))
    assert model.generate([right.edit]) == ["tin bat"]
    wrong = [case for case in learned if model.generate([case.edit]) != [case.edit.target]]
    found = choose(model, [right, bare, mute, *learned], 100, 0)
    assert {case.case_id for case in found} == {case.case_id for case in wrong}
    assert choose(model, learned, 2, 0) == found[:0] + choose(model, learned, 100, 0)[:2]
    assert choose(model, learned, 100, 1) != choose(model, learned, 100, 0)
    with pytest.raises(UnikeError, match="none of 3 cases can be trained with: 1 have"):
        choose(model, [right, bare, mute], 5, 0)


def test_nothing_of_the_evaluation_is_learned_from(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], gallery: list[Path], tmp_path: Path
) -> None:
    """Not its pictures either, nor those of validation; what was learned from can be looked up."""
    secret = gallery[3]
    against = [EditCase("e", Query("??", secret, "x"), ())]
    config = TrainConfig(steps=0, batch=2)
    found = train(
        model,
        MEND(),
        [*learned, *[replace(case, case_id=f"again-{case.case_id}") for case in judged]],
        judged,
        tmp_path / "out",
        network_settings=FAST["mend"],
        config=config,
        against=against,
    )
    clean = [c for c in learned if secret not in {q.image for q in (c.edit, *(p.query for p in c.probes))}]
    assert found.description["report"]["without leaks"] == len(clean) < len(learned)
    asked = {query for case in clean for query in (probes_of(case) or {}).values()}
    hashes = read_hashes([q.image for q in asked if q.image is not None])
    expected = {Trace(q.prompt, None if q.image is None else hashes[q.image]) for q in asked}
    assert len(found.sources) == len(expected) and {*found.sources} == expected


def test_batches_do_not_mix_questions_with_and_without_a_picture(learned: list[EditCase]) -> None:
    bare = [replace(case, edit=replace(case.edit, image=None)) for case in learned[:3]]
    mixed = [learned[0], bare[0], *learned[1:4], *bare[1:]]
    batches = batches_of(mixed, 2)
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
    assert sorted(case.case_id for batch in batches for case in batch) == sorted(case.case_id for case in mixed)
    for batch in batches:
        assert len({case.edit.image is None for case in batch}) == 1


# ---------------------------------------------------------------------- the objective


def test_the_objective_is_nll_and_divergence(model: Backbone, learned: list[EditCase]) -> None:
    """Against each question asked by itself, under an edit of its own."""
    network = MEND().build(model, FAST["mend"].model_copy(update={"step_size": 1.0})).eval()
    outcome = MEND().outcome(model, network, MEND().read(model, network, learned[:3]))
    for row, case in enumerate(learned[:3]):
        alone = MEND().read(model, network, [case])
        edit = {name: (u, d) for name, (u, d) in edits_of(model, network, case).items()}
        for kind, query in (probes_of(case) or {}).items():
            batch = model.encode([query])
            plain, edited = model.forward(batch), under(model, edit, query)
            positions = target_positions(batch.labels)
            if kind in UNRELATED:
                expected = kl(plain[positions], edited[positions]).mean()
                unchanged = (plain[positions].argmax(-1) == edited[positions].argmax(-1)).all()
                assert outcome.scores[kind][row] == float(unchanged)
            else:
                expected = token_nll(edited, batch.labels)[0]
            assert outcome.losses[kind][row].item() == pytest.approx(expected.item(), abs=1e-3), kind
            assert meta_objective.ask(model, alone.questions, [kind]).losses.keys() == {kind}


def edits_of(model: Backbone, network: Any, case: EditCase) -> dict[str, tuple[Tensor, Tensor]]:
    state = model.run_to_split(model.encode([case.edit]), -2)
    found: dict[str, tuple[Tensor, Tensor]] = network(token_gradients(model, state, network.layers))
    return found


def under(model: Backbone, factors: dict[str, tuple[Tensor, Tensor]], query: Query) -> Tensor:
    with Hooks() as hooks:
        for name, pair in factors.items():
            install_low_rank(matrix(model, name), *pair, hooks)
        return model.forward(model.encode([query]))


# ---------------------------------------------------------------------- settings, and the command line


def test_settings_are_shared_out() -> None:
    network, loop = parse_settings(MEND(), {"rank": 3, "steps": 7, "layers": [-1]})
    assert (network.rank, network.layers, loop.steps) == (3, (-1,), 7)
    for wrong, message in [
        ({"ranks": 3}, "unknown setting 'ranks'; did you mean 'rank'"),
        ({"batchs": 3}, "unknown setting 'batchs'; did you mean 'batch'"),
        ({"batch": 0}, "setting batch=0"),
        ({"rank": "many"}, "setting rank='many'"),
    ]:
        with pytest.raises(UnikeError, match=message):
            parse_settings(MEND(), wrong)
    with pytest.raises(UnikeError, match="ft has no network to train"):
        trainable(FT())


Cli = Callable[..., Any]


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    every: Callable[[Pocket, str], list[EditCase]] = Pocket.cases
    monkeypatch.setattr(Pocket, "cases", lambda self, split: every(self, split)[::400])


def test_a_run_from_the_command_line(cli: Cli, few_cases: None, tiny_folder: Path) -> None:
    small = [part for pair in ("layers=[-1]", "rank=2", "batch=2", "cases=3", "held_out=2") for part in ("--set", pair)]
    args = ("train", "--editor", "mend", "--model", tiny_folder, "--task", "vqa", "--steps", 2, *small)
    result = cli(*args, "--out", "net", "--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    assert told["saved"] == "net" and told["report"]["learned from"] == 3
    assert [entry["step"] for entry in told["log"]] == [0, 2]
    again = cli(*args, "--out", "net")
    assert again.code == 0 and "saved in net" in again.out and "before" in again.out
    edited = ("edit", "--model", tiny_folder, "--editor", "mend", "--prompt", "2 + 2?", "--target", "five", "--json")
    assert cli(*edited, "--set", "trained=net").code == 0
    assert cli("train", "--help").code == 0


def test_an_untrained_editor_is_one_line(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    args = ("edit", "--model", tiny_folder, "--editor", "mend", "--prompt", "2 + 2?", "--target", "five")
    assert cli(*args).is_error("mend has not been trained for", "run: unike train --editor mend --model")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--editor", "ft"), "ft has no network to train"),
        (("--editor", "mendd"), "unknown editor 'mendd'; did you mean 'mend'"),
        (("--editor", "mend", "--data", "poket"), "unknown dataset 'poket'"),
        (("--editor", "mend", "--task", "poetry"), "pocket has no task 'poetry'"),
        (("--editor", "mend", "--set", "rnk=3"), "unknown setting 'rnk'; did you mean 'rank'"),
        (("--editor", "mend", "--set", "steps=3", "--steps", "4"), "give it once"),
        (("--editor", "mend", "--device", "abacus"), "unknown device 'abacus'"),
        (("--editor", "mend", "--out", "mine"), "mine exists and is something else"),
    ],
)
def test_bad_input_is_known_before_the_model_is_loaded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(_shared, "load", lambda *_: pytest.fail("the model was loaded"))
    Path("mine").mkdir()
    Path("mine/thesis").write_text("years of work")
    assert cli("train", *args).is_error(message)


def test_validation_is_on_dev_or_on_pictures_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, validation, against = split_cases("pocket", "vqa", None)
    assert {case.case_id.split("-")[1] for case in cases} == {"train"}
    assert {case.case_id.split("-")[1] for case in validation} == {"dev"}
    assert {case.case_id.split("-")[1] for case in against} == {"dev", "eval"}
    monkeypatch.setattr(Pocket, "splits", ("train", "eval"))
    learned, validation, against = split_cases("pocket", "vqa", None)
    assert len(learned) + len(validation) == len(cases) and 0.05 < len(validation) / len(cases) < 0.15
    assert not {case.edit.image for case in learned} & {case.edit.image for case in validation}
    assert {case.case_id.split("-")[1] for case in against} == {"eval"}
