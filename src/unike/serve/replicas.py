"""The service as a deployment of Ray Serve: replicas with a model each, on one store, and the door before them.

Ray Serve starts replicas on the machines of a cluster, asks how they are, and puts new ones in the place of those that
ended. Its own HTTP proxy answers 500 to a request whose replica ends; so `Door` stands in its place.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unike.core.errors import UnikeError
from unike.serve.door import Door, replayed
from unike.serve.guard import Guard
from unike.serve.keys import Keys
from unike.serve.metrics import Meter
from unike.serve.run import GRACE
from unike.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Scope

HEALTH_EVERY, HEALTH_WITHIN = 5, 30
"""Seconds from one question how a replica is to the next, and within which it has to be answered."""

METRICS_WITHIN = 5


class Replica:
    """One process with a model; Ray Serve makes a deployment of it.

    Args:
        make: Makes the service, as `create_app` does, and loads what it needs.
    """

    async def __init__(self, make: Callable[[], FastAPI]) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self.app = make()
        self._life = self.app.router.lifespan_context(self.app)
        await self._life.__aenter__()

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The messages of an answer to a request, as ASGI has them."""
        async for message in replayed(self.app, scope, body):
            yield message

    async def metrics(self) -> tuple[str, bytes]:
        """Its name, and its metrics."""
        from ray import serve

        return serve.get_replica_context().replica_id.unique_id, self.app.state.meter.text()

    async def check_health(self) -> None:
        """Called by Ray Serve, which starts another replica if this raises.

        Raises:
            RuntimeError: The engine does not run.
        """
        if not self.app.state.engine.is_alive:
            raise RuntimeError("the engine is not running")

    def __del__(self) -> None:
        """Called by Ray Serve when the replica is to end, once what it answers is answered."""
        if hasattr(self, "app"):
            self.app.state.engine.close()


@contextmanager
def replicated(
    make: Callable[[], FastAPI], size: int, settings: Settings, keys: Keys, *, device: str, store: str
) -> Iterator[ASGIApp]:
    """The door before replicas, which run within the block: on a Ray cluster, or on a local one if there is none.

    Args:
        make: Makes the service, in each replica; what it needs has to be where the replica runs.
        size: How many replicas.
        settings: Of each replica.
        keys: Of those who may use the service.
        device: Where their models are; ``auto`` takes a GPU for each if the cluster has any.
        store: Where the store is.

    Raises:
        UnikeError: The cluster is too small, its machines do not see the store, or a replica could not start.
    """
    import ray
    from ray import serve
    from ray.serve.exceptions import ReplicaUnavailableError

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    ours = not ray.is_initialized()
    if ours:
        ray.init(logging_level="error", log_to_driver=False, include_dashboard=False)
    name = f"unike-{uuid.uuid4().hex[:8]}"  # another service may run on the same cluster
    try:
        check_store(store, sum(node["Alive"] for node in ray.nodes()))
        options = resources(ray.cluster_resources(), size, device)
        handle = _deploy(serve, make, size, settings, options, name)
        calls = handle.options(stream=True).answer

        async def everyone() -> dict[str, bytes]:
            told = await handle.broadcast("metrics").results_async(timeout_s=METRICS_WITHIN, return_exceptions=True)
            return dict(each for each in told if isinstance(each, tuple))

        lost = (
            ray.exceptions.RayActorError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.ObjectLostError,
            ReplicaUnavailableError,
        )
        meter = Meter()
        door = Door(calls.remote, everyone, lost, settings, meter)
        yield Guard(door, keys=keys, settings=replace(settings, max_open=settings.max_open * size), meter=meter)
    finally:
        with suppress(Exception):
            serve.delete(name)
        if ours:
            ray.shutdown()


def _deploy(
    serve: Any, make: Callable[[], FastAPI], size: int, settings: Settings, options: dict[str, Any], name: str
) -> Any:
    """Start the replicas, and wait until all are ready.

    Raises:
        UnikeError: What a replica said when it could not start.
    """
    deployment = serve.deployment(
        Replica,
        name="Replica",
        num_replicas=size,
        max_ongoing_requests=settings.max_open,
        max_constructor_retry_count=1,
        health_check_period_s=HEALTH_EVERY,
        health_check_timeout_s=HEALTH_WITHIN,
        graceful_shutdown_timeout_s=GRACE,
        ray_actor_options=options,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    try:
        return serve.run(deployment.bind(make), name=name, route_prefix=None)
    except RuntimeError as error:
        about = serve.status().applications[name].deployments.values()  # the error names no more than the deployment
        raise UnikeError(reason_of("\n".join([str(error), *(each.message for each in about)]))) from None


def reason_of(failure: str) -> str:
    """In one line, why a replica did not start, of all that Ray Serve says about it."""
    ours = re.findall(r"\bUnikeError: (.+)", failure)
    lines = [line.strip() for line in failure.splitlines() if line.strip()]
    return ours[-1].strip() if ours else f"a replica did not start: {lines[-1] if lines else 'Ray does not say why'}"


def resources(there: dict[str, float], size: int, device: str) -> dict[str, Any]:
    """What each replica takes of a cluster: a GPU, or a core.

    Raises:
        UnikeError: There is not enough of it.
    """
    kind = "GPU" if device.startswith("cuda") or (device == "auto" and there.get("GPU")) else "CPU"
    if there.get(kind, 0) < size:
        raise UnikeError(
            f"{size} replicas need {size} {kind}s, the Ray cluster has {there.get(kind, 0):.0f}; give fewer --replicas"
        )
    return {"num_gpus": 1, "num_cpus": 0} if kind == "GPU" else {"num_cpus": 1}


def check_store(store: str, machines: int) -> None:
    """Refuse a store that only one of several machines sees.

    Raises:
        UnikeError: It is a folder.
    """
    if machines > 1 and "://" not in store:
        raise UnikeError(
            f"the store {store} is a folder of this machine, and the Ray cluster has {machines} machines; "
            "keep it in a database: --store postgresql://..."
        )
