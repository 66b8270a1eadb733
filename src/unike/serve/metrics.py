"""What a service tells Prometheus of itself: numbers, and no word of what is asked or answered."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from unike.serve.engine import Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Meter:
    """Counters of one server; each has its own.

    Args:
        engine: Whose batches and queue are measured; None where there is none.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self.registry = CollectorRegistry()
        shared: dict[str, Any] = {"namespace": "unike", "registry": self.registry}
        self.requests = Counter("requests", "Requests by route and status.", ("route", "status"), **shared)
        self.seconds = Histogram("request_seconds", "From request to answer.", ("route",), buckets=SECONDS, **shared)
        self.open = Gauge("requests_open", "Requests that are worked on or wait.", **shared)
        self.waiting = Gauge("answers_waiting", "Answers that wait to be written.", **shared)
        self.waiting.set_function(lambda: 0 if engine is None else engine.n_waiting)
        self.rows = Histogram("batch_rows", "Answers that are written together.", buckets=ROWS, **shared)
        self.sets = Histogram("batch_sets", "Sets of edits that share a batch.", buckets=ROWS, **shared)
        self.batch_seconds = Histogram("batch_seconds", "Of a batch.", buckets=SECONDS, **shared)
        self.tokens = Counter("tokens", "Tokens read and written.", ("kind",), **shared)
        self.changes = Counter("edit_changes", "Edits added, revoked and so on, by this server.", ("action",), **shared)
        if engine is not None:
            engine.on_batch = self.batch

    def batch(self, rows: int, sets: int, seconds: float) -> None:
        """Take in a batch."""
        self.rows.observe(rows)
        self.sets.observe(sets)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
