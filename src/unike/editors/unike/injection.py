"""How an input attends to the latent memory, and how its self-attention is shifted (Eq. 2, 7, 8; Appendix A).

At an edited layer

1. the attention's input at the last prompt token ``p`` retrieves the K entries with the most similar ``h_sem``,
2. every position attends to their ``h_pos``, which gives ``h_know [B, S, D]``,
3. the layer's self-attention output ``h_input [B, S, D]`` is shifted towards it::

       attn_out = (1 - alpha) * h_input + alpha * h_know

Retrieval and ``alpha`` depend on the prompt alone, are worked out once when it is read, and hold for all positions of
a teacher-forced pass and for every generated token: an answer token never has a say in them (`Prefill`).

Note:
    The printed Eq. 2 and 7 make ``alpha`` the weight of ``h_input``; the paper's analysis (sections 3.3 and 4.5) and
    its released code make it the weight of what is injected, so that little relevance means little injection. Here it
    is the latter; ``literal_eq7=True`` is the former. Eq. 9's alpha depends on the position; the method's is a scalar
    of the input and the layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, first_input
from unike.backbones.sites import AttentionSite
from unike.core.errors import UnikeError
from unike.editors.unike.collaboration import Alpha, DynamicAlpha
from unike.editors.unike.memory import LatentMemory, SiteName


def split_heads(states: Tensor, heads: int, norm: nn.Module | None = None) -> Tensor:
    """``[R, S, heads * head_dim]`` to ``[R, heads, S, head_dim]``, each head normed where the model does that."""
    states = states.unflatten(-1, (heads, -1))
    return (states if norm is None else norm.forward(states)).transpose(1, 2)


def project_memory(site: AttentionSite, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the layer's own attention for retrieved states, without rotary embedding.

    Hooks on the layer's maps do not fire: a recorder sees the model's own calls only.

    Args:
        site: Whose ``W_k`` and ``W_v``.
        states: ``[R, K, D]``, in the space of the attention's input.

    Returns:
        ``[R, n_heads, K, head_dim]`` each; key and value heads that serve several query heads are repeated.
    """
    if site.k_proj.weight.is_floating_point():  # a quantised map takes any
        states = states.to(site.k_proj.weight.dtype)
    keys = split_heads(site.k_proj.forward(states), site.n_kv_heads, site.k_norm)
    values = split_heads(site.v_proj.forward(states), site.n_kv_heads)
    shared_by = site.n_heads // site.n_kv_heads
    return keys.repeat_interleave(shared_by, dim=1), values.repeat_interleave(shared_by, dim=1)


def projected_attention(
    site: AttentionSite, queries: Tensor, keys: Tensor, values: Tensor, found: Tensor | None = None
) -> Tensor:
    """``h_know``: every position attends to all retrieved states, through all heads and ``W_o`` (Appendix A, Eq. 8).

    Args:
        site: The layer's attention.
        queries: ``[R, S, n_heads * head_dim]``, what ``q_proj`` returned.
        keys: From `project_memory`.
        values: From `project_memory`.
        found: ``[R, K]`` bool, which states to attend to; None for all.

    Returns:
        ``[R, S, D]``.
    """
    heads = split_heads(queries, site.n_heads, site.q_norm)
    mask = None if found is None else found[:, None, None]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        heads.to(keys.dtype), keys, values.to(keys.dtype), attn_mask=mask, scale=site.scale
    )
    known: Tensor = site.o_proj.forward(mixed.transpose(1, 2).flatten(2))
    return known


def raw_attention(h_input: Tensor, values: Tensor, found: Tensor | None = None) -> Tensor:
    """``h_know`` by one unprojected head, ``softmax(h_input values^T / sqrt(D)) values``, in fp32.

    Args:
        h_input: ``[R, S, D]``, attention output states.
        values: ``[R, K, D]``, in the same space.
        found: ``[R, K]`` bool, which states to attend to; None for all.

    Returns:
        ``[R, S, D]``.
    """
    states, mask = values.float(), None if found is None else found[:, None]
    return torch.nn.functional.scaled_dot_product_attention(h_input.float(), states, states, attn_mask=mask)


class OwnEntries(NamedTuple):
    """Entries that edits bring along, for one pass."""

    keys: Tensor
    """``[B, E, D]``."""

    values: Tensor
    """``[B, E, D]``."""

    eligible: Tensor | None = None
    """``[R, E]`` bool, which of them each row may retrieve; None for all."""


@dataclass(frozen=True, eq=False)
class Recall:
    """What one layer's memory gave to the prompts of a pass.

    Args:
        indices: ``[R, K]``, as `LatentMemory.search` counts.
        scores: ``[R, K]``, cosines.
        alpha: ``[R]``, as the strategy gave it.
        weight: ``[R]``, of ``h_know``: alpha (or, with ``literal_eq7``, ``1 - alpha``) times the gate.
    """

    indices: Tensor
    scores: Tensor
    alpha: Tensor
    weight: Tensor


class RecallLog:
    """The latest `Recall` of an installed injection, to be logged; detached, None before the first pass."""

    def __init__(self) -> None:
        self.latest: Recall | None = None


@dataclass(frozen=True, eq=False)
class LatentInjection:
    """The shift of one layer's self-attention output towards its memory.

    Args:
        memory: Of this layer.
        k: K, how many entries an input retrieves (paper: 40).
        site: ``"projected"``: the layer's own ``W_q, W_k, W_v, W_o``, all heads, its scale and head norms, no rotary
            embedding (Appendix A). ``"raw"``: `raw_attention`, as the released code does it; values are then attention
            outputs, keys and the query for retrieval remain attention inputs.
        alpha: From ``h_know[p]`` and ``h_input[p]`` to the weight of the injection.
        literal_eq7: Make alpha the weight of ``h_input``, as Eq. 2 and 7 are printed.
        everywhere: Whether every position is shifted, as the paper has it, or only those from ``p`` on.
    """

    memory: LatentMemory
    k: int = 40
    site: SiteName = "projected"
    alpha: Alpha = field(default_factory=DynamicAlpha)
    literal_eq7: bool = False
    everywhere: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that would fail in the middle of a pass."""
        if self.k < 1:
            raise ValueError(f"k={self.k}; at least one entry has to be retrieved")
        if self.site not in ("projected", "raw"):
            raise ValueError(f"unknown site {self.site!r}; use projected or raw")

    def install(
        self,
        backbone: Backbone,
        layer: int,
        hooks: Hooks,
        prefill: Prefill,
        gate: Callable[[], Tensor] | None = None,
        own: Callable[[], OwnEntries | None] | None = None,
    ) -> RecallLog:
        """Put the memory beside a layer's attention for one pass.

        Args:
            backbone: The model.
            layer: Which layer.
            hooks: Where the hooks are kept.
            prefill: The pass.
            gate: A further factor ``[R]`` on the weight of the injection (beyond the paper, see `Gate`), read at this
                layer or a lower one; asked for when the layer runs.
            own: Further entries, asked for when the layer runs.

        Returns:
            What is retrieved, for logging.

        Raises:
            UnikeError: There is nothing in the memory.
        """
        if not len(self.memory) and self.memory.own_keys is None and own is None:
            raise UnikeError(f"the memory of layer {layer} is empty; append entries first")
        shift = _Shift(self, backbone.attention(layer), prefill, gate, own)
        if self.site == "projected":
            hooks.add(shift.site.q_proj, shift.keep_queries)
        hooks.add(shift.site.module, shift)
        return shift.log


class _Shift:
    """An injection in one pass; what the prompts recall and how much it weighs are worked out once, from the prompts.

    Args:
        injection: What is injected.
        site: Into which attention.
        prefill: As in `LatentInjection.install`, like what follows.
        gate: The same.
        own: The same.
    """

    def __init__(
        self,
        injection: LatentInjection,
        site: AttentionSite,
        prefill: Prefill,
        gate: Callable[[], Tensor] | None,
        own: Callable[[], OwnEntries | None] | None,
    ) -> None:
        self.injection, self.site, self.prefill = injection, site, prefill
        self.gate, self.own = gate, own
        self.log = RecallLog()
        self.queries: Tensor | None = None
        self.recalled: _Recalled | None = None
        self.weight: Tensor | None = None

    def keep_queries(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> None:
        """Keep what ``q_proj`` returned until the attention has run."""
        self.queries = output

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Shift the attention's output towards what the prompts recalled (Eq. 7)."""
        h_input = output[0]
        if self.recalled is None:
            self.recalled = self._recall(self.prefill.at_prompt_last(first_input(args, kwargs)))
        h_know = self._attend(self.recalled, h_input)
        if self.weight is None:
            self.weight = self._weigh(self.recalled, h_know, h_input)
        weight = self.weight.reshape(-1, 1, 1)
        if not self.injection.everywhere:
            weight = weight * self.prefill.from_prompt_last(h_input)
        shifted = (1 - weight) * h_input.float() + weight * h_know
        return (shifted.to(h_input.dtype), *output[1:])

    def _recall(self, at_p: Tensor) -> "_Recalled":
        memory, own = self.injection.memory, None if self.own is None else self.own()
        if own is not None:
            memory = memory.with_own(own.keys, own.values)
        indices, scores = memory.search(at_p, self.injection.k, None if own is None else own.eligible)
        states, found = memory.take(indices), scores > -torch.inf
        # A row that finds nothing gets no weight from whoever closed its entries, but must not attend to nothing.
        mask = None if found.all() else found | ~found.any(dim=1, keepdim=True)
        given = project_memory(self.site, states) if self.injection.site == "projected" else (states,)
        return _Recalled(indices, scores, given, mask)

    def _attend(self, recalled: "_Recalled", h_input: Tensor) -> Tensor:
        """``h_know [R, S, D]`` (Eq. 8)."""
        if self.injection.site == "raw":
            return raw_attention(h_input, recalled.states[0], recalled.mask)
        queries, self.queries = self.queries, None
        assert queries is not None
        keys, values = recalled.states
        return projected_attention(self.site, queries, keys, values, recalled.mask).float()

    def _weigh(self, recalled: "_Recalled", h_know: Tensor, h_input: Tensor) -> Tensor:
        """The weight of ``h_know``, ``[R]``."""
        at_p = self.prefill.at_prompt_last
        alpha = self.injection.alpha(at_p(h_know), at_p(h_input).float())
        weight = 1 - alpha if self.injection.literal_eq7 else alpha
        weight = weight if self.gate is None else weight * self.gate()
        self.log.latest = Recall(recalled.indices, recalled.scores, alpha.detach(), weight.detach())
        self.prefill.note("alpha", alpha)
        return weight


class _Recalled(NamedTuple):
    """What the prompts of a pass retrieved: as `Recall`, with the states and which of them each row attends to."""

    indices: Tensor
    scores: Tensor
    states: tuple[Tensor, ...]
    mask: Tensor | None
