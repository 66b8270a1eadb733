"""An edited model as a service: OpenAI's chat API, a REST API for the store, batches that users with other edits share.

`app` is the service as an ASGI app, `engine` the one thread that runs the model, `run` what listens on a port. For more
than one process there are `replicas`, behind a `door`; `vllm_plugin` is for another engine. What knows HTTP enters
here, and nothing below knows of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unike.serve.app import create_app
    from unike.serve.engine import Engine
    from unike.serve.settings import Settings

__all__ = ["Engine", "Settings", "create_app"]

HOMES = {"create_app": "unike.serve.app", "Engine": "unike.serve.engine", "Settings": "unike.serve.settings"}


def __getattr__(name: str) -> Any:
    """Read on first use: FastAPI is an extra.

    Raises:
        UnikeError: It is not installed.
    """
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from unike.core.extras import needing

    with needing("serve"):
        return getattr(import_module(HOMES[name]), name)
