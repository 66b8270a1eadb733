"""The files of an export that people and transformers read: a whole model, and how either format is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unike.backbones import MINI
from unike.backbones.adapter import Backbone
from unike.backbones.loading import reading
from unike.core.errors import UnikeError


def write_model(backbone: Backbone, folder: Path) -> None:
    """Write a model with its processor, so that unike and transformers read it back."""
    processor = processor_of(backbone)
    if processor is not None:
        processor.save_pretrained(folder)
    backbone.save_pretrained(folder)


def processor_of(backbone: Backbone) -> Any:
    """The processor that the model was published with, chat template and all; None if nothing is known of it.

    A model reads well without it: tokenizer and image processor are written in any case.
    """
    from transformers import AutoProcessor

    for source in (backbone.source, str(getattr(backbone.config, "_name_or_path", ""))):
        if Path(source).is_dir():
            try:
                with reading(source):
                    return AutoProcessor.from_pretrained(source, trust_remote_code=False)
            except UnikeError:
                continue
    return None


def readme(format: str, described: Mapping[str, Any]) -> str:
    """How to load it, and what it does not keep."""
    source = described["backbone"]["source"]
    load = f'model = AutoModelForImageTextToText.from_pretrained("{source}")\n'
    lines = ["from transformers import AutoModelForImageTextToText"]
    if format == "lora":
        lines += ["from peft import PeftModel", "", load + 'model = PeftModel.from_pretrained(model, "THIS_FOLDER")']
    else:
        lines += ["", 'model = AutoModelForImageTextToText.from_pretrained("THIS_FOLDER")']
    if described["backbone"]["adapter"] == MINI:
        lines.insert(0, "import unike.backbones.families.mini  # registers its vision tower")
    how = {
        "exact": "They are changes of weights, and nothing was left out.",
        "cut": "They are changes of weights, cut to a lower rank.",
        "learned": "It was learned from the edited model, and says what that says only as far as the scores tell.",
    }[described["how"]]
    told = "\n".join(f"- {edit['prompt']!r}: {edit['target']!r} (`{edit['editor']}`)" for edit in described["edits"])
    return (
        f"# Edits of {source}, as {'a LoRA adapter' if format == 'lora' else 'a model'}\n\n{told}\n\n{how} It acts on "
        "every input, there is no gate, and no edit can be taken out alone. `export.json` has every score.\n\n"
        "```python\n" + "\n".join(lines) + "\n```\n"
    )
