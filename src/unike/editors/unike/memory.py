"""In-context knowledge as a latent key-value memory: the external knowledge of UniKE (Eq. 2, 7, 8, 9; section 3.2).

An in-context example changes the self-attention of a later input by letting it attend to the example's states
(Appendix A). So the states alone are kept, ``(h_sem, h_pos)`` of each example, and at an edited layer

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from unike.backbones.adapter import AttentionSite, Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, first_input, trace
from unike.backbones.forward.split import IGNORE, SplitState
from unike.core.errors import UnikeError
from unike.editors.unike.nearest import IndexKind, Nearest

SiteName = Literal["projected", "raw"]
"""Where entries live: in the attention's input (``"projected"``) or in its output (``"raw"``)."""

Alpha = Callable[[Tensor, Tensor], Tensor]
"""From ``h_know[p]`` and ``h_input[p]``, ``[R, D]`` fp32 each, to alpha ``[R]``."""

Gate = Callable[[], Tensor]
"""A factor in 0..1 for each row the model runs on, ``[R]``; only to be called while it runs."""


# ---------------------------------------------------------------------- the memory


class LatentMemory:
    """The entries of one layer, and which of them an input is about.

    Args:
        keys: ``[M, D]``, ``h_sem`` of each entry; M may be 0.
        values: ``[M, D]``, ``h_pos`` of each entry.
        mean: ``[D]``, subtracted from keys and queries before their cosine is taken: states share a large mean, beside
            which everything is similar to everything. None compares them as they are, as the paper does.
        index: How to search, see `Nearest`.

    Raises:
        ValueError: The shapes do not fit.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, mean: Tensor | None = None, index: IndexKind = "auto") -> None:
        self.own_keys: Tensor | None = None
        self.own_values: Tensor | None = None
        self._shared = _Shared(Nearest(keys.shape[-1], mean=None if mean is None else mean.float(), kind=index), [])
        self.append(keys, values)

    @property
    def width(self) -> int:
        """D."""
        return self._shared.nearest.width

    @property
    def mean(self) -> Tensor | None:
        """``[D]`` fp32, or None."""
        return self._shared.nearest.mean

    @property
    def keys(self) -> Tensor:
        """``[M, D]`` fp32, as they were given."""
        return self._shared.merged()[0]

    @property
    def values(self) -> Tensor:
        """``[M, D]`` fp32."""
        return self._shared.merged()[1]

    def __len__(self) -> int:
        """M, without own entries."""
        return len(self._shared.nearest)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add entries ``[m, D]`` that every row may retrieve; they get the indices from M on.

        Raises:
            ValueError: The shapes do not fit.
        """
        if keys.ndim != 2 or keys.shape != values.shape or keys.shape[-1] != self.width:
            raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} are not [m, {self.width}]")
        self._shared.parts.append((keys.detach().float(), values.detach().float()))
        self._shared.nearest.append(keys.detach())

    def with_own(self, keys: Tensor, values: Tensor) -> Self:
        """The same memory, together with entries that only one edit's rows may retrieve.

        A batch of B independent edits shares the entries above, and row ``b`` sees its own besides. The shared part is
        not copied: what is appended to one of the two memories is in both.

        Args:
            keys: ``[B, E, D]``.
            values: ``[B, E, D]``; gradients reach it, and an optimiser may change it in place if it is fp32.

        Raises:
            ValueError: The shapes do not fit.
        """
        if keys.ndim != 3 or keys.shape != values.shape or keys.shape[-1] != self.width or not keys.numel():
            raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} are not [B, E, {self.width}]")
        other = type(self).__new__(type(self))
        other._shared = self._shared
        other.own_keys, other.own_values = keys.detach().float(), values.float()
        return other

    @torch.no_grad()
    def search(self, query: Tensor, k: int, eligible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The top K entries by cosine similarity, exact unless the index is HNSW.

        Args:
            query: ``[R, D]``; with own entries of B edits, row ``r`` belongs to edit ``r * B // R``.
            k: How many; all there are if there are fewer.
            eligible: ``[R, E]`` bool, which of a row's own entries may be found; None for all.

        Returns:
            Indices ``[R, K]``, from M on a row's own entries, and cosines ``[R, K]`` fp32, best first; entries that may
            not be found come last, with minus infinity, if there are no others.

        Raises:
            ValueError: The rows cannot be shared out among the edits.
        """
        indices, scores = self._shared.nearest.search(query, k)
        if self.own_keys is None:
            return indices, scores
        own_scores = self._own_scores(query)
        if eligible is not None:
            own_scores = own_scores.masked_fill(~eligible, -torch.inf)
        own_indices = torch.arange(own_scores.shape[1], device=query.device).expand_as(own_scores) + len(self)
        indices, scores = torch.cat([indices, own_indices], dim=1), torch.cat([scores, own_scores], dim=1)
        scores, best = scores.topk(min(k, scores.shape[1]), dim=1)
        return indices.gather(1, best), scores

    def take(self, indices: Tensor) -> Tensor:
        """The values of what `search` found: ``[R, K]`` to ``[R, K, D]``."""
        if self.own_values is None:
            return self._shared.merged(indices.device)[1][indices]
        own_values = self.own_values.to(indices.device)
        edit = self._edit_of_rows(len(indices)).to(indices.device).unsqueeze(1)
        own = own_values[edit, (indices - len(self)).clamp(min=0)]
        if not len(self):
            return own
        shared = self._shared.merged(indices.device)[1][indices.clamp(max=len(self) - 1)]
        return torch.where((indices < len(self)).unsqueeze(-1), shared, own)

    def _own_scores(self, query: Tensor) -> Tensor:
        """``[R, D]`` to ``[R, E]``."""
        assert self.own_keys is not None
        nearest = self._shared.nearest
        own = nearest.unit(self.own_keys.to(query.device))[self._edit_of_rows(len(query)).to(query.device)]
        return (own @ nearest.unit(query).unsqueeze(-1)).squeeze(-1)

    def _edit_of_rows(self, rows: int) -> Tensor:
        """Which edit each of R rows belongs to: ``[R]``."""
        assert self.own_keys is not None
        edits = len(self.own_keys)
        if rows % edits:
            raise ValueError(f"{edits} edits' own entries need as many rows, or a multiple; the query has {rows}")
        return torch.arange(rows) // (rows // edits)

    def __repr__(self) -> str:
        own = "" if self.own_keys is None else f" + {self.own_keys.shape[1]} own of each of {len(self.own_keys)} edits"
        return f"{type(self).__name__}({len(self)} entries{own}, width {self.width})"


@dataclass(eq=False)
class _Shared:
    """What memories made by `LatentMemory.with_own` have in common: the search, and keys and values as they came."""

    nearest: Nearest
    parts: list[tuple[Tensor, Tensor]]

    def merged(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values ``[M, D]``, moved to a device for good."""
        device = device or self.parts[-1][0].device
        if len(self.parts) > 1 or self.parts[0][0].device != device:
            keys, values = (torch.cat([part.to(device) for part in column]) for column in zip(*self.parts, strict=True))
            self.parts[:] = [(keys, values)]
        return self.parts[0]


# ---------------------------------------------------------------------- alpha


@dataclass(frozen=True)
class FixedAlpha:
    """The same alpha for every input (paper, section 4.5 and Figure 4b).

    Args:
        value: 0..1; 0 leaves the model bit for bit as it is (without ``literal_eq7``).
    """

    value: float

    def __post_init__(self) -> None:
        """Refuse what would not be a mixture."""
        if not 0 <= self.value <= 1:
            raise ValueError(f"alpha={self.value} is not between 0 and 1")

    def __call__(self, h_know: Tensor, h_input: Tensor) -> Tensor:
        """``[R]`` times the value."""
        return h_input.new_full((len(h_input),), self.value)


@dataclass(frozen=True, eq=False)
class DynamicAlpha:
    """``alpha = clamp(slope * cos(Enc_sem(h_know[p]), h_input[p]) + offset, 0, 1)`` (Eq. 7).

    Args:
        encoder: ``Enc_sem``, ``[R, D]`` to ``[R, D]`` in fp32; None is the identity.
        slope: Of an affine calibration.
        offset: Of an affine calibration.

    Note:
        The calibration is beyond the paper; its own form is ``slope=1, offset=0``. The paper does not clamp.
    """

    encoder: Callable[[Tensor], Tensor] | None = None
    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, h_know: Tensor, h_input: Tensor) -> Tensor:
        """``h_know[p]`` and ``h_input[p]``, ``[R, D]`` each, to ``[R]``."""
        encoded = h_know if self.encoder is None else self.encoder(h_know)
        cosine = torch.nn.functional.cosine_similarity(encoded, h_input, dim=-1)
        return (self.slope * cosine + self.offset).clamp(0, 1)


# ---------------------------------------------------------------------- attention to retrieved states


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


# ---------------------------------------------------------------------- injection


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
    alpha: Alpha = DynamicAlpha()
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
        gate: Gate | None = None,
        eligible: Callable[[], Tensor] | None = None,
    ) -> RecallLog:
        """Put the memory beside a layer's attention; it stays until ``hooks`` are removed.

        Args:
            backbone: The model.
            layer: Which layer.
            hooks: Where the hooks are kept.
            gate: A further factor ``[R]`` on the weight of the injection (beyond the paper, see `Relevance`), read at
                this layer or a lower one.
            eligible: Which own entries a row may retrieve, as `LatentMemory.search` wants it; None for all.

        Returns:
            What is retrieved, for logging.

        Raises:
            UnikeError: There is nothing in the memory.
        """
        if not len(self.memory) and self.memory.own_keys is None:
            raise UnikeError(f"the memory of layer {layer} is empty; append entries first")
        site, log = backbone.attention(layer), RecallLog()
        projected = self.site == "projected"
        queries: list[Tensor] = []

        def remember(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> None:
            queries[:] = [output]

        def retrieve(at_p: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor | None]:
            indices, scores = self.memory.search(at_p, self.k, None if eligible is None else eligible())
            states, found = self.memory.take(indices), scores > -torch.inf
            # A row that finds nothing gets no weight from whoever closed its entries, but must not attend to nothing.
            mask = None if found.all() else found | ~found.any(dim=1, keepdim=True)
            return indices, scores, project_memory(site, states) if projected else (states,), mask

        def shift(module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
            prefill, h_input = current_prefill(backbone), output[0]
            x = first_input(args, kwargs)
            indices, scores, states, found = prefill.once(retrieve, lambda: retrieve(prefill.at_prompt_last(x)))
            if projected:
                keys, values = states
                h_know = projected_attention(site, queries.pop(), keys, values, found).float()
            else:
                h_know = raw_attention(h_input, states[0], found)

            def weigh() -> Tensor:
                at_p = (prefill.at_prompt_last(h_know), prefill.at_prompt_last(h_input).float())
                alpha = self.alpha(*at_p)
                weight = 1 - alpha if self.literal_eq7 else alpha
                weight = weight if gate is None else weight * gate()
                log.latest = Recall(indices, scores, alpha.detach(), weight.detach())
                prefill.note("alpha", alpha)
                return weight

            weight = prefill.once(log, weigh).reshape(-1, 1, 1)
            if not self.everywhere:
                weight = weight * prefill.from_prompt_last(h_input)
            shifted = (1 - weight) * h_input.float() + weight * h_know
            return (shifted.to(h_input.dtype), *output[1:])

        if projected:
            hooks.add(site.q_proj, remember)
        hooks.add(site.module, shift)
        return log


def current_prefill(backbone: Backbone) -> Prefill:
    """The prefill of the pass that is running.

    Raises:
        UnikeError: The model was called past its backbone, so that nobody knows where the prompts end.
    """
    if backbone.prefill is None:
        raise UnikeError(
            "a latent memory needs to know where the prompt ends; call the backbone's forward, run_from_split or "
            "generate, not the model itself"
        )
    return backbone.prefill


# ---------------------------------------------------------------------- making entries


def last_answer_token(backbone: Backbone, state: SplitState) -> Tensor:
    """``[B, 1]``: the last token of each row's target, not counting the end-of-sequence token put behind it.

    Raises:
        ValueError: A row has no target.
    """
    answer = (state.labels != IGNORE) & (state.labels != backbone.tokenizer.eos_token_id)
    if not answer.any(dim=1).all():
        raise ValueError("every row needs a target; the memory keeps the state at its last token")
    columns = torch.arange(answer.shape[1], device=answer.device)
    return (answer * columns).argmax(dim=1, keepdim=True)


@torch.no_grad()
def read_entries(
    backbone: Backbone,
    state: SplitState,
    layers: Sequence[int],
    *,
    positions: Tensor | None = None,
    site: SiteName = "projected",
) -> dict[int, tuple[Tensor, Tensor]]:
    """The entries that questions with their answers make: ``h_sem`` at ``p``, ``h_pos`` at answer tokens (section 3.3).

    Args:
        backbone: The model, with whatever edits are attached to it.
        state: Of questions with targets, split no higher than the lowest of the layers.
        layers: Which.
        positions: ``[B, E]``, where ``h_pos`` is read; None is `last_answer_token`, the paper's.
        site: Where the values live.

    Returns:
        For each layer keys and values, ``[B, E, D]`` fp32 each: as `LatentMemory.with_own` wants them. All E entries of
        a row have its ``h_sem`` as key.
    """
    where = last_answer_token(backbone, state) if positions is None else positions
    prefill = state.prefill()
    with trace([backbone.attention(layer).module for layer in layers]) as records:
        backbone.run_from_split(state, positions=torch.zeros_like(state.labels, dtype=torch.bool))
    rows = torch.arange(len(where), device=where.device).unsqueeze(1)
    entries = {}
    for layer, record in zip(layers, records, strict=True):
        content = record.input if site == "projected" else record.output[0]
        keys = prefill.at_prompt_last(record.input).float().unsqueeze(1).expand(-1, where.shape[1], -1)
        entries[layer] = (keys.contiguous(), content[rows, where].float())
    return entries
