"""A module that shares everything with another but a few parts, to run it otherwise without touching it.

Swapping a part of the model itself for the time of a pass would be seen by every thread that runs it.
"""

import copy
from functools import wraps
from types import MethodType
from typing import Any

from torch import nn


def replica(module: Any, *, modules: dict[str, nn.Module] | None = None, **attributes: Any) -> Any:
    """The same module, weights, hooks and all, with some children or attributes of its own.

    Args:
        module: Left as it is.
        modules: Children by their name that stand in place of the module's.
        **attributes: Plain attributes that do.
    """
    same = copy.copy(module)
    vars(same).update(_modules={**module._modules, **(modules or {})}, **attributes)
    if "forward" in vars(module):  # accelerate has bound the module's own, which would run the parts of that
        hook, own = module._hf_hook, MethodType(type(module).forward, same)

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = hook.pre_forward(same, *args, **kwargs)
            return hook.post_forward(same, own(*args, **kwargs))

        vars(same)["forward"] = forward
    return same
