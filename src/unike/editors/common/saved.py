"""What descriptions of things that were learned have to say."""

from pydantic import Field

from unike.core.schema import Schema
from unike.data.leaks import SIDE


class SavedBackbone(Schema):
    """What it was learned for."""

    source: str
    fingerprint: str


class SavedTrace(Schema):
    """A question that was learned from, as `Trace` keeps itself; without hashes if it had no picture."""

    prompt: str
    image_hash: str | None
    perceptual_hash: str | None = Field(pattern=f"^[0-9a-f]{{{3 * SIDE**2 // 4}}}$")
