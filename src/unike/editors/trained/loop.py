"""Training an editor's network (`unike.editors.trained.base`): one loop for all methods that have one.

A network learns from cases of a train split that the backbone gets wrong. Others, of which it sees nothing, decide when
to stop and which network is kept. What lies below the edited layers is computed once for each batch of cases, so
batches are made once, and only their order changes.

Every validation leaves a checkpoint in ``.work`` of the folder to be: network, optimiser, the best network so far and
the log, never a pickle. A run that is cut off goes on there, and ends with the same network; with more steps it goes
on for longer, and with fewer it ends, with the best network so far.
"""

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers, check_unedited
from unike.core.errors import UnikeError
from unike.core.files import WORK, SealedFolder, check_folder, replace_file, replace_folder
from unike.core.progress import Progress, silent
from unike.core.registry import did_you_mean
from unike.core.settings import Settings
from unike.core.version import __version__
from unike.data.leaks import LeakGuard
from unike.data.matching import exact_match
from unike.data.provenance import describe_data, every_query
from unike.data.queries import EditCase
from unike.editors.trained.artifact import CONFIG_FILE, LOG_FILE, SAVED, Trained
from unike.editors.trained.base import Readable, TrainedEditor
from unike.editors.trained.meta_objective import probes_of

CHECKPOINT = SealedFolder(
    "checkpoint", "checkpoint.json", "checkpoint.safetensors", version=1, keys=frozenset({"made_from", "log"})
)

MADE_FROM = ("editor", "backbone", "network", "config", "data")
"""What makes a description that of another network."""

WHEN_IT_ENDS = ("steps", "patience")
"""Settings that only say when training ends: a run that was cut off may go on with others."""

ASKED_TOGETHER = 64
"""Cases that are looked at together, to find those that the backbone gets wrong."""


class TrainConfig(Settings):
    """Settings of `train`, whatever the method.

    Attributes:
        steps: At most so many.
        batch: Cases a step.
        cases: Learn from at most so many.
        held_out: Validate on at most so many.
        every: Steps between validations.
        patience: Validations without a gain after which training ends.
        cache_gb: Memory for what is computed once, in GiB; what does not fit is computed in every epoch.
        seed: Of the choice of cases, their order, and the network's start.
    """

    steps: int = Field(default=5000, ge=0)
    batch: int = Field(default=8, ge=1)
    cases: int = Field(default=1000, ge=1)
    held_out: int = Field(default=64, ge=1)
    every: int = Field(default=100, ge=1)
    patience: int = Field(default=10, ge=1)
    cache_gb: float = Field(default=2.0, ge=0)
    seed: int = 0


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
    clean = [case for case in cases if not any(guard.leak(query) for query in every_query([case]))]
    learned = choose(backbone, clean, config.cases, config.seed, partial(progress, "asking"))
    judged = choose(backbone, validation, config.held_out, config.seed, partial(progress, "asking, to validate"))

    run = Run(backbone, editor, network, network_settings, learned, judged, config)
    loop = config.model_dump(mode="json", exclude={"cache_gb", *WHEN_IT_ENDS})
    run.resume(out / WORK, {key: described[key] for key in MADE_FROM} | {"config": loop, "dtype": str(backbone.dtype)})
    run.finish(partial(progress, "training"))

    asked = (query for case in learned for query in (probes_of(case) or {}).values())
    described |= {
        "report": {"cases": len(cases), "without leaks": len(clean), "learned from": len(learned), "best": run.best},
        "sources": [trace.to_json() for trace in dict.fromkeys(map(guard.trace, asked))],
    }
    trained = Trained(described, run.best_tensors)
    replace_folder(out, trained.files() | {LOG_FILE: run.log_lines()}, known_by=WORK)
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


# ---------------------------------------------------------------------- cases


def choose(
    backbone: Backbone,
    cases: Sequence[EditCase],
    count: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[EditCase]:
    """Cases that the backbone gets wrong and that have every probe a network is trained with.

    Args:
        backbone: Without edits.
        cases: In any order.
        count: At most so many; no more are asked than that takes.
        seed: Of the order they are looked at in.
        progress: Called with the number of cases found, and ``count``.

    Raises:
        UnikeError: There is none.
    """
    order = [case for case in cases if probes_of(case)]
    random.Random(seed).shuffle(order)
    answers = Answers(backbone, backbone.room([case.edit.target or "" for case in order]))
    found: list[EditCase] = []
    for start in range(0, len(order), ASKED_TOGETHER):
        part = order[start : start + ASKED_TOGETHER]
        answers.ask([case.edit for case in part])
        found += [case for case in part if not exact_match(answers[case.edit], case.edit.target or "")]
        progress(min(len(found), count), count)
        if len(found) >= count:
            break
    if not found:
        raise UnikeError(
            f"none of {len(cases)} cases can be trained with: {len(order)} have both rephrasings and unrelated "
            f"questions with answers, and {backbone.source} gets all of those right"
        )
    return found[:count]


def batches_of(cases: Sequence[EditCase], size: int) -> list[list[EditCase]]:
    """Batches in which a kind of question has a picture in all cases or in none; some families cannot mix the two."""
    alike: dict[tuple[bool, ...], list[EditCase]] = {}
    for case in cases:
        pictured = tuple(query.image is not None for query in (probes_of(case) or {}).values())
        alike.setdefault(pictured, []).append(case)
    return [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]


class Readings:
    """What is computed once for each batch, as long as memory lasts.

    Args:
        read: Computes it.
        batches: Of cases.
        limit: In bytes.
    """

    def __init__(
        self, read: Callable[[Sequence[EditCase]], Readable], batches: Sequence[Sequence[EditCase]], limit: float
    ) -> None:
        self.read, self.batches, self.left = read, batches, limit
        self._kept: dict[int, Readable] = {}

    def __getitem__(self, number: int) -> Readable:
        if number in self._kept:
            return self._kept[number]
        reading = self.read(self.batches[number])
        if reading.nbytes <= self.left:
            self._kept[number] = reading
            self.left -= reading.nbytes
        return reading


# ---------------------------------------------------------------------- the loop


class Run:
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
        self.config, self.n_judged = config, len(judged)
        self.batches = batches_of(learned, config.batch)
        judged_batches = batches_of(judged, config.batch)
        read = partial(editor.read, backbone, network)
        self.readings = Readings(read, [*self.batches, *judged_batches], config.cache_gb * 2**30)
        self.judged = range(len(self.batches), len(self.batches) + len(judged_batches))
        self.log: list[dict[str, Any]] = []
        self.best_tensors: dict[str, Tensor] = {}
        self.folder: Path | None = None
        self.made_from: dict[str, Any] = {}
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
        reading = self.readings[order[place]]
        self.network.train()
        self.optimizer.zero_grad()
        with torch.enable_grad():
            losses = self.editor.outcome(self.backbone, self.network, reading).losses
            total = self.editor.total(self.network, losses)
        check_finite(total.item(), step)
        total.backward()
        if self.editor.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.editor.clip)
        self.optimizer.step()
        self.editor.stepped(self.network)
        return {kind: loss.mean().item() for kind, loss in losses.items()}

    @torch.no_grad()
    def validate(self, train: Mapping[str, float], step: int = 0) -> None:
        """Measure the network on the cases it does not learn from, log it, and leave a checkpoint."""
        self.network.eval()
        found: dict[str, dict[str, float]] = {"losses": {}, "scores": {}}
        for number in self.judged:
            outcome = self.editor.outcome(self.backbone, self.network, self.readings[number])
            for what, values in (("losses", outcome.losses), ("scores", outcome.scores)):
                for kind, value in values.items():
                    found[what][kind] = found[what].get(kind, 0.0) + value.sum().item() / self.n_judged
        loss = sum(weight * found["losses"][kind] for kind, weight in self.editor.weights.items())
        check_finite(loss, step)
        entry = {
            "step": step,
            "train": rounded(train),
            "validation": {"loss": loss, "losses": rounded(found["losses"]), "scores": rounded(found["scores"])},
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self.log.append(entry)
        if self._best_entry is entry:
            self.best_tensors = {name: t.detach().cpu().clone() for name, t in self.network.state_dict().items()}
        self.editor.validated(self.network, self.network_settings, found["scores"])
        self.save()

    # ------------------------------------------------------------------ checkpoints

    def log_lines(self) -> bytes:
        """The log as JSON, a line for each validation."""
        return "".join(json.dumps(entry) + "\n" for entry in self.log).encode()

    def save(self) -> None:
        """Write the checkpoint, and the log for people to look at."""
        if self.folder is None:
            return
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_tensors.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": t for name, t in state.items() if isinstance(t, Tensor)}
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        described = {"made_from": self.made_from, "log": self.log}
        replace_folder(
            self.folder / "checkpoint", CHECKPOINT.files(described, content), known_by=CHECKPOINT.description
        )
        replace_file(self.folder / LOG_FILE, self.log_lines())

    def resume(self, folder: Path, made_from: dict[str, Any]) -> None:
        """Leave checkpoints in a folder from here on, and go on from the one that is there.

        Raises:
            UnikeError: It is one of another run, or damaged.
        """
        self.folder, self.made_from = folder, made_from
        there = folder / "checkpoint"
        if not (there / CHECKPOINT.description).is_file():
            return
        described, content = CHECKPOINT.read(there)
        if described["made_from"] != made_from:
            raise UnikeError(
                f"{there} is of a run with other settings, data or model; delete {folder} to begin anew, or choose "
                "another folder"
            )
        try:
            tensors = load(content)
            self.network.load_state_dict(_below("network", tensors))
            states: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _below("optimizer", tensors).items():
                number, _, key = name.partition(".")
                states.setdefault(int(number), {})[key] = tensor
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
            self.best_tensors, self.log = _below("best", tensors), list(described["log"])
        except (LookupError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise CHECKPOINT.damaged(there, repr(error)) from None
        self.started -= self.log[-1]["seconds"]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


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


def read_log(out: Path) -> list[dict[str, Any]]:
    """The validations of a finished run.

    Raises:
        UnikeError: They cannot be read.
    """
    try:
        return [json.loads(line) for line in (out / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UnikeError(f"cannot read {out / LOG_FILE}: {error}") from None


def trainable(editor: Any) -> TrainedEditor[Any]:
    """The editor, if it has a network.

    Raises:
        UnikeError: It has none.
    """
    if not isinstance(editor, TrainedEditor):
        hint = "run: unike prepare" if editor.name == "unike" else "edit with it right away"
        raise UnikeError(f"{editor.name} has no network to train; {hint}")
    return editor


def parse_settings(editor: TrainedEditor[Any], settings: Mapping[str, Any]) -> tuple[Any, TrainConfig]:
    """Settings that a user wrote, shared out: those of the network and those of the loop.

    Raises:
        UnikeError: An unknown key or an impossible value.
    """
    of_loop = {key: value for key, value in settings.items() if key in TrainConfig.model_fields}
    of_network = {key: value for key, value in settings.items() if key not in of_loop}
    known = [*editor.network_settings.model_fields, *TrainConfig.model_fields]
    for key in of_network:
        if key not in known:
            raise UnikeError(did_you_mean("setting", key, sorted(known)))
    return editor.network_settings.parse(of_network), TrainConfig.parse(of_loop)
