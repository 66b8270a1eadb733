"""Edits in the model's own calls: a user's ``model.generate(**inputs)``, with a processor of theirs.

Nobody says there where a prompt ends; but the first pass of a generation reads the prompts as a whole, with an empty
cache, and the attention mask tells their rows from padding. A plain forward pass is read as prompts, too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward import context
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, text_input
from unike.core.errors import UnikeError


@contextmanager
def in_the_models_own_calls(backbone: Backbone, is_innermost: Callable[[], bool]) -> Iterator[None]:
    """Within the block, what is attached to a backbone acts when its model is called past it.

    Args:
        backbone: Its own passes put on by themselves what acts in them; meanwhile nothing is done here.
        is_innermost: Whether the block is the innermost of this context; the others leave it to that.
    """

    def is_called_past_it() -> bool:
        return context.running() is None and is_innermost()

    acting, before = Hooks(is_called_past_it), Hooks(is_called_past_it)
    last_ids: list[Tensor] = []
    embedded: list[tuple[Tensor, Tensor]] = []  # the tokens that were embedded last, and as what
    prefills: list[Prefill] = []  # the one that answers are being continued of

    def begin(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if not reads_prompts(kwargs):
            check_continues(prefills, text_input(args, kwargs), kwargs["past_key_values"])
            return
        ids = args[0] if args else kwargs.get("input_ids")
        read = text_input(args, kwargs)
        if kwargs.get("use_cache") is False:
            check_cached(last_ids, ids)
        ids = tokens_behind(backbone, embedded, read) if ids is None else ids
        prefill = prompts_of(backbone, ids, read, kwargs.get("attention_mask"))
        prefills[:] = [prefill]

        def count(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            prefill.begin(text_input(args, kwargs))

        acting.remove()
        with acting.ahead():
            acting.add_pre(backbone.text_stack, count)
            context.attached_to(backbone).install(backbone, acting, prefill)

    def remember(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> None:
        embedded[:] = [(args[0] if args else kwargs["input"], output)]

    with before, acting:
        before.add(backbone.model.get_input_embeddings(), remember)
        before.add_pre(backbone.generator, begin, prepend=True)
        forget_what_was_compiled()
        try:
            yield
        finally:
            forget_what_was_compiled()


def forget_what_was_compiled() -> None:
    """Let compiled models be compiled anew: ``torch.compile`` does not look for hooks that come later.

    Does nothing where nothing was compiled in this process.
    """
    if torch._dynamo.utils.counters["frames"]["total"]:
        torch._dynamo.reset()


def tokens_behind(backbone: Backbone, embedded: Sequence[tuple[Tensor, Tensor]], read: Tensor) -> Tensor | None:
    """The tokens ``[R, S]`` of the embeddings ``[R, S, D]`` that some families hand to their language model.

    Args:
        backbone: Whose placeholders stand for pictures, which take their places.
        embedded: The tokens that were embedded last, and as what.
        read: The embeddings; with beams each prompt's several times in a row.

    Returns:
        None if those were not embedded last.
    """
    for ids, vectors in embedded:
        repeats, rest = divmod(len(read), len(ids))
        if ids.ndim == 2 and not rest and vectors.shape[1:] == read.shape[1:]:
            words = ids != getattr(backbone.config, "image_token_id", -1)
            if torch.equal(vectors[words], read[::repeats][words]):
                return ids.repeat_interleave(repeats, dim=0)
    return None


def reads_prompts(kwargs: Kwargs) -> bool:
    """Whether a pass begins with an empty cache."""
    cache: Any = kwargs.get("past_key_values")
    return cache is None or int(cache.get_seq_length()) == 0


def check_continues(prefills: list[Prefill], read: Tensor, cache: Any) -> None:
    """Refuse a pass that does not continue the answers of the prompts that were read last, token by token.

    Args:
        prefills: The reading of those, if any were read.
        read: What the model is given, ``[R, S]`` or ``[R, S, D]``.
        cache: What came before.

    Raises:
        UnikeError: Prompts in chunks, assisted decoding, or a cache that was filled before.
    """
    before = sum(length for _, length in prefills[0].passes) if prefills else None
    if read.shape[1] != 1 or before != int(cache.get_seq_length()):
        raise UnikeError(
            "edits are attached, and this pass goes on from what they have not read as a prompt: give the whole prompt "
            "without past_key_values, prefill_chunk_size or assisted decoding"
        )


def prompts_of(backbone: Backbone, ids: Tensor | None, read: Tensor, mask: Any) -> Prefill:
    """What the prompts of a pass are, and where they end.

    Args:
        backbone: Whose placeholders stand for pictures.
        ids: ``[R, S]``, or None if the model is given embeddings.
        read: What it is given, ``[R, S]`` or ``[R, S, D]``.
        mask: ``[R, S]``, 0 at padding; anything else stands for no padding.
    """
    rows, length = read.shape[:2]
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        mask = torch.ones(rows, length, device=read.device)
    last = length - 1 - mask.flip(1).long().argmax(dim=1)
    if ids is None:
        return Prefill(last)
    kept = [row[there].tolist() for row, there in zip(ids.cpu(), mask.bool().cpu(), strict=True)]
    shown = ids == getattr(backbone.config, "image_token_id", -1)
    return Prefill(last, tuple(map(backbone.without_picture, kept)), shown if shown.any() else None)


def check_cached(last: list[Tensor], ids: Tensor | None) -> None:
    """Refuse a generation that reads everything anew for each token: where its prompts ended could not be told.

    Args:
        last: The tokens of the pass before; kept up to date here.
        ids: ``[R, S]``, those of this one.

    Raises:
        UnikeError: They are those of the pass before, and one more.
    """
    if ids is None:
        return
    before = last[0] if last else None
    last[:] = [ids]
    if before is not None and torch.equal(before, ids[:, :-1]):
        raise UnikeError("edits are attached, and generation runs without a cache: leave use_cache at True")
