"""The adapter every family shares.

Most vision-language models in ``transformers`` are a vision tower whose features replace the embeddings of
placeholder tokens, followed by an ordinary decoder. `Backbone` finds the decoder by its shape, not by its name, so a
new family usually has to say only how an image turns into tensors and placeholder tokens (`Backbone.image_inputs`).

What it can do is built up in steps: `Parts` (where a model keeps what), `Encoding` (from questions to tensors),
`Passes` (the split forward) and `Generation` (answers).
"""

import copy
import shlex
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from unike.backbones import identity
from unike.backbones.forward import context
from unike.backbones.generation import Generation
from unike.backbones.loading import read_config, read_image_processor, read_model, read_tokenizer, resolve_placement
from unike.core.errors import UnikeError

TWO_WAY = ("deepseek_ocr2", "diffusion_gemma", "gemma4", "gemma4_unified", "git", "molmo2", "pi0", "step3p7")
"""Model types whose masks depend on more inputs than the generic adapter gives; they would run, and answer wrongly."""


class Backbone(Generation):
    """A vision-language model that can be edited.

    The model is frozen and in eval mode from here on; edits are hooks beside it and never change a weight. Nothing of a
    pass is left on it: what is attached is known to the context that attached it, see `context`.

    Args:
        model: A ``transformers`` model for image-text-to-text.
        tokenizer: Its fast tokenizer.
        image_processor: Its image processor.
        source: ``"mini"``, a hub id or a folder: where the model came from.
        template: What stands around a question, as `unike.backbones.template` reads it; None for the family's own.

    Raises:
        UnikeError: The model has no decoder of a known shape, the tokenizer is slow, or the template is not usable.
    """

    model_types: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, *, source: str, template: str | None = None
    ) -> None:
        """Freeze the model and make sure that it is one that can be edited."""
        model.eval().requires_grad_(False)
        super().__init__(model, tokenizer, image_processor, source=source, template=template)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        template: str | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load a model with this adapter; `unike.backbones.load_backbone` also chooses the adapter.

        Args:
            source: A folder or a hub id.
            device: As in `load_backbone`.
            dtype: As in `load_backbone`.
            quantize: As in `load_backbone`.
            template: As in `Backbone`.
            trust_remote_code: As in `load_backbone`.

        Raises:
            UnikeError: The source cannot be read, lacks weights, or is a model that cannot be edited.
        """
        source = str(source)
        placement = resolve_placement(device, dtype, quantize)
        config = read_config(source, trust_remote_code=trust_remote_code)
        cls.check_config(config, source)
        processors = cls.read_processors(source, trust_remote_code=trust_remote_code)
        model = read_model(source, config, placement, trust_remote_code=trust_remote_code)
        return cls(model, **processors, source=source, template=template)

    def fingerprint(self) -> str:
        """A short hash of all that can change an answer, whatever the model is called and wherever it lies.

        One checkpoint has one fingerprint on every device and in fp32 and bf16; see `identity`.
        """
        return identity.fingerprint(self)

    def is_known_as(self, fingerprint: Any) -> bool:
        """Whether a fingerprint, perhaps one that version 0.1 wrote, is this model's."""
        return fingerprint == self.fingerprint() or fingerprint == self._fingerprint_0_1()

    def folder_in(self, parent: Path) -> Path:
        """What belongs to this model among what is kept of several: a folder by its fingerprint.

        If there is none yet, but one that version 0.1 wrote, that one.
        """
        own, older = parent / self.fingerprint(), parent / str(self._fingerprint_0_1())
        return older if older.is_dir() and not own.is_dir() else own

    def _fingerprint_0_1(self) -> str | None:
        """None under a chosen template, which that version's fingerprints say nothing of."""
        return identity.fingerprint_0_1(self) if self.chosen_template is None else None

    @property
    def as_options(self) -> str:
        """What names this model on the command line."""
        chosen = [] if self.chosen_template is None else ["--template", self.chosen_template]
        return shlex.join(["--model", self.source, *chosen])

    @classmethod
    def read_processors(cls, source: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
        """What turns text and images into tensors, by the names of the constructor's arguments."""
        return {
            "tokenizer": read_tokenizer(source, trust_remote_code=trust_remote_code),
            "image_processor": read_image_processor(source, trust_remote_code=trust_remote_code),
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with weights of its own.

        Raises:
            UnikeError: An edit is attached in this context, whose hooks would be copied and never taken off.
        """
        if context.attached_to(self) is not context.UNEDITED:
            raise UnikeError("an edit is attached, which would be copied with the model; copy it outside of the block")
        same = type(self).__new__(type(self))
        memo[id(self)] = same
        vars(same).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return same

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled.

        Raises:
            UnikeError: Always.
        """
        raise UnikeError("a backbone is not pickled; hand on its source and load it there: unike.load_backbone(source)")

    @classmethod
    def processors_of(cls, processor: Any, source: str) -> dict[str, Any]:
        """The same from a processor that somebody has read.

        Raises:
            UnikeError: It lacks a part.
        """
        found = {part: getattr(processor, part, None) for part in ("tokenizer", "image_processor")}
        for part, value in found.items():
            if value is None:
                raise UnikeError(f"{source}: the processor has no {part}; give AutoProcessor.from_pretrained(...)")
        return found

    @property
    def processors(self) -> dict[str, Any]:
        """What `read_processors` has read."""
        return {"tokenizer": self.tokenizer, "image_processor": self.image_processor}

    def around(self, model: Any) -> Self:
        """This adapter around another model of the family."""
        return type(self)(model, **self.processors, source=self.source, template=self.template)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and image processor, so that `load_backbone` reads them back."""
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(folder)

    @classmethod
    def check_config(cls, config: Any, source: str) -> None:
        """Refuse a model this family cannot handle before its weights are read.

        Raises:
            UnikeError: What is wrong with it.
        """
        if config.model_type in TWO_WAY:
            raise UnikeError(
                f"{source}: {config.model_type} reads images with two-way attention; it has no adapter yet"
            )

    def __repr__(self) -> str:
        """Family, source and size."""
        return f"{type(self).__name__}({self.source!r}, layers={self.n_layers}, width={self.width}, {self.dtype})"
