"""Forward passes: whole ones, and those that stop in front of a layer to be finished any number of times.

The split forward is what makes editing fast: everything below the lowest edited layer is frozen, so it is computed once
for each input (`Passes.run_to_split`) and the rest is replayed as often as an edit needs (`Passes.run_from_split`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unike.backbones.encoding import Encoding
from unike.backbones.forward import context
from unike.backbones.forward.context import Acting, Prefill
from unike.backbones.forward.functional import distinct
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, inject, text_input, trace
from unike.backbones.forward.replica import replica
from unike.backbones.forward.split import Batch, SplitState


class Passes(Encoding):
    """A model that runs on what was encoded.

    Every pass takes what acts in it, ``acting``; None stands for what is attached in the running context.
    """

    reads_prompts_both_ways: ClassVar[bool] = False
    """Whether a prompt's tokens see those after them, so that nothing of a prompt is settled before its end."""

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        """The ordinary forward pass, without a cache: ``[B, S, V]``."""
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    @contextmanager
    def _pass(self, prefill: Prefill, acting: Acting | None) -> Iterator[Prefill]:
        """Within the block the model makes one pass, told apart from others by its prefill, with what acts in it."""
        acts = context.attached_to(self) if acting is None else acting

        def begin(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            prefill.begin(text_input(args, kwargs))

        with Hooks() as hooks, context.entering(prefill):
            with hooks.ahead():
                hooks.add_pre(self.text_stack, begin)
                acts.install(self, hooks, prefill)
            yield prefill

    def forward(self, batch: Batch, acting: Acting | None = None) -> Tensor:
        """The ordinary forward pass.

        Args:
            batch: From `encode`.
            acting: What acts in it.

        Returns:
            Logits ``[B, S, V]``.
        """
        with self._pass(batch.prefill(), acting):
            return self._call(batch.inputs)

    @torch.no_grad()
    def run_to_split(self, batch: Batch, layer: int, acting: Acting | None = None) -> SplitState:
        """Run the model up to, and without, a decoder layer.

        Hooks below ``layer`` take part; those on it and above do not run.

        Args:
            batch: From `encode`.
            layer: The first layer to leave out, counted as in `layer_index`.
            acting: What acts below it.
        """
        index = self.layer_index(layer)
        with (
            self._pass(batch.prefill(), acting) as prefill,
            trace(self.layers[index], stop="input", prepend=True) as at_layer,
            trace(self.text_stack, prepend=True) as at_stack,
        ):
            self._call(batch.inputs)
        return SplitState(
            index,
            at_layer.input,
            at_stack.args,
            at_stack.kwargs,
            batch.labels,
            batch.prompt_last,
            batch.tokens,
            prefill.pictures,
        ).detach()

    @torch.no_grad()
    def advance(self, state: SplitState, layer: int, acting: Acting | None = None) -> SplitState:
        """Run a stopped pass on, up to and without a higher decoder layer; hooks between the two take part.

        Args:
            state: From `run_to_split`.
            layer: The first layer to leave out; if it is not above the state's, the state is returned.
            acting: What acts between the two.
        """
        index = self.layer_index(layer)
        if index <= state.layer:
            return state
        with (
            self._resumed(state, acting) as (stack, _),
            trace(self.layers[index], stop="input", prepend=True) as at_layer,
        ):
            stack(*state.args, **self._arguments(state))
        return replace(state, layer=index, hidden=at_layer.input).detach()

    @torch.no_grad()
    def shorten(self, state: SplitState, start: int | None = None, acting: Acting | None = None) -> SplitState:
        """Finish everything before a position, once; what is left to run begins there.

        For whatever acts from the prompts' ends on only: pictures and most of a question are then out of the way.
        Rows that begin alike share their beginning, too. Logits are those of the whole state at the positions that are
        left, up to rounding.

        Args:
            state: From `run_to_split` or `advance`.
            start: The position, where rows have a long beginning in common; the first row's ``p`` by default, and no
                later.
            acting: What acts in what is finished.

        Returns:
            The state as it is, if it has been shortened before or if the family reads prompts both ways.
        """
        from transformers import DynamicCache

        end = int(state.prompt_last.min())
        start = end if start is None else min(start, end)
        if not start or state.start or self.reads_prompts_both_ways:
            return state
        firsts, row_of = distinct(state.hidden[:, :start])
        read = state if len(firsts) == len(state) else state.expand(firsts)
        cache: Any = DynamicCache()
        with self._resumed(read, acting) as (stack, _):
            stack(*read.args, **read.kwargs | {"past_key_values": cache, "use_cache": True})
        past = {
            state.layer + above: (layer.keys[row_of, :, :start], layer.values[row_of, :, :start])
            for above, layer in enumerate(cache.layers[state.layer : self.n_layers])
        }
        return state.since(start, past).detach()

    @contextmanager
    def _resumed(self, state: SplitState, acting: Acting | None) -> Iterator[tuple[Any, Prefill]]:
        """Within the block a decoder, given the state's `_arguments`, goes on where the state stopped."""
        below = [_PassThrough(layer) for layer in self.layers[: state.layer]]
        layers = nn.ModuleList([*below, *self.layers[state.layer :]])
        with (
            self._pass(state.prefill(), acting) as prefill,
            inject(self.layers[state.layer], input=state.hidden),
        ):
            yield replica(self.text_stack, modules={"layers": layers}), prefill

    def _arguments(self, state: SplitState) -> dict[str, Any]:
        """The text stack's keyword arguments, with a cache of its own for each pass: passes write into it."""
        from transformers import DynamicCache

        if not state.past:
            return state.kwargs
        cache = DynamicCache()
        for layer in range(self.n_layers):  # those below the split do not run, but the first one tells the length
            cache.update(*state.past[max(layer, state.layer)], layer)
        return state.kwargs | {"past_key_values": cache, "use_cache": True}

    def run_from_split(
        self, state: SplitState, positions: Tensor | None = None, acting: Acting | None = None
    ) -> Tensor:
        """Finish a forward pass from where `run_to_split` stopped; equal to `forward`, bit for bit in fp32.

        The decoder's own forward is called with the layers below the split passed through, because what happens
        between layers (Qwen3-VL adds visual features there) and after the last one is the family's business.
        Gradients reach everything that hooks on the layers from the split upwards bring in.

        Args:
            state: May be used any number of times.
            positions: ``[B, S]`` bool, where logits are needed; the head is the largest matrix of many models.
            acting: What acts from the split upwards.

        Returns:
            Logits ``[B, S, V]``, or ``[positions.sum(), V]`` row by row.
        """
        with self._resumed(state, acting) as (stack, _):
            hidden: Tensor = stack(*state.args, **self._arguments(state))[0]
        return self.read_out(hidden if positions is None else hidden[positions])

    def read_out(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of final hidden states ``[..., D]``."""
        logits: Tensor = self.head(hidden)
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


class _PassThrough(nn.Module):
    """Stands in for a layer below the split: hands its input on, and answers for the layer's attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not as a submodule: hooks and parameters stay where they are

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states
