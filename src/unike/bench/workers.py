"""One run shared by several processes: on the cores of a machine, on GPUs under ``accelerate launch``, or by Ray.

Each process loads the model, edits its share of the units, and writes a part of the results; whoever reads takes the
parts together, so the numbers are those of one process. A run may go on with another number of processes.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from unike import api
from unike.backbones import load_backbone, quiet
from unike.backbones.adapter import Backbone
from unike.backbones.answers import ALONE, Team
from unike.bench.results import RunResults, read_run
from unike.bench.runner import evaluate
from unike.bench.selection import Task, read_tasks
from unike.bench.spec import RunSpec
from unike.core.errors import UnikeError
from unike.core.processes import end_with_parent
from unike.core.progress import Progress, silent

PATIENCE = timedelta(days=30)
"""How long processes wait for each other: as long as the slowest takes."""


def load_model(spec: RunSpec, progress: Progress = silent) -> Backbone:
    """The model that a run measures.

    Raises:
        UnikeError: No such model, or one that cannot be loaded.
    """
    progress("loading the model", 0, 1)
    backbone = load_backbone(
        spec.model,
        device=spec.device,
        dtype=spec.dtype,
        quantize=spec.quantize,
        template=spec.template,
        trust_remote_code=spec.trust_remote_code,
    )
    progress("loading the model", 1, 1)
    return backbone


def run(
    spec: RunSpec, out: Path, tasks: Sequence[Task], *, progress: Progress = silent, team: Team = ALONE
) -> RunResults:
    """Load model and method, and do this process's part of a run.

    Args:
        spec: What is measured.
        out: Folder of the results.
        tasks: Its cases, from `read_tasks`.
        progress: Told how far it is.
        team: As in `evaluate`.

    Raises:
        UnikeError: Bad input.
    """
    backbone = load_model(spec, progress)
    editor = api.make_editor(spec.editor, **spec.settings)
    return evaluate(backbone, editor, tasks, out, spec, progress=progress, team=team)


class Shares:
    """Progress of several processes as one.

    Args:
        progress: Told the sums.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.parts: dict[str, dict[int, tuple[int, int]]] = {}

    def tell(self, rank: int, what: str, done: int, total: int) -> None:
        """What one process has done of its part."""
        parts = self.parts.setdefault(what, {})
        parts[rank] = (done, total)
        self.progress(what, sum(part[0] for part in parts.values()), sum(part[1] for part in parts.values()))


# ---------------------------------------------------------------------- cores of this machine


def run_local(spec: RunSpec, out: Path, data: Path | None, size: int, progress: Progress = silent) -> RunResults:
    """Run in several processes, which share the cores.

    Args:
        spec: What is measured.
        out: Folder of the results.
        data: Folder of the data set's files; None for where they are by default.
        size: How many processes.
        progress: Told how far all of them are.

    Raises:
        UnikeError: What went wrong in the first process that failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(size), context.Queue()
    threads = max(1, torch.get_num_threads() // size)
    processes = [
        context.Process(target=_work_locally, args=(spec, out, data, (rank, size), threads, barrier, told), daemon=True)
        for rank in range(size)
    ]
    shares = Shares(progress)
    try:
        for process in processes:
            process.start()
        while True:
            over = all(process.exitcode == 0 for process in processes)
            codes = [process.exitcode for process in processes if process.exitcode]
            try:
                message = told.get(timeout=0.2)
            except Empty:
                if codes:
                    raise UnikeError(f"a worker ended with code {codes[0]}; the same command goes on") from None
                if over:
                    return read_run(out)
            else:
                if isinstance(message, str):
                    raise UnikeError(message)
                shares.tell(*message)
    finally:
        for process in (process for process in processes if process.pid):  # what they have finished is on disk
            process.terminate()
            process.join()


def _work_locally(
    spec: RunSpec, out: Path, data: Path | None, place: tuple[int, int], threads: int, barrier: Any, told: Any
) -> None:
    """What the process in a place, rank and size, does."""
    end_with_parent()
    torch.set_num_threads(threads)
    quiet()
    team = Team(*place, lambda: barrier.wait())
    try:
        tasks = read_tasks(spec, data)
        run(spec, out, tasks, progress=lambda *news: told.put((team.rank, *news)), team=team)
    except UnikeError as error:
        told.put(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(1)


# ---------------------------------------------------------------------- accelerate launch


def is_launched() -> bool:
    """Whether this is one of several processes that ``accelerate launch`` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_launched(spec: RunSpec, out: Path, tasks: Sequence[Task], progress: Progress = silent) -> RunResults | None:
    """This process's part of a run; all of it in the main process, None in the others."""
    from accelerate import PartialState

    state = PartialState(cpu=spec.device == "cpu", timeout=PATIENCE)
    quiet()
    team = Team(state.process_index, state.num_processes, state.wait_for_everyone)
    spec = replace(spec, device=str(state.device))
    results = run(spec, out, tasks, progress=progress if state.is_main_process else silent, team=team)
    state.destroy_process_group()
    return results if state.is_main_process else None


# ---------------------------------------------------------------------- Ray


class Rendezvous:
    """Where Ray's workers wait for each other and tell how far they are; Ray makes an actor of it.

    Args:
        size: How many workers there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.arrived = 0
        self.told: list[tuple[int, str, int, int]] = []

    def arrive(self) -> int:
        """Called by a worker that waits; returns how many must have arrived before it may go on."""
        self.arrived += 1
        return -(-self.arrived // self.size) * self.size

    def is_open(self, count: int) -> bool:
        """Whether so many have arrived."""
        return self.arrived >= count

    def tell(self, *news: Any) -> None:
        """Called by a worker that got on."""
        self.told.append(news)

    def news(self) -> list[tuple[int, str, int, int]]:
        """What was told since the last time."""
        told, self.told = self.told, []
        return told


def run_ray(spec: RunSpec, out: Path, data: Path | None, size: int, progress: Progress = silent) -> RunResults:
    """Run on a Ray cluster, or on a local one if there is none; a GPU for each worker where there are any.

    All nodes must see the results' folder under the same path. Arguments are those of `run_local`.

    Raises:
        UnikeError: Ray is not installed, the cluster is too small, or what went wrong in a worker.
    """
    try:
        import ray
    except ImportError:
        raise UnikeError("--ray needs Ray, which is not installed; run: pip install ray") from None

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
    there = ray.cluster_resources()
    kind = "GPU" if spec.device.startswith("cuda") or (spec.device == "auto" and there.get("GPU")) else "CPU"
    if there.get(kind, 0) < size:
        raise UnikeError(
            f"{size} workers need {size} {kind}s, the Ray cluster has {there.get(kind, 0):.0f}; take fewer"
        )
    meeting = ray.remote(num_cpus=0)(Rendezvous).remote(size)
    options = {"num_gpus": 1, "num_cpus": 0} if kind == "GPU" else {"num_cpus": 1}
    work = ray.remote(**options, max_retries=0)(_work_on_ray)
    shares = Shares(progress)
    # Workers have working folders of their own.
    out, data = out.absolute(), data and data.absolute()
    waiting = [work.remote(spec, out, data, (rank, size), meeting) for rank in range(size)]
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=0.5)
            for news in ray.get(meeting.news.remote()):
                shares.tell(*news)
            ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnikeError):
            raise error.cause from None
        raise
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
        ray.kill(meeting)
    return read_run(out)


def _work_on_ray(spec: RunSpec, out: Path, data: Path | None, place: tuple[int, int], meeting: Any) -> None:
    """What the worker in a place, rank and size, does."""
    import ray

    def wait() -> None:
        count = ray.get(meeting.arrive.remote())
        while not ray.get(meeting.is_open.remote(count)):
            time.sleep(0.05)

    quiet()
    team = Team(*place, wait)
    run(spec, out, read_tasks(spec, data), progress=lambda *news: meeting.tell.remote(team.rank, *news), team=team)
