"""Answers: greedy or beam search through the model's own ``generate``."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unike.backbones.decoding import Decoding, Steering, check_alone
from unike.backbones.forward import context
from unike.backbones.forward.context import Acting
from unike.backbones.forward.passes import Passes
from unike.backbones.forward.replica import replica
from unike.backbones.forward.split import Batch
from unike.backbones.given import given_queries, plain_options
from unike.core.errors import UnikeError
from unike.core.images import picture
from unike.core.registry import check_names
from unike.data.matching import exact_match
from unike.data.queries import Query

OPTIONS = (
    "do_sample", "early_stopping", "length_penalty", "min_new_tokens", "min_p", "no_repeat_ngram_size",
    "num_beam_groups", "renormalize_logits", "repetition_penalty", "temperature", "top_k", "top_p", "typical_p",
)  # fmt: skip
"""What can be set of a generation. Others would read prompts in parts, or answer a question several times."""


@contextmanager
def refusing(options: Mapping[str, Any]) -> Iterator[None]:
    """Turn what ``transformers`` says of options that do not go together into one line; without any, it is our fault.

    Raises:
        UnikeError: They do not.
    """
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        if not options:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise UnikeError(f"no answer can be generated with {given}: {reason}") from error


class Generation(Passes):
    """A model that answers."""

    @property
    def generator(self) -> Any:
        """The module that continues a prompt, and whose ``generation_config`` counts."""
        return self.model

    def _generate(self, inputs: dict[str, Tensor], config: Any, **steering: Any) -> Tensor:
        """Token ids of prompt and continuation, ``[B, S + new]``.

        Args:
            inputs: Of a batch.
            config: Stands alone: ``generate`` would fill its gaps from the checkpoint's own.
            **steering: Further arguments of ``generate``.
        """
        model = replica(self.model, generation_config=config)
        ids: Tensor = model.generate(**inputs, generation_config=config, **steering)
        return ids

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer."""
        stops = {self.tokenizer.eos_token_id}
        own = self.generator.generation_config.eos_token_id
        stops |= set(own) if isinstance(own, list) else {own}
        return sorted(stop for stop in stops if stop is not None)

    def answer_text(self, ids: Sequence[int]) -> str:
        """What an answer's tokens say: their first line."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip().split("\n", 1)[0].strip()

    def check_answer(self, answer: str) -> None:
        """Refuse what no generated answer can equal, because it is not read to its end.

        Raises:
            UnikeError: It has several lines, or tokens that an answer is told without.
        """
        said = self.answer_text(self.tokenizer(" " + answer.strip(), add_special_tokens=False)["input_ids"])
        if exact_match(said, answer):
            return
        if len(answer.strip().splitlines()) > 1:
            raise UnikeError(f"the target {answer!r} has several lines, and an answer is one; write it in one line")
        raise UnikeError(
            f"the target {answer!r} can never be answered: {self.source} says {said!r} for its tokens; leave special "
            "tokens out"
        )

    @torch.no_grad()
    def generate(
        self,
        queries: Sequence[Query],
        *,
        max_new_tokens: int = 16,
        num_beams: int = 1,
        acting: Acting | None = None,
        decoding: Sequence[Decoding] | None = None,
        **options: Any,
    ) -> list[str]:
        """Answer queries by greedy or beam search, or each in a way of its own; their targets are not looked at.

        Args:
            queries: Any mix.
            max_new_tokens: At most so many tokens.
            num_beams: 1 for greedy decoding.
            acting: What acts in it; None for what is attached in the running context.
            decoding: How each answer is written, in place of all other settings; what it was is kept there.
            **options: Further settings of a ``transformers.GenerationConfig``, of `OPTIONS`.

        Raises:
            UnikeError: An option that it does not have, or a value that one does not take; or as `encode`.

        Returns:
            For each query the first line of the answer; all of it where a `Decoding` says how it is written.
        """
        import transformers

        eos = self.stop_ids
        pad = self.tokenizer.pad_token_id
        make_config: Any = transformers.GenerationConfig
        queries = given_queries(queries)
        check_names("generation option", list(options) or ["do_sample"], OPTIONS)
        asked = plain_options({**options, "num_beams": num_beams, "max_new_tokens": max_new_tokens})
        own = {"eos_token_id": eos or None, "pad_token_id": pad if pad is not None else (eos or [0])[0]}
        with refusing(options):
            config = make_config(**{"do_sample": False, **asked, **own})
        answers = [""] * len(queries)
        groups = self.groups(queries)
        if decoding is not None:
            check_alone(decoding, len(queries), num_beams, options)
        acting = context.attached_to(self) if acting is None else acting
        if len(groups) > 1 and acting.rows > 1:
            raise UnikeError(
                f"{self.name} answers questions with and without an image apart, which would mix up the rows of a "
                "batch of edits; ask them in two calls, or attach one edit: edit[i]"
            )
        for rows in groups:
            batch = self.encode([queries[row].question for row in rows], padding_side="left")
            with self._pass(batch.prefill(), acting), refusing(options):
                if decoding is not None:
                    written = self._write(batch, config, [decoding[row] for row in rows])
                else:
                    ids = self._generate(batch.inputs, config)[:, batch.labels.shape[1] :]
                    written = [self.answer_text(new) for new in ids.tolist()]
            for row, answer in zip(rows, written, strict=True):
                answers[row] = answer
        return answers

    def _write(self, batch: Batch, config: Any, decoding: Sequence[Decoding]) -> list[str]:
        """Answers that are each written in a way of their own."""
        for row, prompt in zip(decoding, batch.inputs["attention_mask"].sum(dim=1).tolist(), strict=True):
            row.prompt_tokens = prompt
        steering = Steering(self.tokenizer, self.stop_ids, decoding)
        config = copy.copy(config)
        config.max_new_tokens = max(row.max_new_tokens for row in decoding)
        self._generate(batch.inputs, config, logits_processor=[steering.choose], stopping_criteria=[steering.follow])
        return [row.text for row in decoding]

    def groups(self, queries: Sequence[Query]) -> list[list[int]]:
        """Indices of the queries that may share a batch."""
        if self.mixes_images:
            groups = [list(range(len(queries)))]
        else:
            groups = [[i for i, q in enumerate(queries) if (q.image is None) is without] for without in (False, True)]
        return [group for group in groups if group]

    def room(self, targets: Sequence[str]) -> int:
        """How many tokens an answer may have: the power of two, 16 or more, that holds every target and its end.

        One number for all of them: the length of a target must not tell when its answer is over.
        """
        ids = self.tokenizer([" " + target for target in targets], add_special_tokens=False)["input_ids"]
        return max(16, 1 << max(map(len, ids), default=0).bit_length())

    def ask(self, image: Any, prompt: str, **kwargs: Any) -> str:
        """Answer one question.

        Args:
            image: The picture's path, or whatever `picture` takes, or None.
            prompt: The question.
            **kwargs: As in `generate`.
        """
        return self.generate([Query(prompt, picture(image))], **kwargs)[0]
