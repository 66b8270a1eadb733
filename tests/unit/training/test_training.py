"""The loop that trains editors' networks, on a tiny model: it learns, keeps the best, and goes on after a kill."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import miniature
import pytest
import torch

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.folders import WORK
from unike.data.queries import EditCase
from unike.editors.ke.editor import KE, KENetworkSettings
from unike.editors.mend.editor import MEND, MENDNetworkSettings
from unike.editors.trained import loop
from unike.editors.trained.artifact import Trained, read_log
from unike.editors.trained.config import TrainConfig
from unike.editors.trained.loop import Training, train
from unike.editors.trained.meta_objective import KINDS

FAST: dict[str, Any] = {
    "mend": MENDNetworkSettings(layers=(-2, -1), rank=4, step_size=1e-2, lr=1e-3, lr_step_size=1e-2),
    "ke": KENetworkSettings(layers=(-2, -1), lr=1e-2, margin=0.1, enough=0.1),
}


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
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in read_log(out)]


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
    objective = MEND().objective(model, network, MEND().read(model, network, judged))
    for kind in KINDS:
        assert objective.losses[kind].mean().item() == pytest.approx(best["validation"]["losses"][kind], abs=1e-4)
    edit = MEND(trained=str(tmp_path / "out")).edit(model, judged[0].edit)
    assert edit.tensors["-1.down_proj.reads"].any()


def test_the_loop_warms_every_learning_rate_up(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path
) -> None:
    """A cold step changes nothing; the first that is warm takes the method's own rates."""
    rates: list[list[float]] = []
    moved: list[bool] = []
    before: list[torch.Tensor] = []

    class Spy(KE):
        def optimizer(self, network: Any, settings: Any) -> torch.optim.Optimizer:
            self.steps = super().optimizer(network, settings)
            before.append(network.condition.linear.weight.detach().clone())
            return self.steps

        def stepped(self, network: Any) -> None:
            rates.append([group["lr"] for group in self.steps.param_groups])
            moved.append(not torch.equal(network.condition.linear.weight, before[0]))

    settings = FAST["ke"].model_copy(update={"warmup": 2})
    config = TrainConfig(steps=4, batch=2, every=4)
    train(model, Spy(), learned, judged, tmp_path / "out", network_settings=settings, config=config)
    assert rates == [
        [0, 0],
        [settings.lr / 2, settings.lr_multiplier / 2],
        *[[settings.lr, settings.lr_multiplier]] * 2,
    ]
    assert moved == [False, True, True, True]


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


@pytest.mark.parametrize(
    ("editor", "kill_at"), [("mend", 0), ("mend", 9), pytest.param("ke", 14, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_is_as_if_never_killed(
    model: Backbone, learned: list[EditCase], judged: list[EditCase], tmp_path: Path, editor: str, kill_at: int
) -> None:
    whole = trained(model, learned, judged, tmp_path / "whole", editor=editor)
    with pytest.raises(Killed):
        trained(model, learned, judged, tmp_path / "torn", kill_at, editor=editor)
    steps: list[int] = []
    original = Training.take_step

    def count(self: Training, step: int) -> dict[str, float]:
        steps.append(step)
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "take_step", count)
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
    monkeypatch.setattr(loop, "LeakGuard", lambda *_: pytest.fail("pictures were read"))
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
