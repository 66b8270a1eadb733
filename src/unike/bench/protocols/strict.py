"""What a model really says: the gold answer where the edit should show, the old answer where it should not."""

from typing import ClassVar

from unike.bench.protocols.base import Protocol, Response, Scores
from unike.data.matching import exact_match


class Strict(Protocol):
    """``strict/exact``."""

    name: ClassVar[str] = "strict"
    order: ClassVar[int] = 0
    views: ClassVar = {"strict/exact": ("exact",)}

    def score(self, response: Response) -> Scores:
        """Equal to a right answer once both are normalised; or to the letter, to the answer before."""
        if response.kind.expects == "unchanged":
            return {"strict/exact": float(response.after == response.before)}
        return {"strict/exact": float(exact_match(response.after, response.target or "", *response.also))}
