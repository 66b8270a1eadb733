"""Which data something was made from, in a few bytes."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from unike.data.queries import EditCase, Query


def every_query(cases: Sequence[EditCase]) -> list[Query]:
    """Edits and probes."""
    return [query for case in cases for query in (case.edit, *(probe.query for probe in case.probes))]


def describe_data(cases: Sequence[EditCase], against: Sequence[EditCase]) -> dict[str, Any]:
    """How many cases, and a hash of their ids, questions and answers and the names of their pictures."""

    def plain(query: Query) -> list[str | None]:
        return [query.prompt, None if query.image is None else query.image.name, query.target, *query.also]

    content = [
        [[case.case_id, plain(case.edit), *(plain(probe.query) for probe in case.probes)] for case in group]
        for group in (cases, against)
    ]
    return {"cases": len(cases), "against": len(against), "sha256": digest(content)}


def digest(content: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
