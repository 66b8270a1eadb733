"""A backbone of a model that somebody has loaded already, with a processor of theirs."""

from typing import Any

from unike.backbones.adapter import Backbone
from unike.backbones.families import family_of
from unike.core.errors import UnikeError


def wrap(model: Any, processor: Any, *, source: str | None = None, template: str | None = None) -> Backbone:
    """Put the adapter of its family around a loaded model; it is frozen and in eval mode from then on.

    Args:
        model: A ``transformers`` model for image-text-to-text, wherever its parts lie (``device_map`` too), or a PEFT
            model around one: its adapters are then a part of the model that is edited.
        processor: What the model was published with: it has a ``tokenizer`` and an ``image_processor``.
        source: What to call it in messages and saved edits; None for the name that it was loaded by.
        template: Text around a question, as in `Backbone`.

    Raises:
        UnikeError: The model cannot be edited, or the processor lacks a part.

    Example:
        >>> model = AutoModelForImageTextToText.from_pretrained("llava-hf/llava-1.5-7b-hf", device_map="auto")
        >>> backbone = unike.wrap(model, AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"))
    """
    model = without_peft(model)
    config = getattr(model, "config", None)
    if config is None or getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise UnikeError(f"{type(model).__name__} is not a transformers model with a head; give the whole model")
    family = family_of(config)
    name = source or getattr(config, "_name_or_path", "") or type(model).__name__
    family.check_config(config, name)
    return family(model, **family.processors_of(processor, name), source=name, template=template)


def without_peft(model: Any) -> Any:
    """The model that a PEFT model holds, its adapters on the layers; others are returned as they are.

    Raises:
        UnikeError: Its adapter is a prompt, which is not a part of the model.
    """
    if not hasattr(model, "peft_config"):
        return model
    if any(getattr(config, "is_prompt_learning", False) for config in model.peft_config.values()):
        raise UnikeError("the model's PEFT adapter learns prompts, which edits cannot read; use LoRA and the like")
    return model.get_base_model() if hasattr(model, "get_base_model") else model
