"""The rows of a growing matrix that are most like a query, by cosine similarity.

Up to about 1e5 rows one matrix product and `torch.topk` are exact and fast enough; beyond, `faiss
<https://arxiv.org/abs/2401.08281>`_ takes over, also exactly unless HNSW (arXiv 1603.09320) is asked for.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from unike.core.errors import UnikeError

IndexKind = Literal["auto", "torch", "flat", "hnsw"]

LARGE = 100_000
"""From so many rows on, ``"auto"`` is faiss's flat index."""

HNSW_LINKS, HNSW_BREADTH = 32, 128
"""Links of a node, and how many candidates a search keeps at least; more of either finds more and costs more."""


class Nearest:
    """Cosine search over rows that may be added to.

    Args:
        width: D.
        mean: ``[D]``, subtracted from rows and queries before their cosine is taken, or None.
        kind: ``"torch"`` and ``"flat"`` are exact; ``"hnsw"`` is approximate, and faster on millions of rows;
            ``"auto"`` is the first up to `LARGE` rows and the second from there on.

    Raises:
        UnikeError: The kind is unknown, or needs faiss, which is not installed.
    """

    def __init__(self, width: int, *, mean: Tensor | None = None, kind: IndexKind = "auto") -> None:
        if kind not in ("auto", "torch", "flat", "hnsw"):
            raise UnikeError(f"unknown index {kind!r}; use auto, torch, flat or hnsw")
        self.width = width
        self.mean = mean
        self.kind = kind
        self.units: Tensor | None = torch.zeros(0, width)  # None once faiss holds them
        self._faiss: Any = None
        if kind in ("flat", "hnsw"):
            self._move_to_faiss()

    def __len__(self) -> int:
        """M."""
        return len(self.units) if self.units is not None else int(self._faiss.ntotal)

    def unit(self, vectors: Tensor) -> Tensor:
        """Centred and of length 1, in fp32: ``[..., D]`` to ``[..., D]``; a vector at the mean becomes 0."""
        vectors = vectors.float()
        if self.mean is not None:
            vectors = vectors - self.mean.to(vectors)
        return torch.nn.functional.normalize(vectors, dim=-1)

    def append(self, rows: Tensor) -> None:
        """Add rows ``[m, D]`` behind those already there."""
        units = self.unit(rows)
        if self.units is None:
            self._faiss.add(units.cpu().numpy())
            return
        self.units = torch.cat([self.units.to(units), units])
        if self.kind == "auto" and len(self) > LARGE:
            self._move_to_faiss()

    def search(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The rows most like each query, best first.

        Args:
            query: ``[B, D]``.
            k: How many; no more than there are.

        Returns:
            Indices ``[B, K]`` long and cosines ``[B, K]`` fp32. Rows that are equally alike come in no fixed order.
        """
        units, k = self.unit(query), min(k, len(self))
        if self.units is not None:
            self.units = self.units.to(units)  # once, to where the model is
            scores, indices = (units @ self.units.T).topk(k, dim=-1)
            return indices, scores
        if k == 0:
            return units.new_zeros(len(units), 0, dtype=torch.long), units.new_zeros(len(units), 0)
        content = units.cpu().numpy()
        if self.kind == "hnsw":
            self._faiss.hnsw.efSearch = max(HNSW_BREADTH, 2 * k)
        found, rows = self._faiss.search(content, k)
        if (rows < 0).any():  # an HNSW graph may be in pieces; then some of the K places stay empty
            everything = torch.from_numpy(self._faiss.reconstruct_n(0, len(self))).to(units)
            scores, indices = (units @ everything.T).topk(k, dim=-1)
            return indices, scores
        return torch.from_numpy(rows).to(units.device), torch.from_numpy(found).to(units.device)

    def _move_to_faiss(self) -> None:
        faiss = import_faiss()
        if self.kind == "hnsw":
            self._faiss = faiss.IndexHNSWFlat(self.width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        else:
            self._faiss = faiss.IndexFlatIP(self.width)
        if self.units is not None and len(self.units):
            self._faiss.add(self.units.cpu().numpy())
        self.units = None


def import_faiss() -> Any:
    """The faiss module, imported when it is first needed.

    Raises:
        UnikeError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UnikeError(
            f"index='flat', 'hnsw', and 'auto' beyond {LARGE} entries need faiss: pip install faiss-cpu; or use 'torch'"
        ) from error
    return faiss
