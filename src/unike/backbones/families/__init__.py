"""One file for each family of models: how pictures turn into tensors and placeholder tokens, and its template."""

from typing import TYPE_CHECKING, Any

from unike.core import registry

if TYPE_CHECKING:
    from unike.backbones.adapter import Backbone


def known_families() -> "list[type[Backbone]]":
    """The adapter of each family."""
    return [registry.backbones.get(name) for name in registry.backbones.names()]


def family_of(config: Any) -> "type[Backbone]":
    """The adapter of a model, by its config; the generic one if no family names its type."""
    from unike.backbones.adapter import Backbone

    by_type = {model_type: family for family in known_families() for model_type in family.model_types}
    vision_type = getattr(getattr(config, "vision_config", None), "model_type", "")
    return by_type.get(f"{config.model_type}+{vision_type}") or by_type.get(config.model_type, Backbone)
