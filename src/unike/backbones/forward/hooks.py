"""Looking into a model and changing what flows through it, without changing the model.

Everything the library does to a network goes through three context managers that always put things back, also when
the code inside them fails:

`Hooks`
    collects hooks and removes all of them on leaving. Edits live here.

`trace`
    records what went into a module and what came out of it, and can stop the forward pass as soon as it has seen
    enough::

        with trace(backbone.layers[3], stop=True) as record:
            backbone.forward(batch)
        record.output  # [B, S, D]; layers above 3 were never computed

`inject`
    replaces what goes into a module or what comes out of it::

        with inject(backbone.layers[3], input=hidden):
            backbone.forward(batch)  # layer 3 reads `hidden` instead of layer 2's output

Hooks always receive keyword arguments: decoder layers are given the hidden state by position, their attention by
keyword. `first_input` and `replace_first_input` hide that difference.

PyTorch runs the hooks of a module in the order they were added, so of two edits on one module the second sees the
first's result. `prepend=True` puts a hook in front: a recorder that is to see the untouched input, or an injected
state that every other hook is to see.

Hooks belong to a module, which threads may share; so each set of hooks is silent in every thread but its own.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
PreHook = Callable[[nn.Module, Args, Kwargs], tuple[Args, Kwargs] | None]
Hook = Callable[[nn.Module, Args, Kwargs, Any], Any]


class StopForward(Exception):
    """Ends a forward pass that has been seen far enough; the `trace` that raised it swallows it."""


class Hooks:
    """A set of hooks that is removed as a whole, and acts in the thread alone that made it.

    Args:
        when: Asked before each call of a hook; the hook is silent where it returns false.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> with Hooks() as hooks:
        ...     hooks.add(linear, lambda module, args, kwargs, output: output + 1)
        ...     ...
    """

    def __init__(self, when: Callable[[], bool] = lambda: True) -> None:
        """Start without hooks."""
        self._handles: list[RemovableHandle] = []
        self._held: list[Callable[[bool], RemovableHandle]] | None = None
        self._thread = threading.get_ident()
        self._when = when

    def __enter__(self) -> Self:
        """Hooks may be added before or inside the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take every hook off, whatever happened."""
        self.remove()

    def __len__(self) -> int:
        """How many hooks are on."""
        return len(self._handles)

    def add_pre(self, module: nn.Module, hook: PreHook, *, prepend: bool = False) -> None:
        """Call ``hook(module, args, kwargs)`` before the module runs.

        Args:
            module: Where.
            hook: Returns None to leave the input as it is, or the new ``(args, kwargs)``.
            prepend: Run before the hooks that are already there.
        """

        def guarded(*call: Any) -> Any:
            return hook(*call) if self._acts() else None

        self._place(partial(module.register_forward_pre_hook, guarded, with_kwargs=True), prepend)

    def add(self, module: nn.Module, hook: Hook, *, prepend: bool = False) -> None:
        """Call ``hook(module, args, kwargs, output)`` after the module has run.

        Args:
            module: Where.
            hook: Returns None to leave the output as it is, or the new one.
            prepend: Run before the hooks that are already there.
        """

        def guarded(*call: Any) -> Any:
            return hook(*call) if self._acts() else None

        self._place(partial(module.register_forward_hook, guarded, with_kwargs=True), prepend)

    @contextmanager
    def ahead(self) -> Iterator[Self]:
        """What is added within the block comes, in its order, before all hooks that are there when the block ends."""
        self._held = []
        try:
            yield self
            for register in reversed(self._held):
                self._handles.append(register(True))
        finally:
            self._held = None

    def remove(self) -> None:
        """Take every hook off; calling it twice does no harm."""
        while self._handles:
            self._handles.pop().remove()

    def _acts(self) -> bool:
        return threading.get_ident() == self._thread and self._when()

    def _place(self, register: Callable[..., RemovableHandle], prepend: bool) -> None:
        if self._held is None:
            self._handles.append(register(prepend=prepend))
        else:
            self._held.append(lambda first: register(prepend=first))


@dataclass
class Call:
    """One call of a module: its arguments and, once it has run, its output."""

    args: Args
    kwargs: Kwargs
    output: Any = None

    @property
    def input(self) -> Any:
        """The hidden state the module was given."""
        return first_input(self.args, self.kwargs)


@dataclass
class Record:
    """What a traced module did.

    Args:
        calls: Every call, oldest first; only the latest unless the trace was told to keep all.
        count: How many calls there were.
    """

    calls: list[Call] = field(default_factory=list)
    count: int = 0

    def _last(self) -> Call:
        if not self.calls:
            raise RuntimeError("the traced module was never called")
        return self.calls[-1]

    @property
    def args(self) -> Args:
        """Positional arguments of the latest call."""
        return self._last().args

    @property
    def kwargs(self) -> Kwargs:
        """Keyword arguments of the latest call."""
        return self._last().kwargs

    @property
    def input(self) -> Any:
        """The hidden state the latest call was given."""
        return self._last().input

    @property
    def output(self) -> Any:
        """What the latest call returned, as the module returned it (attention modules return a tuple)."""
        return self._last().output


def first_input(args: Args, kwargs: Kwargs) -> Any:
    """The hidden state among a module's arguments, given by position or by keyword."""
    return args[0] if args else kwargs["hidden_states"]


def text_input(args: Args, kwargs: Kwargs) -> Tensor:
    """What a whole text stack is given to read, ``[R, S]`` or ``[R, S, D]``, whatever it is called."""
    given = [*args, kwargs.get("inputs_embeds"), kwargs.get("input_ids")]
    return next(value for value in given if isinstance(value, Tensor))


def replace_first_input(args: Args, kwargs: Kwargs, value: Any) -> tuple[Args, Kwargs]:
    """The same arguments with another hidden state."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": value}


@contextmanager
def trace(
    modules: nn.Module | Sequence[nn.Module],
    *,
    stop: bool | Literal["input"] = False,
    keep_all: bool = False,
    prepend: bool = False,
) -> Iterator[Any]:
    """Record the inputs and outputs of modules while the model runs.

    Args:
        modules: One module, or several.
        stop: True ends the forward pass once every module has returned, ``"input"`` once every module has been
            reached (the last one does not run). The pass ends quietly; code after it within the ``with`` block does
            not run.
        keep_all: Keep every call, not only the latest. Generation calls a module once a token.
        prepend: Record before the hooks that are already on the module, that is, the input as nobody has changed it.

    Yields:
        A `Record` for one module, a list of them in the same order for several.
    """
    several = [modules] if isinstance(modules, nn.Module) else list(modules)
    records = [Record() for _ in several]
    finished = StopForward("the traced modules have been seen")

    def before(record: Record) -> PreHook:
        def hook(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            if not keep_all:
                record.calls.clear()
            record.calls.append(Call(args, kwargs))
            record.count += 1
            if stop == "input" and all(r.count for r in records):
                raise finished

        return hook

    def after(record: Record) -> Hook:
        def hook(module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
            record.calls[-1].output = output
            if stop is True and all(r.count and r.calls[-1].output is not None for r in records):
                raise finished

        return hook

    with Hooks() as hooks:
        for module, record in zip(several, records, strict=True):
            hooks.add_pre(module, before(record), prepend=prepend)
            hooks.add(module, after(record))
        try:
            yield records[0] if isinstance(modules, nn.Module) else records
        except StopForward as signal:
            if signal is not finished:  # an outer trace's; it will know it
                raise


@contextmanager
def inject(
    module: nn.Module,
    *,
    input: Tensor | Callable[[Tensor], Tensor] | None = None,
    output: Tensor | Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Replace the hidden state that goes into a module, or the one that comes out of it.

    Args:
        module: Where.
        input: The new input, or a function of the old one. Comes before every other hook on the module.
        output: The new output, or a function of the old one; of a tuple, the first element is meant.
    """

    def before(_: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        new = input(first_input(args, kwargs)) if callable(input) else input
        return replace_first_input(args, kwargs, new)

    def after(_: nn.Module, args: Args, kwargs: Kwargs, old: Any) -> Any:
        hidden = old[0] if isinstance(old, tuple) else old
        new = output(hidden) if callable(output) else output
        return (new, *old[1:]) if isinstance(old, tuple) else new

    with Hooks() as hooks:
        if input is not None:
            hooks.add_pre(module, before, prepend=True)
        if output is not None:
            hooks.add(module, after)
        yield
