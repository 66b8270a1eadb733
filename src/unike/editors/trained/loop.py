"""Training an editor's network (`unike.editors.trained.base`): one loop for all methods that have one.

A network learns from cases of a train split that the backbone gets wrong. Others, of which it sees nothing, decide when
to stop and which network is kept. What lies below the edited layers is computed once for each batch of cases, so
batches are made once, and only their order changes.

Every validation leaves a checkpoint in ``.work`` of the folder to be: network, optimiser, the best network so far and
the log, never a pickle. A run that is cut off goes on there, and ends with the same network; with more steps it goes
on for longer, and with fewer it ends, with the best network so far.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.answers import check_unedited
from unike.core.errors import UnikeError
from unike.core.folders import WORK, check_folder, replace_folder
from unike.core.progress import Progress, silent
from unike.core.settings import Settings
from unike.core.version import __version__
from unike.data.leaks import LeakGuard
from unike.data.provenance import describe_data, every_query
from unike.data.queries import EditCase
from unike.editors.trained.artifact import CONFIG_FILE, LOG_FILE, SAVED, Trained, log_lines
from unike.editors.trained.base import TrainedEditor
from unike.editors.trained.cases import FrozenBatches, batches_of, choose
from unike.editors.trained.checkpoint import Checkpoints
from unike.editors.trained.config import TrainConfig
from unike.editors.trained.meta_objective import probes_of

MADE_FROM = ("editor", "backbone", "network", "config", "data")
"""What makes a description that of another network."""

WHEN_IT_ENDS = ("steps", "patience")
"""Settings that only say when training ends: a run that was cut off may go on with others."""


def train(
    backbone: Backbone,
    editor: TrainedEditor[Any],
    cases: Sequence[EditCase],
    validation: Sequence[EditCase],
    out: Path,
    *,
    network_settings: Settings | None = None,
    config: TrainConfig | None = None,
    against: Sequence[EditCase] = (),
    progress: Progress = silent,
) -> Trained:
    """Train the network of an editor for a backbone.

    Args:
        backbone: Without edits; it is left as it is.
        editor: The method.
        cases: Of a train split.
        validation: Others.
        out: The folder to write; if it holds the very same already, that is read. What an earlier run left there is
            used.
        network_settings: Of the network; None for the method's own.
        config: Settings of the loop.
        against: What will be evaluated on: nothing that shares a picture or a telling question with it, or with
            ``validation``, is learned from.
        progress: Told about every stage.

    Returns:
        The network with the least validation loss, as it was written.

    Raises:
        UnikeError: The folder holds something else or another run, a setting does not fit the backbone, a picture
            cannot be read, too few cases are left, or training diverges.
    """
    config = config or TrainConfig()
    network_settings = network_settings or editor.network_settings()
    check_place(out)
    described = describe(editor, backbone, cases, validation, against, network_settings, config)
    if is_trained(out, described):
        return Trained.from_pretrained(out)
    check_unedited(backbone)
    network = editor.build(backbone, network_settings, config.seed)

    protected = every_query([*against, *validation])
    guard = LeakGuard(protected, every_query(cases), partial(progress, "reading pictures"))
    clean = guard.clean(cases)
    learned = choose(backbone, clean, config.cases, config.seed, partial(progress, "asking"))
    judged = choose(backbone, validation, config.held_out, config.seed, partial(progress, "asking, to validate"))

    training = Training(backbone, editor, network, network_settings, learned, judged, config)
    training.resume(Checkpoints(out / WORK, what_it_depends_on(described, backbone, config)))
    training.finish(partial(progress, "training"))

    counts = {"cases": len(cases), "without leaks": len(clean), "learned from": len(learned)}
    described |= {"report": counts | {"best": training.best}, "sources": sources_of(learned, guard)}
    trained = Trained(described, training.best_tensors)
    replace_folder(out, trained.files() | {LOG_FILE: log_lines(training.log)}, known_by=WORK)
    return trained


# ---------------------------------------------------------------------- the folder


def describe(
    editor: TrainedEditor[Any],
    backbone: Backbone,
    cases: Sequence[EditCase],
    validation: Sequence[EditCase],
    against: Sequence[EditCase],
    network_settings: Settings,
    config: TrainConfig,
) -> dict[str, Any]:
    """What a network is made from."""
    return {
        "unike": __version__,
        "editor": editor.name,
        "backbone": {
            "source": backbone.source,
            "fingerprint": backbone.fingerprint(),
            "template": backbone.template,
        },
        "network": network_settings.model_dump(mode="json"),
        "config": config.model_dump(mode="json", exclude={"cache_gb"}),
        "data": describe_data(cases, against) | {"validation": describe_data(validation, ())["sha256"]},
    }


def what_it_depends_on(described: Mapping[str, Any], backbone: Backbone, config: TrainConfig) -> dict[str, Any]:
    """What makes a training another one than that whose checkpoint is there."""
    loop = config.model_dump(mode="json", exclude={"cache_gb", *WHEN_IT_ENDS})
    return {key: described[key] for key in MADE_FROM} | {"config": loop, "dtype": str(backbone.dtype)}


def sources_of(cases: Sequence[EditCase], guard: LeakGuard) -> list[dict[str, Any]]:
    """Every question that is learned from, once, as files keep it."""
    asked = (query for case in cases for query in (probes_of(case) or {}).values())
    return [trace.to_json() for trace in dict.fromkeys(map(guard.trace, asked))]


def is_trained(out: Path, described: Mapping[str, Any]) -> bool:
    """Whether a folder holds the network that is described; reads no tensors."""
    try:
        there = SAVED.describe(out)
    except UnikeError:
        return False
    return all(there.get(key) == described[key] for key in MADE_FROM)


def check_place(out: Path) -> None:
    """Refuse a folder that is neither new nor a trained network, finished or begun."""
    check_folder(out, known_by=WORK if (out / WORK).is_dir() else CONFIG_FILE)


# ---------------------------------------------------------------------- the loop


class Training:
    """A network while it is trained.

    Args:
        backbone: The model.
        editor: The method.
        network: Its network.
        network_settings: Of that.
        learned: The cases to learn from.
        judged: The cases to validate on.
        config: Settings.

    Attributes:
        log: One entry for each validation, the first of the untrained network.
        best_tensors: The network with the least validation loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        editor: TrainedEditor[Any],
        network: nn.Module,
        network_settings: Settings,
        learned: Sequence[EditCase],
        judged: Sequence[EditCase],
        config: TrainConfig,
    ) -> None:
        self.backbone, self.editor, self.network, self.network_settings = backbone, editor, network, network_settings
        self.optimizer = editor.optimizer(network, network_settings)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.config, self.n_judged = config, len(judged)
        self.batches = batches_of(learned, config.batch)
        judged_batches = batches_of(judged, config.batch)
        read = partial(editor.read, backbone, network)
        self.frozen = FrozenBatches(read, [*self.batches, *judged_batches], config.cache_gb * 2**30)
        self.judged = range(len(self.batches), len(self.batches) + len(judged_batches))
        self.log: list[dict[str, Any]] = []
        self.best_tensors: dict[str, Tensor] = {}
        self.checkpoints: Checkpoints | None = None
        self.started = time.monotonic()

    @property
    def step(self) -> int:
        """Of the last validation."""
        return int(self.log[-1]["step"]) if self.log else 0

    @property
    def best(self) -> dict[str, Any]:
        """The validation of the best network, without the time it took."""
        return {key: value for key, value in self._best_entry.items() if key != "seconds"}

    @property
    def _best_entry(self) -> dict[str, Any]:
        return min(self.log, key=lambda entry: entry["validation"]["loss"])

    def resume(self, checkpoints: Checkpoints) -> None:
        """Leave checkpoints from here on, and go on from the one that is there.

        Raises:
            UnikeError: It is one of another training, or damaged.
        """
        self.checkpoints = checkpoints
        self.best_tensors, self.log = checkpoints.restore(self.network, self.optimizer)
        if self.log:
            self.started -= self.log[-1]["seconds"]

    def finish(self, progress: Callable[[int, int], None]) -> None:
        """Train to the end, from where it stands.

        Raises:
            UnikeError: A loss is not finite.
        """
        if not self.log:
            self.validate({})
        sums: dict[str, float] = {}
        for step in range(self.step + 1, self.config.steps + 1):
            if self.is_done():
                break
            progress(step - 1, self.config.steps)
            for kind, loss in self.take_step(step).items():
                sums[kind] = sums.get(kind, 0.0) + loss
            if step % self.config.every == 0 or step == self.config.steps:
                taken = step - self.step
                self.validate({kind: total / taken for kind, total in sums.items()}, step)
                sums = {}
        progress(self.config.steps, self.config.steps)

    def is_done(self) -> bool:
        """Whether the best network is too long ago."""
        return len(self.log) - 1 - self.log.index(self._best_entry) >= self.config.patience

    def take_step(self, step: int) -> dict[str, float]:
        """One step on the batch whose turn it is; returns the mean losses.

        Raises:
            UnikeError: The loss is not finite.
        """
        epoch, place = divmod(step - 1, len(self.batches))
        order = random.Random(f"{self.config.seed}-{epoch}").sample(range(len(self.batches)), len(self.batches))
        frozen = self.frozen[order[place]]
        self.network.train()
        self.optimizer.zero_grad()
        with torch.enable_grad():
            losses = self.editor.objective(self.backbone, self.network, frozen).losses
            total = self.editor.total(self.network, losses)
        check_finite(total.item(), step)
        total.backward()
        if self.editor.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.editor.clip)
        warmth = self.editor.warmth(self.network_settings, step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = warmth * rate
        self.optimizer.step()
        self.editor.stepped(self.network)
        return {kind: loss.mean().item() for kind, loss in losses.items()}

    @torch.no_grad()
    def validate(self, train: Mapping[str, float], step: int = 0) -> None:
        """Measure the network on the cases it does not learn from, log it, and leave a checkpoint."""
        self.network.eval()
        means: dict[str, dict[str, float]] = {"losses": {}, "scores": {}}
        for number in self.judged:
            objective = self.editor.objective(self.backbone, self.network, self.frozen[number])
            for what, values in (("losses", objective.losses), ("scores", objective.scores)):
                for kind, value in values.items():
                    means[what][kind] = means[what].get(kind, 0.0) + value.sum().item() / self.n_judged
        loss = sum(weight * means["losses"][kind] for kind, weight in self.editor.weights.items())
        check_finite(loss, step)
        entry = {
            "step": step,
            "train": rounded(train),
            "validation": {"loss": loss, "losses": rounded(means["losses"]), "scores": rounded(means["scores"])},
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self.log.append(entry)
        if self._best_entry is entry:
            self.best_tensors = {name: t.detach().cpu().clone() for name, t in self.network.state_dict().items()}
        self.editor.validated(self.network, self.network_settings, means["scores"])
        if self.checkpoints is not None:
            self.checkpoints.save(self.network, self.optimizer, self.best_tensors, self.log)


def check_finite(loss: float, step: int) -> None:
    """Refuse a loss that nothing can be learned from.

    Raises:
        UnikeError: It is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise UnikeError(f"training diverged at step {step}: the loss is {loss}; set a lower lr")


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """For people to read."""
    return {name: round(value, 6) for name, value in values.items()}
