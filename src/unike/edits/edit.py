"""An edit: a few tensors with the facts they stand for, that act on a backbone while a pass runs.

Tensors of an edit carry a leading dimension B: one object holds B *independent* edits that were made in one pass,
row ``i`` of a batch being seen by edit ``i``. ``edit[i]`` is that one alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Hooks
from unike.core.errors import UnikeError
from unike.core.folders import given_folder
from unike.core.settings import Settings
from unike.data.queries import Query
from unike.edits.conflicts import questions_of
from unike.edits.layout import WIDTH, Layout
from unike.edits.tensors import Described, OnDemand, described, moved, rows_of

if TYPE_CHECKING:
    from unike.edits.group import Group
    from unike.edits.weights import WeightUpdate


E = TypeVar("E", bound="Edit")


class EditorConfig(Settings):
    """Settings of an editor: frozen, and unknown keys are errors.

    Attributes:
        max_target_tokens: A longer target is refused.
    """

    PLACES: ClassVar[tuple[str, ...]] = ()
    """Settings that name a folder of whoever made the edit; it is shared without them."""

    max_target_tokens: int = 64

    def encoders(self) -> tuple[str, ...]:
        """Sentence encoders that are named and do not ship: whoever loads an edit has to name them, too."""
        return ()


@dataclass(frozen=True, eq=False)
class Common:
    """What edits have in common that differ in numbers and facts alone: one object for all of them.

    What holds of one then holds of all, so a stack is looked through for these, not edit by edit.

    Args:
        kind: The class of the edits.
        config: Their settings.
        described: Their tensors.
        fingerprint: Of the backbone that they were made for.
        rows: B.
    """

    kind: "type[Edit]"
    config: EditorConfig
    described: Described
    fingerprint: str
    rows: int


_COMMON: WeakValueDictionary[tuple[Any, ...], Common] = WeakValueDictionary()
_LOCK = Lock()


def common_to(edit: "Edit") -> Common:
    """What an edit has in common with those that are alike."""
    shapes = described(edit.tensors)
    key = type(edit), id(edit.config), id(shapes), edit.fingerprint, len(edit)  # both are alive while this is
    with _LOCK:
        found = _COMMON.get(key)
        if found is None:
            found = _COMMON[key] = Common(type(edit), edit.config, shapes, edit.fingerprint, len(edit))
        return found


def alike(edits: Sequence["E"]) -> "dict[Common, E]":
    """What the edits of a stack have in common, and the first that has it."""
    backwards = edits[::-1]
    return dict(zip(map(attrgetter("common"), backwards), backwards, strict=True))


class Edit(ABC):
    """B independent facts, as tensors that act on a backbone while attached.

    Args:
        config: The settings it was made with.
        tensors: Name to ``[B, ...]``; some may be read when they are asked for (`unike.edits.saved`).
        facts: The B edited queries.
        fingerprint: Of the backbone it was made for.
        source: What that backbone was called.
    """

    editor: ClassVar[str]
    config_class: ClassVar[type[EditorConfig]]

    def __init__(
        self,
        config: EditorConfig,
        tensors: Mapping[str, Tensor],
        facts: Sequence[Query],
        *,
        fingerprint: str,
        source: str,
    ) -> None:
        self.config = config
        self.tensors: Mapping[str, Tensor] = tensors
        if not isinstance(tensors, OnDemand):
            self.tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.facts = tuple(facts)
        self.questions = questions_of(facts)  # of the pictures as they are now: a file may be overwritten later
        self.fingerprint = fingerprint
        self.source = source
        self.common = common_to(self)

    def __len__(self) -> int:
        """B."""
        return len(self.facts)

    def __getitem__(self, row: int) -> Self:
        """One of the edits alone."""
        return self.rows([range(len(self))[row]])

    def __repr__(self) -> str:
        first = self.facts[0]
        more = f" and {len(self) - 1} more" if len(self) > 1 else ""
        return f"{type(self).__name__}({first.prompt!r} -> {first.target!r}{more}, for {self.source!r})"

    def rows(self, rows: Sequence[int]) -> Self:
        """Some of the edits, in that order; one may come several times.

        Args:
            rows: Indices from 0, for example ``[0, 0, 2]``: then rows 0 and 1 of a batch see edit 0, row 2 edit 2.
        """
        index = list(rows)
        picked = self.like(rows_of(self.tensors, index), [self.facts[row] for row in index])
        picked.questions = tuple(self.questions[row] for row in index)
        return picked

    def like(self, tensors: Mapping[str, Tensor], facts: Sequence[Query]) -> Self:
        """An edit of the same method, settings and backbone."""
        return type(self)(self.config, tensors, facts, fingerprint=self.fingerprint, source=self.source)

    def to(self, device: torch.device | str) -> Self:
        """The same edit on another device."""
        there = self.like(moved(self.tensors, torch.device(device)), self.facts)
        there.questions = self.questions
        return there

    # ------------------------------------------------------------------ what it consists of

    @classmethod
    def layout(cls, config: Any, names: Collection[str]) -> Layout | None:
        """What tensors an edit with these settings has; None for a method that does not say.

        Args:
            config: The settings.
            names: Of the tensors that are there, for a method that names them after what a model has.
        """
        return None

    @classmethod
    def standing(cls, config: Any) -> tuple[str, ...]:
        """Tensors ``[B, 1, n]`` or ``[B, n]`` that every pass compares its inputs with, see `unike.edits.standing`.

        All others are read only where an input calls upon the edit. None by default: then every pass reads all tensors,
        and those of a file are read with it.

        Args:
            config: The settings.
        """
        return ()

    def sizes(self, backbone: Backbone) -> Mapping[str, int]:
        """What names of sizes in `layout` stand for in a model.

        Raises:
            ValueError: A tensor is named after something that the model does not have.
            UnikeError: So are the settings.
        """
        for layer in getattr(self.config, "layers", ()):
            backbone.layer_index(layer)
        return {WIDTH: backbone.width}

    # ------------------------------------------------------------------ acting

    @abstractmethod
    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        """Put the edit's hooks on a backbone it fits, for one pass.

        Args:
            backbone: The model.
            hooks: Where the hooks are kept; they are removed when the pass is over.
            prefill: The pass: where its prompts end, and what has been read of them.
        """

    @classmethod
    def install_group(cls, group: "Group", hooks: Hooks, prefill: Prefill) -> None:
        """Put edits with one config on their backbone for one pass; by default one after the other."""
        for edit in group.edits:
            edit.install(group.backbone, hooks, prefill)

    @contextmanager
    def attached(self, backbone: Backbone) -> Iterator[Self]:
        """Let the edit act on a backbone, on top of those that do; see `unike.edits.stack.attached`."""
        from unike.edits.stack import attached

        with attached(backbone, [self]):
            yield self

    @classmethod
    def check_group(cls, group: "Group") -> None:
        """Refuse edits with one config that cannot act as they were made to; by default they can.

        Raises:
            UnikeError: What they need of the backbone is not there.
        """
        return

    @classmethod
    def weight_updates(cls, group: "Group") -> "list[WeightUpdate] | None":
        """What single edits with one config add to weights; None for a method that does anything else, as most do."""
        return None

    @classmethod
    def told(cls, group: "Group", queries: Sequence[Query]) -> list[Query | None]:
        """Queries as the unedited model is to be asked in place of the edited one; None, by default, for all of them.

        Args:
            group: Edits with one config.
            queries: As many as its rows, or a multiple of it.
        """
        return [None] * len(queries)

    @classmethod
    def calls(cls, group: "Group", queries: Sequence[Query]) -> Tensor | None:
        """How far questions call upon each edit of a stack.

        Args:
            group: Edits with one config, of one fact each.
            queries: Any mix.

        Returns:
            ``[Q, G]``, 0 where a question is none of the edit's business; None, by default, for a method that does not
            tell.
        """
        return None

    def check_attachable(self) -> None:
        """Refuse to be attached, where a method does not act within the model; by default it does."""
        return

    def check_fits(self, backbone: Backbone) -> None:
        """Refuse another backbone than the one the edit was made for.

        Raises:
            UnikeError: With both models' names.
        """
        if not backbone.is_known_as(self.fingerprint):
            named = "another model of that name, or the same with another template"
            same = named if backbone.source == self.source else repr(backbone.source)
            raise UnikeError(
                f"the edit {self.facts[0].prompt!r} was made for {self.source!r} ({self.fingerprint}), "
                f"not for {same} ({backbone.fingerprint()}); load that model, or make the edit anew"
            )

    def shared_out(self, rows: int) -> list[int]:
        """Which of the B edits each of several rows sees: as many rows in turn for each.

        Raises:
            UnikeError: They cannot be shared out evenly.
        """
        if rows % len(self):
            raise UnikeError(
                f"{len(self)} independent edits are attached, but the model runs on {rows} rows; "
                "ask one question for each edit, or attach one alone: edit[i]"
            )
        return [row * len(self) // rows for row in range(rows)]

    # ------------------------------------------------------------------ files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``edit_config.json`` and ``edit.safetensors``; an edit already there is replaced as a whole.

        Raises:
            UnikeError: The folder cannot be written, or holds something else.
        """
        from unike.edits.files import write

        write(self, given_folder(folder))

    def push_to_hub(
        self,
        repo: str,
        *,
        model: Backbone | None = None,
        private: bool = False,
        with_pictures: bool = False,
        message: str | None = None,
    ) -> str:
        """Write the edit to a repository of the Hugging Face hub, with a card that shows the fact.

        Args:
            repo: ``"organisation/name"``; made if it is not there, and replaced if an edit is.
            model: Asked the edit's questions first, without it and with it, for the card.
            private: Whether a new repository is.
            with_pictures: Whether the files of the pictures go along, metadata and all; else their SHA-256 alone does.
            message: Of the commit.

        Returns:
            Where the hub shows it.

        Raises:
            UnikeError: The hub refuses or cannot be reached, or the repository holds something else.
        """
        from unike.edits.edited import checks_of
        from unike.edits.hub import push

        checks = () if model is None else checks_of(model, self)
        return push(self, repo, private=private, with_pictures=with_pictures, checks=checks, message=message)

    @staticmethod
    def from_pretrained(folder: str | Path, *, encoder: str | None = None, revision: str | None = None) -> "Edit":
        """Read an edit of whatever editor made it.

        Args:
            folder: Of the edit; or a name on the hub, ``"organisation/name"`` if there is no such folder, and
                ``"hf://organisation/name"`` in any case.
            encoder: A folder or hub id of a sentence encoder that the edit may name; the one that ships it always may.
            revision: A branch, tag or commit of an edit on the hub.

        Raises:
            UnikeError: No edit there, or one that was changed, cut short, or made by a newer version; or it names
                another encoder.
        """
        from unike.edits.files import read
        from unike.edits.hub import located

        return read(located(folder, revision), encoder)
