"""One run shared by several processes: on the cores of a machine, on GPUs under ``accelerate launch``, or by Ray.

Each process loads the model, edits its share of the units, and writes a part of the results; whoever reads takes the
parts together, so the numbers are those of one process. A run may go on with another number of processes.
"""

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from unike import api
from unike.backbones import load_backbone, quiet
from unike.backbones.answers import ALONE, Team
from unike.bench.results import Run, read_run
from unike.bench.runner import Plan, Source, check_sources, evaluate
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.data.datasets.base import all_tasks, open_dataset

PATIENCE = timedelta(days=30)
"""How long processes wait for each other: as long as the slowest takes."""


@dataclass(frozen=True)
class Job:
    """A benchmark run as another process can start it.

    Attributes:
        model: As in `load_backbone`.
        editor: Name of the method.
        settings: Of the method.
        dataset: Name of the data set.
        split: Of it.
        data: Folder of its files, or None.
        out: Folder of the results.
        plan: What is measured.
        skip_bad: As in `evaluate`.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.
        quantize: As in `load_backbone`.
    """

    model: str
    editor: str
    settings: dict[str, Any]
    dataset: str
    split: str
    data: Path | None
    out: Path
    plan: Plan
    skip_bad: bool = False
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None

    @cached_property
    def sources(self) -> list[Source]:
        """The cases, read from the data set once.

        Raises:
            UnikeError: There is no such data set, its files are missing or bad, or the setting needs others.
        """
        found = []
        for name in all_tasks(self.dataset) if self.plan.setting == "cross-task" else [self.dataset]:
            data = open_dataset(name, self.data)
            cases = data.cases(self.split, skip_bad=self.skip_bad)
            found.append(Source(name, self.split, cases, data.skipped, data.image_root))
        check_sources(found, self.plan)
        return found

    def run(self, *, progress: Progress = silent, team: Team = ALONE) -> Run:
        """Load everything, and do this process's part.

        Raises:
            UnikeError: Bad input.
        """
        progress("loading the model", 0, 1)
        backbone = load_backbone(self.model, device=self.device, dtype=self.dtype, quantize=self.quantize)
        progress("loading the model", 1, 1)
        return evaluate(
            backbone,
            api.make_editor(self.editor, **self.settings),
            self.sources,
            self.out,
            self.plan,
            skip_bad=self.skip_bad,
            progress=progress,
            team=team,
        )


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


def run_local(job: Job, size: int, progress: Progress = silent) -> Run:
    """Run a job in several processes, which share the cores.

    Raises:
        UnikeError: What went wrong in the first process that failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(size), context.Queue()
    threads = max(1, torch.get_num_threads() // size)
    processes = [
        context.Process(target=_work_locally, args=(job, rank, size, threads, barrier, told), daemon=True)
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
                    return read_run(job.out)
            else:
                if isinstance(message, str):
                    raise UnikeError(message)
                shares.tell(*message)
    finally:
        for process in (process for process in processes if process.pid):  # what they have finished is on disk
            process.terminate()
            process.join()


def _work_locally(job: Job, rank: int, size: int, threads: int, barrier: Any, told: Any) -> None:
    """What each process does."""
    torch.set_num_threads(threads)
    quiet()
    try:
        job.run(progress=lambda *news: told.put((rank, *news)), team=Team(rank, size, lambda: barrier.wait()))
    except UnikeError as error:
        told.put(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(1)


# ---------------------------------------------------------------------- accelerate launch


def is_launched() -> bool:
    """Whether this is one of several processes that ``accelerate launch`` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_launched(job: Job, progress: Progress = silent) -> Run | None:
    """This process's part of a job; the run in the main process, None in the others."""
    from accelerate import PartialState

    state = PartialState(cpu=job.device == "cpu", timeout=PATIENCE)
    quiet()
    team = Team(state.process_index, state.num_processes, state.wait_for_everyone)
    run = replace(job, device=str(state.device)).run(progress=progress if state.is_main_process else silent, team=team)
    state.destroy_process_group()
    return run if state.is_main_process else None


# ---------------------------------------------------------------------- Ray


class Gate:
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


def run_ray(job: Job, size: int, progress: Progress = silent) -> Run:
    """Run a job on a Ray cluster, or on a local one if there is none; a GPU for each worker where there are any.

    All nodes must see the results' folder under the same path.

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
    kind = "GPU" if job.device.startswith("cuda") or (job.device == "auto" and there.get("GPU")) else "CPU"
    if there.get(kind, 0) < size:
        raise UnikeError(
            f"{size} workers need {size} {kind}s, the Ray cluster has {there.get(kind, 0):.0f}; take fewer"
        )
    gate = ray.remote(num_cpus=0)(Gate).remote(size)
    options = {"num_gpus": 1, "num_cpus": 0} if kind == "GPU" else {"num_cpus": 1}
    work = ray.remote(**options, max_retries=0)(_work_on_ray)
    shares = Shares(progress)
    # Workers have working folders of their own.
    job = replace(job, out=job.out.absolute(), data=job.data and job.data.absolute())
    waiting = [work.remote(job, rank, size, gate) for rank in range(size)]
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=0.5)
            for news in ray.get(gate.news.remote()):
                shares.tell(*news)
            ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnikeError):
            raise error.cause from None
        raise
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
        ray.kill(gate)
    return read_run(job.out)


def _work_on_ray(job: Job, rank: int, size: int, gate: Any) -> None:
    """What each worker does."""
    import ray

    def wait() -> None:
        count = ray.get(gate.arrive.remote())
        while not ray.get(gate.is_open.remote(count)):
            time.sleep(0.05)

    quiet()
    job.run(progress=lambda *news: gate.tell.remote(rank, *news), team=Team(rank, size, wait))
