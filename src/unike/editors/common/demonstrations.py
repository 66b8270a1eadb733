"""A pool of facts that were edited before, to show a model by examples what an edit does (IKE, arXiv 2305.12740)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from unike.core.errors import UnikeError
from unike.core.memo import Memo
from unike.data.datasets.base import all_tasks, open_dataset
from unike.data.leaks import Trace, generic_questions, worded
from unike.data.queries import EditCase, Query
from unike.data.sampling import evenly
from unike.editors.common.sentence_encoder import sentence_encoder

COPY, UPDATE, RETAIN = "copy", "update", "retain"


@dataclass(frozen=True)
class PoolFact:
    """A fact with three questions that an example may ask under it.

    Args:
        prompt: The edited question.
        target: Its new answer.
        rephrase: The same question in other words.
        unrelated: A question about something else.
        kept: The answer to that.
    """

    prompt: str
    target: str
    rephrase: str
    unrelated: str
    kept: str

    @property
    def text(self) -> str:
        """What it is found by."""
        return stated(self.prompt, self.target)

    def demonstration(self, kind: str, cue: str) -> str:
        """One example: the fact holds for its own question, for a rephrased one, and not for an unrelated one.

        Args:
            kind: Which of the three.
            cue: As in `demonstration`.
        """
        question, answer = {
            COPY: (self.prompt, self.target),
            UPDATE: (self.rephrase, self.target),
            RETAIN: (self.unrelated, self.kept),
        }[kind]
        return demonstration(self.text, question, answer, cue)


def stated(prompt: str, target: str) -> str:
    """A fact in one line: the question and its answer."""
    return f"{prompt.strip()} {target.strip()}"


def demonstration(fact: str, question: str, answer: str, cue: str) -> str:
    """``New Fact: ...``, a question under it, its answer, and an empty line.

    Args:
        fact: In one line.
        question: Of any kind.
        answer: To that.
        cue: What stands between the two, as it does behind the question that is asked in the end (`Encoding.cue`).
    """
    asked = asked_under(fact, question) + cue
    return asked + ("" if asked.endswith("\n") else " ") + answer.strip() + "\n\n"


def asked_under(fact: str, question: str) -> str:
    """``New Fact: ...``, and a question under it."""
    return f"New Fact: {fact}\nPrompt: {question.strip()}"


class Pool:
    """Facts to choose examples from, each text once.

    Args:
        cases: Of a train split.
        size: Use only so many facts, evenly spread; None for all.

    Raises:
        UnikeError: No case has all that examples are made of.
    """

    def __init__(self, cases: Sequence[EditCase], size: int | None = None) -> None:
        found = {fact.text: fact for case in cases if (fact := fact_of(case)) is not None}
        if not found:
            raise UnikeError("there are no demonstrations: they need cases with a rephrased and an unrelated question")
        everything = list(found.values())
        self.facts = [everything[index] for index in evenly(len(everything), size)]
        self._generic = generic_questions(
            (question, case.edit.image)
            for case in cases
            if case.edit.image is not None and (fact := fact_of(case)) is not None
            for question in (fact.prompt, fact.rephrase)
        )

    @cached_property
    def fingerprint(self) -> Tensor:
        """Eight bytes that tell it from other pools, ``[8]`` uint8."""
        digest = hashlib.sha256(json.dumps([astuple(fact) for fact in self.facts]).encode()).digest()
        return torch.tensor(list(digest[:8]), dtype=torch.uint8)

    def embed(self, encoder: str, device: str) -> Tensor:
        """What facts are found by, ``[M, W]``, in the order of `facts`; the encoder keeps it."""
        return sentence_encoder(encoder, device).embed([fact.text for fact in self.facts])

    def nearest(self, facts: Sequence[Query], k: int, encoder: str, device: str) -> Tensor:
        """The facts most like some others, nearest first, by the cosine of what they say.

        Args:
            facts: B of them, with targets.
            k: How many; all if there are fewer.
            encoder: As in `sentence_encoder`.
            device: Where the encoder computes.

        Returns:
            Indices ``[B, K]``.
        """
        asked = sentence_encoder(encoder, device).embed([stated(fact.prompt, fact.target or "") for fact in facts])
        return (asked @ self.embed(encoder, device).T).topk(min(k, len(self.facts)), dim=1).indices

    @property
    def traces(self) -> list[Trace]:
        """Of every question of a demonstration that is not asked about everything.

        Without pictures: demonstrations are text, and what a fact was about is not in them.
        """
        asked = dict.fromkeys(text for fact in self.facts for text in (fact.prompt, fact.rephrase, fact.unrelated))
        return [Trace(text, None) for text in asked if worded(text) not in self._generic]


def fact_of(case: EditCase) -> PoolFact | None:
    """What a case gives to a pool; None if it lacks an answer or a kind of probe."""
    probes = {probe.kind: probe.query for probe in reversed(case.probes)}
    rephrased, unrelated = probes.get("t_generality"), probes.get("t_locality")
    if not case.edit.target or rephrased is None or unrelated is None or not unrelated.target:
        return None
    return PoolFact(case.edit.prompt, case.edit.target, rephrased.prompt, unrelated.prompt, unrelated.target)


_POOLS: Memo[tuple[str, str | None, int | None], Pool] = Memo()


def pool_of(name: str, folder: str | None, size: int | None) -> Pool:
    """What `read_pool` reads, once in a process."""
    return _POOLS.get((name, folder, size), partial(read_pool, name, folder, size))


def read_pool(name: str, folder: str | None, size: int | None) -> Pool:
    """The train split of a data set.

    Args:
        name: A data set, or one of its tasks.
        folder: Of its files; None for where they are by default.
        size: As in `Pool`.

    Raises:
        UnikeError: No such data set, or its files are missing.
    """
    tasks = [name] if "-" in name else all_tasks(name)
    place = None if folder is None else Path(folder)
    return Pool([case for task in tasks for case in open_dataset(task, place).cases("train")], size)
