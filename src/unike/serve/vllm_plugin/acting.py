"""Edits of each request on its own rows of a flat batch, with the hooks that edits put on a ``transformers`` model.

A *skeleton* is that model with the weights of those layers alone that an edit acts on. The hooks of a request's edits
are collected as they would be put on the skeleton, and are called with the request's rows alone, as a batch of one:
where the engine has run a layer's attention or its feed-forward network. What the engine does not compute by itself, as
queries before they are fused with keys, the skeleton computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill, seen_in
from unike.backbones.forward.hooks import Args, Hook, Hooks, Kwargs, PreHook, first_input
from unike.core.errors import UnikeError
from unike.editors.unike.editor import UniKEEdit
from unike.edits.edit import Edit
from unike.edits.stack import Stack
from unike.serve.vllm_plugin.rows import Book, Rows

Asked = Callable[[str], "tuple[Sequence[int], Stack] | None"]
"""From a request's name to its prompt's tokens and the edits that it is answered under; None for no edits."""


class Collected(Hooks):
    """Hooks that are put nowhere: whoever runs the modules calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.before: defaultdict[nn.Module, list[PreHook]] = defaultdict(list)
        self.behind: defaultdict[nn.Module, list[Hook]] = defaultdict(list)

    def add_pre(self, module: nn.Module, hook: PreHook, *, prepend: bool = False) -> None:
        """Keep it; none comes in front of others here."""
        self.before[module].append(hook)

    def add(self, module: nn.Module, hook: Hook, *, prepend: bool = False) -> None:
        """Keep it."""
        self.behind[module].append(hook)


def check_supported(backbone: Backbone, edits: Sequence[Edit]) -> None:
    """Refuse edits that cannot act on rows of a flat batch.

    Those can that act at every position alike and read nothing of the prompt, and those of UniKE that act from the
    prompt's last token on.

    Raises:
        UnikeError: With the method.
    """
    if not backbone.ffn(0).gated:
        raise UnikeError(f"edits of {backbone.source} are not supported in vLLM: its layers are built in another way")
    kinds = {isinstance(edit, UniKEEdit) for edit in edits}
    if len(kinds) > 1:
        raise UnikeError("edits of 'unike' and of other methods are not supported together in vLLM; use sets of one")
    for edit in edits:
        edit.check_attachable()
        is_weights = type(edit).weight_updates.__func__ is not Edit.weight_updates.__func__  # type: ignore[attr-defined]
        if isinstance(edit, UniKEEdit):
            if edit.config.everywhere or not edit.config.has_gate:  # type: ignore[attr-defined]
                raise UnikeError("edits of 'unike' with everywhere=true or without a gate are not supported in vLLM")
        elif not is_weights:
            raise UnikeError(f"edits of {edit.editor!r} are not supported in vLLM; use unike serve")


class Answer:
    """What acts for one request.

    Args:
        backbone: The skeleton.
        tokens: The prompt, with the placeholders of its picture.
        stack: The edits.
    """

    def __init__(self, backbone: Backbone, tokens: Sequence[int], stack: Stack) -> None:
        self.backbone, self.tokens, self.stack = backbone, list(tokens), stack
        self.waits = any(isinstance(edit, UniKEEdit) for edit in stack.edits)
        self.hooks: Collected | None = None
        self._prefill: Prefill | None = None
        self._features: list[Tensor] = []

    def turn(self, rows: Rows, embedded: Tensor | None) -> bool:
        """A pass begins.

        Args:
            rows: Of the request.
            embedded: What the decoder is given in them, ``[S, D]``; None if it is given tokens.

        Returns:
            Whether anything acts in it.
        """
        self._look(rows, embedded)
        if self.waits and rows.is_before_last:
            return False
        if self._prefill is None:
            self._prefill = self._begin(rows)
            self.hooks = Collected()
            self.stack.install(self.backbone, self.hooks, self._prefill)
        self._prefill.passes.append((1, len(rows)))
        return True

    def _look(self, rows: Rows, embedded: Tensor | None) -> None:
        """Keep the visual features among the rows: the gate reads them when the prompt is over."""
        placeholder = getattr(self.backbone.config, "image_token_id", None)
        part = self.tokens[rows.offset : rows.offset + len(rows)]
        shown = [number for number, token in enumerate(part) if token == placeholder]
        if embedded is not None and shown:
            self._features.append(embedded[shown].detach().float().cpu())

    def _begin(self, rows: Rows) -> Prefill:
        last = torch.tensor([max(rows.last, 0)])
        pictures = None
        if self._features:
            features = torch.cat(self._features).unsqueeze(0)
            pictures = seen_in(features, torch.ones(features.shape[:2], dtype=torch.bool))
        return Prefill(last, (self.backbone.without_picture(self.tokens),), pictures=pictures)


class Acting:
    """Edits in an engine's passes.

    Args:
        backbone: The skeleton.
        asked: What a request asks, and under which edits.
        layers: Which layers of the engine's decoder edits may act on; of these the skeleton has weights.
    """

    def __init__(self, backbone: Backbone, asked: Asked, layers: Collection[int]) -> None:
        self.backbone, self.layers = backbone, frozenset(layers)
        self.book: Book[Answer] = Book(lambda request: self._answer(asked(request)))
        self.now: list[tuple[Rows, Answer]] = []

    def _answer(self, asked: tuple[Sequence[int], Stack] | None) -> Answer | None:
        return None if asked is None or not asked[1].edits else Answer(self.backbone, *asked)

    @torch.no_grad()
    def begin(self, batch: Sequence[Rows], known: Collection[str], embedded: Tensor | None) -> None:
        """A pass begins.

        Args:
            batch: Its rows; empty for one that nobody asked for.
            known: The requests that the engine knows.
            embedded: What the decoder is given, ``[T, D]``; None if it is given tokens.
        """
        turned = self.book.turn(batch, known) if batch else []
        self.now = [
            (rows, answer)
            for rows, answer in turned
            if answer.turn(rows, None if embedded is None else embedded[rows.begin : rows.end])
        ]

    def put_on(self, layers: Sequence[Any]) -> None:
        """Put one hook each on the attention and the network of the engine's layers, for good."""
        for number in self.layers:
            layer = layers[number]
            layer.self_attn.register_forward_hook(self._behind_attention(number), with_kwargs=True)
            layer.mlp.register_forward_hook(self._behind_network(number), with_kwargs=True)

    # ------------------------------------------------------------------ behind modules of the engine

    def _behind_attention(self, number: int) -> Hook:
        site = self.backbone.attention(number)

        def shifted(hooks: Collected, given: Tensor, output: Tensor) -> Tensor:
            called = given.to(site.q_proj.weight.dtype)
            for hook in hooks.behind.get(site.q_proj, ()):
                hook(site.q_proj, (called,), {}, site.q_proj.forward(called))
            whole: Any = (output, None)
            for hook in hooks.behind.get(site.module, ()):
                whole = hook(site.module, (given,), {}, whole) or whole
            return whole[0]

        return self._on_rows(shifted)

    def _behind_network(self, number: int) -> Hook:
        site = self.backbone.ffn(number)
        within = set(site.matrices.values())

        def changed(hooks: Collected, given: Tensor, output: Tensor) -> Tensor:
            for before in hooks.before.get(site.inputs, ()):
                before(site.inputs, (given,), {})
            if any(module in within for module in hooks.behind):
                output = self._computed(site.outputs, within, hooks, given).to(output)
            for hook in hooks.behind.get(site.outputs, ()):
                new = hook(site.outputs, (given,), {}, output)
                output = output if new is None else new
            return output

        return self._on_rows(changed)

    def _computed(self, network: nn.Module, within: set[Any], hooks: Collected, given: Tensor) -> Tensor:
        """What the skeleton's network makes of rows, with the hooks on its matrices."""
        with Hooks() as real:
            for module in within:
                for hook in hooks.behind.get(module, ()):
                    real.add(module, hook)
            made: Tensor = network(given.to(next(network.parameters()).dtype))
            return made

    def _on_rows(self, change: Callable[[Collected, Tensor, Tensor], Tensor]) -> Hook:
        """A hook that changes the rows of each request that something acts for, and leaves all others alone."""

        @torch.no_grad()
        def hook(module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
            if not self.now:
                return None
            told = output[0] if isinstance(output, tuple) else output
            given = first_input(args, kwargs).reshape(-1, told.shape[-1])
            flat = told.reshape(-1, told.shape[-1]).clone()
            for rows, answer in self.now:
                assert answer.hooks is not None
                place = slice(rows.begin, rows.end)
                flat[place] = change(answer.hooks, given[place].unsqueeze(0), flat[place].unsqueeze(0))[0]
            new = flat.reshape(told.shape)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook
