"""What editing methods share: a frozen config, a pure ``edit``, and an `Edit` to be attached, saved and revoked.

An editor never changes the backbone. It returns an `Edit`, a few tensors with what they mean; while attached, the edit
acts through hooks, and leaving the ``with`` block takes them off. A sequence of edits is a stack of attached ones::

    with first.attached(backbone), second.attached(backbone):
        backbone.ask(image, prompt)

Tensors of an edit carry a leading dimension B: one object holds B *independent* edits that were made in one pass,
row ``i`` of a batch being seen by edit ``i``. ``edit[i]`` is that one alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, text_input
from unike.backbones.forward.split import SplitState
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import SealedFolder, replace_folder
from unike.core.settings import Settings
from unike.core.version import __version__
from unike.data.leaks import Trace
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors

CONFIG_FILE, TENSOR_FILE = "edit_config.json", "edit.safetensors"
SAVED = SealedFolder(
    "edit", CONFIG_FILE, TENSOR_FILE, version=1, keys=frozenset({"editor", "config", "backbone", "facts"})
)


class EditorConfig(Settings):
    """Settings of an editor: frozen, and unknown keys are errors.

    Attributes:
        max_target_tokens: A longer target is refused.
    """

    max_target_tokens: int = 64


class Edit(ABC):
    """B independent facts, as tensors that act on a backbone while attached.

    Args:
        config: The settings it was made with.
        tensors: Name to ``[B, ...]``.
        facts: The B edited queries.
        fingerprint: Of the backbone it was made for.
        source: What that backbone was called.
    """

    editor: ClassVar[str]
    config_class: ClassVar[type[EditorConfig]]

    def __init__(
        self, config: EditorConfig, tensors: dict[str, Tensor], facts: Sequence[Query], *, fingerprint: str, source: str
    ) -> None:
        self.config = config
        self.tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.facts = tuple(facts)
        self.fingerprint = fingerprint
        self.source = source

    def __len__(self) -> int:
        """B."""
        return len(self.facts)

    def __getitem__(self, row: int) -> Self:
        """One of the edits alone."""
        return self.rows([range(len(self))[row]])

    def rows(self, rows: Sequence[int]) -> Self:
        """Some of the edits, in that order; one may come several times.

        Args:
            rows: Indices from 0, for example ``[0, 0, 2]``: then rows 0 and 1 of a batch see edit 0, row 2 edit 2.
        """
        index = list(rows)
        return self._like({name: t[index] for name, t in self.tensors.items()}, [self.facts[row] for row in index])

    def _like(self, tensors: dict[str, Tensor], facts: Sequence[Query]) -> Self:
        return type(self)(self.config, tensors, facts, fingerprint=self.fingerprint, source=self.source)

    def __repr__(self) -> str:
        first = self.facts[0]
        more = f" and {len(self) - 1} more" if len(self) > 1 else ""
        return f"{type(self).__name__}({first.prompt!r} -> {first.target!r}{more}, for {self.source!r})"

    @abstractmethod
    def install(self, backbone: Backbone, hooks: Hooks) -> None:
        """Put the edit's hooks on a backbone it fits."""

    @classmethod
    def install_stack(cls, edits: Sequence[Self], backbone: Backbone, hooks: Hooks) -> None:
        """Put a stack of edits with one config on a backbone; by default one after the other."""
        for edit in edits:
            edit.install(backbone, hooks)

    @contextmanager
    def attached(self, backbone: Backbone) -> Iterator[Self]:
        """Let the edit act on a backbone, on top of those that do; leaving the block restores it, bit for bit.

        Raises:
            UnikeError: The edit was made for another backbone; within the block, the model runs on rows that cannot be
                shared out evenly among the B edits.
        """
        with attached(backbone, [self]):
            yield self

    def check_fits(self, backbone: Backbone) -> None:
        """Refuse another backbone than the one the edit was made for.

        Raises:
            UnikeError: With both models' names.
        """
        if backbone.fingerprint() != self.fingerprint:
            raise UnikeError(
                f"the edit {self.facts[0].prompt!r} was made for {self.source!r} ({self.fingerprint}), "
                f"not for {backbone.source!r} ({backbone.fingerprint()}); load that model, or make the edit anew"
            )

    def check_rows(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Here and not at the layers: OPT flattens rows and positions, and any number of them would seem to fit."""
        self.shared_out(len(text_input(args, kwargs)))

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

    def to(self, device: torch.device | str) -> Self:
        """The same edit on another device."""
        return self._like({name: t.to(device) for name, t in self.tensors.items()}, self.facts)

    def generate(self, backbone: Backbone, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        """Answer queries under the edit; arguments as in `Backbone.generate`."""
        return self.answer([self], backbone, queries, **kwargs)

    @classmethod
    def answer(cls, edits: "Sequence[Edit]", backbone: Backbone, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        """Answer queries under a stack of edits; methods that rewrite or route questions override this."""
        with attached(backbone, edits):
            return backbone.generate(queries, **kwargs)

    @classmethod
    @torch.no_grad()
    def target_logits(
        cls, edits: "Sequence[Edit]", backbone: Backbone, queries: Sequence[Query], state: SplitState | None = None
    ) -> Tensor:
        """Teacher-forced logits of the queries' targets under a stack of edits; overridden as `answer` is.

        Args:
            edits: The stack, oldest first; may be empty.
            backbone: The model.
            queries: With targets.
            state: The queries run to a layer no higher than the edits' lowest, if that has been done before.

        Returns:
            ``[n, V]``, at the positions of `target_positions`, row by row.
        """
        batch = backbone.encode(queries) if state is None else None
        with attached(backbone, edits):
            if state is not None:
                return backbone.run_from_split(state, target_positions(state.labels))
            assert batch is not None
            return backbone.forward(batch)[target_positions(batch.labels)]

    # ------------------------------------------------------------------ files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``edit_config.json`` and ``edit.safetensors``; an edit already there is replaced as a whole.

        Raises:
            UnikeError: The folder cannot be written, or holds something else.
        """
        content = save({name: tensor.cpu() for name, tensor in self.tensors.items()})
        described: dict[str, Any] = {
            "unike": __version__,
            "editor": self.editor,
            "config": self.config.model_dump(mode="json"),
            "backbone": {"source": self.source, "fingerprint": self.fingerprint},
            "facts": [
                {"image": None if q.image is None else str(q.image), "prompt": q.prompt, "target": q.target}
                for q in self.facts
            ],
        }
        replace_folder(Path(folder), SAVED.files(described, content), known_by=CONFIG_FILE)

    @staticmethod
    def from_pretrained(folder: str | Path) -> "Edit":
        """Read an edit of whatever editor made it.

        Raises:
            UnikeError: No edit there, or one that was changed, cut short, or made by a newer version.
        """
        folder = Path(folder)
        described, content = SAVED.read(folder)
        try:
            editor: type[Editor[Any]] = registry.editors.get(described["editor"])
            facts = [
                Query(fact["prompt"], None if fact["image"] is None else Path(fact["image"]), fact["target"])
                for fact in described["facts"]
            ]
            return editor.edit_class(
                editor.config_class.parse(described["config"]),
                load(content),
                facts,
                fingerprint=described["backbone"]["fingerprint"],
                source=described["backbone"]["source"],
            )
        except (LookupError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise SAVED.damaged(folder, repr(error)) from None


class RoutingEdit(Edit):
    """Edits whose method does not act within the model, but rewrites or routes a question before the model reads it.

    They override `answer` and `target_logits`, and are asked through these: ``edit.generate(backbone, queries)``.
    """

    def install(self, backbone: Backbone, hooks: Hooks) -> None:
        """Refuse: with hooks alone it would do nothing.

        Raises:
            UnikeError: Always.
        """
        raise UnikeError(
            f"{self.editor!r} does not act within the model, so its edits cannot be attached; "
            "ask through the edit: edit.generate(model, queries)"
        )

    @classmethod
    def check_stack(cls, edits: Sequence[Edit], backbone: Backbone) -> None:
        """Refuse a stack that does not fit a backbone or whose edits do not fit each other.

        Raises:
            UnikeError: As `check_fits`; or they were made with different settings.
        """
        for edit in {edit.fingerprint: edit for edit in edits}.values():
            edit.check_fits(backbone)
        if len({edit.config for edit in edits}) > 1:
            raise UnikeError(f"edits of {cls.editor!r} act together only with the same settings; make them anew")

    @classmethod
    def in_scope(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> list[bool]:
        """Which queries do not simply reach the model as they are: all, unless a method knows better.

        To the others the answer, and every logit, is the unedited model's.
        """
        return [True] * len(queries)

    @classmethod
    def reads_targets(cls, edits: Sequence[Edit]) -> bool:
        """Whether a query's target decides where it goes: then nothing about answers follows from reading targets."""
        return False


def answer(edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query], **kwargs: Any) -> list[str]:
    """Answer queries under a stack of edits of any methods.

    Those that act within the model are attached; one more method may rewrite or route the questions to it.

    Args:
        edits: The stack, oldest first.
        backbone: The model.
        queries: Their targets are not looked at.
        **kwargs: As in `Backbone.generate`.

    Raises:
        UnikeError: As `Edit.attached`; or two methods would rewrite the questions.
    """
    routing = [edit for edit in edits if isinstance(edit, RoutingEdit)]
    kinds = {type(edit) for edit in routing}
    if not kinds:
        return Edit.answer(edits, backbone, queries, **kwargs)
    if len(kinds) > 1:
        names = " and ".join(sorted(repr(kind.editor) for kind in kinds))
        raise UnikeError(f"{names} both rewrite or route questions; use edits of one of them at a time")
    kind = kinds.pop()
    kind.check_stack(routing, backbone)  # which also reads what the method needs of the unedited model
    with attached(backbone, [edit for edit in edits if not isinstance(edit, RoutingEdit)]):
        return kind.answer(routing, backbone, queries, **kwargs)


def side_by_side(edits: Sequence[Edit], name: str) -> Tensor:
    """A tensor of several edits, ``[B, ...]``, next to each other; those of smaller batches serve several rows each."""
    return torch.cat(_for_each_row(edits, name), dim=1)


def added_up(edits: Sequence[Edit], name: str) -> Tensor:
    """The sum of a tensor of several edits, ``[B, ...]``; those of smaller batches serve several rows each."""
    first, *others = _for_each_row(edits, name)
    total = first.clone()
    for other in others:
        total += other
    return total


def _for_each_row(edits: Sequence[Edit], name: str) -> list[Tensor]:
    rows, parts = math.lcm(*map(len, edits)), [edit.tensors[name] for edit in edits]
    return [p if len(p) == rows else p.repeat_interleave(rows // len(p), dim=0) for p in parts]


@contextmanager
def attached(backbone: Backbone, edits: Sequence[Edit]) -> Iterator[None]:
    """Attach a stack of edits, oldest first, on top of those that are attached.

    What a stack does depends on which edits are in it, in which order, not on how it came about: with every change the
    whole stack is put on anew. So a stack without one of its edits is, bit for bit, the stack of the others.

    Raises:
        UnikeError: As `Edit.attached`; or a method does not act within the model, see `RoutingEdit`.
    """
    edits = list(edits)  # the caller's may grow within the block
    if not edits:
        yield
        return
    for edit in {edit.fingerprint: edit for edit in edits}.values():
        edit.check_fits(backbone)
    backbone.edits.extend(edits)
    try:
        _reinstall(backbone)
        yield
    finally:
        for edit in edits:  # the blocks of a stack may be left in any order
            backbone.edits.remove(edit)
        _reinstall(backbone)


@contextmanager
def detached(backbone: Backbone) -> Iterator[None]:
    """Take all edits off a backbone; after the block they act again."""
    edits = list(backbone.edits)
    if not edits:
        yield
        return
    backbone.edits.clear()
    try:
        _reinstall(backbone)
        yield
    finally:
        backbone.edits.extend(edits)
        _reinstall(backbone)


_INSTALLED: WeakKeyDictionary[Backbone, Hooks] = WeakKeyDictionary()
"""The hooks of each backbone's stack of edits."""


def _reinstall(backbone: Backbone) -> None:
    """Put the stack of attached edits on a backbone; those of one method and config act as one."""
    hooks = _INSTALLED.setdefault(backbone, Hooks())
    hooks.remove()
    groups: dict[tuple[type[Edit], EditorConfig], list[Edit]] = {}
    for edit in cast(list[Edit], backbone.edits):
        hooks.add_pre(backbone.text_stack, edit.check_rows)
        groups.setdefault((type(edit), edit.config), []).append(edit.to(backbone.device))
    for (kind, _), group in groups.items():
        kind.install_stack(group, backbone, hooks)


ConfigT = TypeVar("ConfigT", bound=EditorConfig)


class Editor(ABC, Generic[ConfigT]):
    """An editing method.

    Args:
        config: Its settings; keyword arguments make one.
        anchors: Unrelated inputs that an edit should leave alone, for methods that use them.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[EditorConfig]]
    edit_class: ClassVar[type[Edit]]
    sequential: ClassVar[bool] = True
    """Whether several edits can be in force at once."""

    def __init__(self, config: ConfigT | None = None, *, anchors: Anchors | None = None, **settings: Any) -> None:
        self.config: ConfigT = config if config is not None else self.config_class.parse(settings)  # type: ignore[assignment]
        self.anchors = anchors

    @property
    def keeps_prefix(self) -> bool:
        """Whether an edit leaves what is read before a prompt's last token as it is, at every layer."""
        return False

    def prepare(self, backbone: Backbone) -> None:
        """Read what does not depend on the facts, so that the first edit takes no longer than the next; optional."""

    def sources(self, backbone: Backbone) -> Sequence[Trace]:
        """What the method learned from before its first edit; the bench refuses what it is to be evaluated on."""
        return ()

    @property
    def uses_anchors(self) -> bool:
        """Whether the anchors, if it has any, shape its edits."""
        return False

    def learned(self, backbone: Backbone) -> str | None:
        """A short hash of what the method learned before its first edit, if anything: its results depend on it."""
        return None

    def anchor_inputs(self, backbone: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
        """What the feed-forward networks of the unedited model read of the anchors, see `Anchors.ffn_inputs`.

        Older edits are taken off meanwhile: to read all anchors anew for each edit of a sequence would take most of
        its time, and edits that stay silent where they should do not change them.

        Returns:
            ``[M, D]`` for each layer; nothing if there are no anchors.
        """
        if not self.anchors:
            return {}
        with detached(backbone):
            return self.anchors.ffn_inputs(backbone, layers)

    def edit(self, backbone: Backbone, facts: Query | Sequence[Query]) -> Edit:
        """Edit one fact, or several independent ones in one pass. The backbone is left as it was.

        Args:
            backbone: The model to edit.
            facts: Queries with a target.

        Raises:
            UnikeError: No fact, a prompt or target is empty or too long, or an image cannot be read.
        """
        facts = [facts] if isinstance(facts, Query) else list(facts)
        if not facts:
            raise UnikeError("there is nothing to edit: no fact was given")
        for fact in facts:
            self.check(backbone, fact)
        tensors = {name: tensor.detach() for name, tensor in self.make(backbone, facts).items()}
        return self.edit_class(self.config, tensors, facts, fingerprint=backbone.fingerprint(), source=backbone.source)

    def check(self, backbone: Backbone, fact: Query) -> None:
        """Refuse a fact that cannot be edited.

        Raises:
            UnikeError: Its prompt or target is empty, or the target too long.
        """
        if not fact.prompt.strip():
            raise UnikeError("the prompt is empty; say which question is to be answered differently")
        if not fact.target or not fact.target.strip():
            raise UnikeError(f"the target for {fact.prompt!r} is empty; say what the answer should be")
        length = len(backbone.tokenizer(" " + fact.target.strip(), add_special_tokens=False)["input_ids"])
        if length > self.config.max_target_tokens:
            limit = self.config.max_target_tokens
            raise UnikeError(f"the target for {fact.prompt!r} has {length} tokens, the limit is {limit}; shorten it")

    @abstractmethod
    def split(self, backbone: Backbone) -> int | None:
        """The lowest layer an edit acts on, counted from 0: what is below need not be computed twice.

        None for a method that does not act through hooks on the decoder, but makes `RoutingEdit`.
        """

    @abstractmethod
    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Compute the edit's tensors, each ``[B, ...]``, for B checked facts."""
