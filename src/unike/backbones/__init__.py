"""Vision-language models behind one interface; a family is a file."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from unike.backbones.template import written
from unike.core import registry
from unike.core.errors import UnikeError

if TYPE_CHECKING:
    from unike.backbones.adapter import Backbone

__all__ = ["load_backbone", "quiet"]

MINI = "mini"


def load_backbone(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    template: str | None = None,
    trust_remote_code: bool = False,
) -> "Backbone":
    """Load a model and put the adapter of its family around it.

    Args:
        source: ``"mini"`` for the bundled model, a folder with a saved model, or a hub id ``"organisation/name"``.
        device: ``"auto"`` (cuda, else mps, else cpu), any torch device, or ``"split"``: over all GPUs, and what does
            not fit there is kept on the cpu and moved for each pass (``device_map="auto"`` in transformers).
        dtype: ``"auto"`` (float32 on the cpu, the checkpoint's own elsewhere), ``"float32"``, ``"bfloat16"`` or
            ``"float16"``.
        quantize: ``"8bit"`` or ``"4bit"`` to keep all matrices but the head in so many bits (bitsandbytes). Patches are
            fp32 whatever the model is in.
        template: What stands around a question: a preset (``"mmedit-vqa"``), or a text with ``{image}`` and
            ``{prompt}``, see `unike.backbones.template`; None for the family's own.
        trust_remote_code: Whether code that a model brings along may be run. Without it such a model is refused.

    Raises:
        UnikeError: The source is none of the three, cannot be read, or is a model that cannot be edited; or the
            template is none.
    """
    source = str(source)
    if template is not None:
        written(template)
    if source == MINI:
        mini: type[Backbone] = registry.backbones.get(MINI)
        return mini.from_pretrained(source, device=device, dtype=dtype, quantize=quantize, template=template)
    if not Path(source).is_dir() and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        if re.search(r"[/\\~]|^\.", source):
            raise UnikeError(f"no folder {source!r}; a backbone is 'mini', a folder or a hub id 'organisation/name'")
        raise UnikeError(f"{registry.did_you_mean('backbone', source, [MINI])}; or give a folder or a hub id")

    from unike.backbones.families import family_of, known_families  # torch and transformers take seconds to import
    from unike.backbones.loading import read_config

    known_families()  # they may register model types of their own
    family = family_of(read_config(source, trust_remote_code=trust_remote_code))
    return family.from_pretrained(
        source,
        device=device,
        dtype=dtype,
        quantize=quantize,
        template=template,
        trust_remote_code=trust_remote_code,
    )


def quiet() -> None:
    """Keep progress bars and warnings of transformers to itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
