"""In-context knowledge as a latent key-value memory: the external knowledge of UniKE (Eq. 2, 8; section 3.2).

An in-context example changes the self-attention of a later input by letting it attend to the example's states
(Appendix A). So the states alone are kept, ``(h_sem, h_pos)`` of each example; how an input attends to them, and how
much of that is injected, is in `injection` and `collaboration`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Acting
from unike.backbones.forward.hooks import Record, trace
from unike.backbones.forward.split import IGNORE, SplitState
from unike.editors.unike.nearest import IndexKind, Nearest

SiteName = Literal["projected", "raw"]
"""Where entries live: in the attention's input (``"projected"``) or in its output (``"raw"``)."""


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
        # Of those that are as like, and entries of an edit often are, the first ones: whichever else there are.
        scores, best = (each[:, :k] for each in scores.sort(dim=1, descending=True, stable=True))
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
        return (own * nearest.unit(query).unsqueeze(1)).sum(dim=-1)  # each alike, however many there are

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
    acting: Acting | None = None,
) -> dict[int, tuple[Tensor, Tensor]]:
    """The entries that questions with their answers make: ``h_sem`` at ``p``, ``h_pos`` at answer tokens (section 3.3).

    Args:
        backbone: The model.
        state: Of questions with targets, split no higher than the lowest of the layers.
        layers: Which.
        positions: ``[B, E]``, where ``h_pos`` is read; None is `last_answer_token`, the paper's.
        site: Where the values live.
        acting: What acts meanwhile; None for what is attached.

    Returns:
        For each layer keys and values, ``[B, E, D]`` fp32 each: as `LatentMemory.with_own` wants them. All E entries of
        a row have its ``h_sem`` as key.
    """
    where = last_answer_token(backbone, state) if positions is None else positions
    with trace([backbone.attention(layer).module for layer in layers]) as records:
        backbone.run_from_split(state, torch.zeros_like(state.labels, dtype=torch.bool), acting)
    return entries_of(state, dict(zip(layers, records, strict=True)), where, site)


def entries_of(
    state: SplitState, records: Mapping[int, Record], where: Tensor, site: SiteName
) -> dict[int, tuple[Tensor, Tensor]]:
    """Entries from what the attention of some layers did in a pass, see `read_entries`.

    Args:
        state: That was finished by the pass.
        records: Of the attention modules, by layer.
        where: ``[B, E]``, positions of the answer tokens.
        site: Where the values live.
    """
    prefill, rows = state.prefill(), torch.arange(len(where), device=where.device).unsqueeze(1)
    entries = {}
    for layer, record in records.items():
        content = record.input if site == "projected" else record.output[0]
        keys = prefill.at_prompt_last(record.input).float().unsqueeze(1).expand(-1, where.shape[1], -1)
        entries[layer] = (keys.contiguous(), content[rows, where].float())
    return entries
