"""One description of a run: made from the command line, kept in the results' header, turned back into the command.

What an option of ``unike bench`` is called, its type, default, help and bounds, and what its value means for numbers
that are to be compared (`Role`), is said at the field of `RunSpec` and nowhere else. Where files are on this machine,
and how many processes share the work, is no part of it.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from typing_extensions import Self

from unike.backbones.template import written
from unike.core.errors import UnikeError
from unike.core.options import KEY_VALUES, NAMES, NUMBERS, SKIPS, Form, Option, as_words, read_options
from unike.core.registry import check_names, protocols

SETTINGS = ("one-step", "sequential", "cross-task")
"""How edits meet: each alone, one after another, or one after another from two tasks."""

ENGINES = ("fast", "plain")

SEQUENCE = 10
"""Edits in a sequence, unless another number is asked for."""


class Role(Enum):
    """What the value of a field means for numbers that are to be compared."""

    MODEL = "the same in all numbers of a table"
    CONDITION = "the same in all numbers of a column"
    METHOD = "what is compared"
    EXTENT = "how much was asked: compared within one column, but never taken for the same"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What is measured, and how.

    Args:
        model: As in `load_backbone`.
        editor: Name of the method.
        settings: Of the method.
        dataset: Name of the data set; in a header, the names of all tasks with a ``+`` between them.
        split: Of it.
        setting: One of `SETTINGS`.
        k: Edits in a sequence; 1 in one-step editing.
        limit: Edit at most so many cases; None for all.
        seed: Of the order of cases, and of what is drawn.
        evaluate_at: Ask everything edited so far after so many edits of a sequence, and after the last; if empty, each
            edit's own questions right after it, and all after the last.
        sample: Ask only so many of the cases edited so far; None for all.
        batch: Independent edits that are made in one pass.
        protocols: Names of protocols, see `unike.bench.protocols`.
        max_new_tokens: The longest answer; None for the power of two, 16 or more, that holds every target.
        engine: One of `ENGINES`; both give the same results.
        skip_bad: Leave cases out that cannot be edited (a broken picture, a target that is too long), and count them.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.
        quantize: As in `load_backbone`.
        template: As in `load_backbone`.
        trust_remote_code: As in `load_backbone`.
    """

    model: Annotated[
        str, Option("'mini', a folder with a saved model, or a hub id 'organisation/name'."), Role.MODEL
    ] = "mini"
    editor: Annotated[str, Option("The method, see: unike ls editors."), Role.METHOD] = "unike"
    settings: Annotated[
        Mapping[str, Any],
        Option("A setting of the method; repeatable.", "--set", KEY_VALUES, metavar="KEY=VALUE"),
    ] = field(default_factory=dict)
    dataset: Annotated[
        str, Option("As `unike ls datasets` has it, with a task: pocket-vqa, pocket2-text, vlkeb."), Role.CONDITION
    ] = "pocket-vqa"
    split: Annotated[str, Option("Part of the data set; settings are chosen on dev."), Role.CONDITION] = "eval"
    setting: Annotated[str, Option("one-step, sequential or cross-task."), Role.CONDITION] = "one-step"
    k: Annotated[int, Option("Edits in a sequence.", "--k", Form(int | None), shown=str(SEQUENCE)), Role.CONDITION] = 1
    limit: Annotated[int | None, Option("Edit at most so many cases.", shown="all"), Role.EXTENT] = None
    seed: Annotated[int, Option("Of the order of cases, and of what is drawn.", least=0)] = 0
    evaluate_at: Annotated[
        tuple[int, ...],
        Option("Ask after so many edits of a sequence: 1,10,100.", "", NUMBERS, "after each, and the last"),
        Role.EXTENT,
    ] = ()
    sample: Annotated[
        int | None, Option("Of a sequence, ask at most so many cases at a time.", shown="all"), Role.EXTENT
    ] = None
    batch: Annotated[int, Option("Independent edits that are made in one pass.")] = 16
    protocols: Annotated[
        tuple[str, ...],
        Option("strict, teacher_forced or mmedit; repeatable.", "--protocol", NAMES, "strict and teacher_forced"),
        Role.EXTENT,
    ] = ("strict", "teacher_forced")
    max_new_tokens: Annotated[
        int | None, Option("The longest answer.", shown="16, or more if targets need it"), Role.CONDITION
    ] = None
    engine: Annotated[
        str, Option("'plain' asks everything in full, to check 'fast' against.", told_if_default=False)
    ] = "fast"
    skip_bad: Annotated[bool, Option("'stop' at a bad case, before any edit, or 'skip' it.", "--on-error", SKIPS)] = (
        False
    )
    device: Annotated[str, Option("'auto', 'cpu', 'cuda', 'cuda:1', 'mps', or 'split' over all there are.")] = "auto"
    dtype: Annotated[str, Option("'auto', 'float32', 'bfloat16' or 'float16'."), Role.MODEL] = "auto"
    quantize: Annotated[str | None, Option("Keep matrices in so many bits (bitsandbytes).", metavar="8bit|4bit")] = None
    template: Annotated[
        str | None,
        Option(
            "What stands around a question: a text with {image} and {prompt}, then ' || ' and one with {prompt} for "
            "questions without a picture, if that is another; or mmedit-vqa, mmedit-caption.",
            shown="the model's own",
            metavar="TEXT|PRESET",
        ),
        Role.MODEL,
    ] = None
    trust_remote_code: Annotated[bool, Option("Run code that a model brings along; else such a model is refused.")] = (
        False
    )

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Self:
        """What was typed, checked as far as that goes without a model.

        Args:
            given: Name of a field to what the command line handed on; None where nothing was typed.

        Raises:
            UnikeError: Something that does not exist or makes no sense.
        """
        found = read_options(cls, given)
        if "k" not in found and found.get("setting", "one-step") != "one-step":
            found["k"] = SEQUENCE
        spec = cls(**found)
        spec.check()
        return spec

    def check(self) -> None:
        """Refuse what does not exist or makes no sense; what was read from a header may be of a newer version.

        Raises:
            UnikeError: With what it is.
        """
        check_names("setting", [self.setting], SETTINGS)
        check_names("engine", [self.engine], ENGINES)
        check_names("protocol", self.protocols, protocols.names())
        if self.template is not None:
            written(self.template)
        numbers = {name: getattr(self, name) for name in ("k", "limit", "batch", "sample", "max_new_tokens")}
        for name, number in [*numbers.items(), *(("evaluate-at", number) for number in self.evaluate_at)]:
            if number is not None and number < 1:
                raise UnikeError(f"{name.replace('_', '-')} is {number}; it must be at least 1")
        if self.seed < 0:
            raise UnikeError(f"seed is {self.seed}; it must be at least 0")
        if not self.in_sequences and (self.k, self.evaluate_at, self.sample) != (1, (), None):
            raise UnikeError("k, evaluate-at and sample are for sequences; choose the setting sequential")
        if self.in_sequences and self.limit is not None and self.limit < self.k:
            raise UnikeError(f"limit is {self.limit}, which is less than one sequence of {self.k} edits")
        if any(number > self.k for number in self.evaluate_at):
            raise UnikeError(f"evaluate-at {max(self.evaluate_at)} is after the end of a sequence of {self.k} edits")

    @property
    def in_sequences(self) -> bool:
        """Whether edits are made on top of each other."""
        return self.setting != "one-step"

    def command(self) -> str:
        """The ``unike bench`` that measures this again; ``--data`` and ``--out`` are the reader's own."""
        words = as_words(self, without=() if self.in_sequences else ("k",))
        return shlex.join(["unike", "bench", *words])
