"""Going through the steps of a plan: what is done is left alone, what was interrupted goes on, all is on record."""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from unike.core.errors import UnikeError
from unike.core.folders import check_writable, reason, try_place
from unike.reproduce.estimate import NOTHING_KNOWN, Estimate, Left, Rates, together
from unike.reproduce.log import DONE, FAILED, FILE, Entry, add, done_with, read_log
from unike.reproduce.plan import Bench, Prepare, Report, Step, Study, Train
from unike.reproduce.work import Workshop, bytes_below

STATES = (DONE, "begun", "to do")


@dataclass(frozen=True)
class Stand:
    """Where a step stands.

    Attributes:
        step: Which.
        state: One of `STATES`.
        amount: How much there is of it at most: edits, training steps, cases; None if the data cannot be read.
        done: How much of that is done.
        estimate: Of the rest.
    """

    step: Step
    state: str
    amount: int | None
    done: int
    estimate: Estimate


Told = Callable[[int, int, Step, Left], None]
"""Called before each step that is to be done: its number, how many there are, which, and what is left with it."""


def survey(
    shop: Workshop, steps: Sequence[Step], *, forgive: bool = False, known: Mapping[str, Stand] | None = None
) -> list[Stand]:
    """Where every step stands; loads no model.

    Args:
        shop: Who would do them.
        steps: Of a plan.
        forgive: Whether data that cannot be read leaves amounts open, instead of being an error.
        known: Name of a step to where it stood before; what was done then is.

    Raises:
        UnikeError: The data, or what is there, cannot be read.
    """
    entries, probe = read_log(shop.wanted.out), shop.wanted.probe
    rates = Rates([*entries, *(read_probe(probe) if probe else ())])
    done = {name: True for name, stand in (known or {}).items() if stand.state == DONE}
    stands = []
    for step in steps:
        if known and step.name in done:
            stands.append(known[step.name])
            continue
        try:
            amount, so_far = shop.amount(step)
        except UnikeError:
            if not forgive:
                raise
            stands.append(Stand(step, "to do", None, 0, NOTHING_KNOWN))
            done[step.name] = False
            continue
        # What was made from what is made anew is not what it was.
        fit = all(done.get(need, True) for need in step.needs)
        done[step.name] = fit and done_with(entries, step.name, step.command) and shop.is_there(step)
        left = 0 if done[step.name] else max(0, amount - so_far)
        state = DONE if done[step.name] else "begun" if so_far or is_begun(step) else "to do"
        stands.append(Stand(step, state, amount, so_far, rates.estimate(step.kind, amount, left)))
    return stands


def is_begun(step: Step) -> bool:
    """Whether a step was interrupted, so that it goes on."""
    return not isinstance(step, Report) and step.folder.is_dir() and any(step.folder.iterdir())


def read_probe(folder: Path) -> list[Entry]:
    """The log of another reproduction.

    Raises:
        UnikeError: There is none.
    """
    if not (folder / FILE).is_file():
        raise UnikeError(f"--probe {folder} holds no {FILE}; give the folder of an earlier reproduction")
    return read_log(folder)


def what_is_left(stands: Sequence[Stand]) -> Left:
    """What the steps that are not done will take together; reports, which take moments, are not counted."""
    return together([each.estimate for each in stands if each.state != DONE and not isinstance(each.step, Report)])


def check(shop: Workshop, steps: Sequence[Step]) -> None:
    """Refuse what can be known to be wrong before a model is loaded.

    Raises:
        UnikeError: With the step, or the folder.
    """
    out = shop.wanted.out
    check_writable(out)
    if out.is_dir() and any(out.iterdir()) and not (out / FILE).is_file():
        raise UnikeError(f"{out} holds something else; choose an empty or a new folder with --out")
    try_place(out)
    for step in steps:
        shop.check(step)


def run(shop: Workshop, steps: Sequence[Step], told: Told) -> list[Path]:
    """Do all that is left to do.

    Args:
        shop: Who does it.
        steps: Of a plan.
        told: Called before each step.

    Returns:
        The tables and reports that were written.

    Raises:
        UnikeError: A step failed; it is named, and what was done before is kept.
    """
    check(shop, steps)
    with held(shop.wanted.out):
        stands: Mapping[str, Stand] = {each.step.name: each for each in survey(shop, steps)}
        for number, step in enumerate(steps, 1):
            if stands[step.name].state == DONE:
                continue
            told(number, len(steps), step, what_is_left(list(stands.values())[number - 1 :]))
            attempt(shop, step, f"step {number} of {len(steps)}")
            stands = {each.step.name: each for each in survey(shop, steps, known=stands)}
    return [step.folder for step in steps if isinstance(step, Report)]


def attempt(shop: Workshop, step: Step, which: str) -> None:
    """Do one step, and put on record what became of it.

    Raises:
        UnikeError: It failed; names it.
    """
    out = shop.wanted.out
    amount, before = shop.amount(step)
    resumed = isinstance(step, Prepare | Train) and is_begun(step)  # how much had been done is not told
    loaded, start = shop.load_seconds, time.perf_counter()
    try:
        shop.do(step)
    except Exception as error:  # out of memory, a full disk: whatever it is, those that are done are kept
        why = str(error) if isinstance(error, UnikeError) else f"{type(error).__name__}: {error}"
        where = "" if isinstance(error, UnikeError) else traceback.format_exc()
        failed = Entry(step=step.name, command=step.command, outcome=FAILED, kind=step.kind, error=why, traceback=where)
        add(out, failed)
        said = f" (where: {out / FILE})" if where else ""
        raise UnikeError(
            f"{which} ({step.name}, {step.what}) failed: {why}{said}; what is done is kept, and the same command goes "
            f"on with this step; alone it is: {step.command}"
        ) from error
    loading = shop.load_seconds - loaded
    seconds = max(0.0, time.perf_counter() - start - loading)
    whole, after = shop.amount(step) if isinstance(step, Train | Bench | Study) else (amount, amount)
    add(
        out,
        Entry(
            step=step.name,
            command=step.command,
            outcome=DONE,
            kind=step.kind,
            amount=after if isinstance(step, Train | Study) else whole,
            new=0 if resumed else max(0, after - before),
            seconds=round(seconds, 3),
            fixed_seconds=round(shop.fixed_seconds(step, seconds), 3),
            load_seconds=round(loading, 3),
            bytes=bytes_below(step.folder),
        ),
    )


@contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder, with its log begun, and no other process at work in it.

    Raises:
        UnikeError: Another is, or nothing can be written there.
    """
    lock = FileLock(out / f".{FILE}.lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / FILE).touch()
        lock.acquire(timeout=0)
    except Timeout:
        raise UnikeError(f"{out} is being written by another process; wait for it, or end it") from None
    except OSError as error:
        raise UnikeError(f"cannot write {out}: {reason(error)}; choose another folder") from None
    try:
        yield
    finally:
        lock.release()
