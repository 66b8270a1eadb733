"""Where a study is conducted: variants of a method, each run by the ordinary benchmark in a folder of its own.

A variant's folder is named by what sets it apart, ``OUT/unike-gate=false`` for example. A run that was cut off goes on,
one that is finished is used as it is, by another study in the same folder too.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unike import api
from unike.backbones.adapter import Backbone
from unike.bench.results import RunResults, check_place, check_same_run, read_header, read_run
from unike.bench.runner import evaluate
from unike.bench.selection import Task, cases_hash, check_method, read_tasks
from unike.bench.spec import RunSpec
from unike.bench.workers import load_model, run_local
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.core.settings import folded, unfolded
from unike.editors.base import Editor
from unike.editors.unike.config import nested
from unike.studies.request import Request

UNIKE, INTRINSIC_IKE = "unike", "intrinsic_ike"

ANY = frozenset({"settings", "engine", "batch", "device", "skip_bad"})
"""What a finished run may have of any value; of the settings, the whole config is compared."""


@dataclass(frozen=True)
class Variant:
    """A method with settings, under the name that a study has for it.

    Attributes:
        name: Of its row; several variants of one name are put together.
        settings: What sets it apart.
        editor: The method.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    editor: str = UNIKE

    @property
    def folder(self) -> str:
        """Of its run: the same for the same variant in every study."""
        return "-".join([self.editor, *plain(self.settings)])

    def with_base(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All its settings, with those that all variants of `unike` share.

        Raises:
            UnikeError: The study varies one of these.
        """
        if self.editor == INTRINSIC_IKE:
            return {"intrinsic": dict(settings), **self.settings}
        if self.editor != UNIKE:
            return dict(self.settings)
        shared = folded(nested(unfolded(settings)))
        for key in shared.keys() & self.settings.keys():
            raise UnikeError(f"--set {key} cannot be held fixed: the study varies it; leave it out")
        return {**shared, **self.settings}


def plain(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings as names of folders and captions have them."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from plain(value)
        else:
            yield key if value is True else f"{key}={value if isinstance(value, str) else json.dumps(value)}"


class Lab:
    """Where a study is conducted: the request, the folder, and a model that is loaded when it is needed.

    Args:
        request: What is studied.
        out: Folder of the runs and of what is shown.
        progress: Told how far it is.
    """

    def __init__(self, request: Request, out: Path, progress: Progress = silent) -> None:
        self.request = request
        self.out = out
        self.progress = progress

    @cached_property
    def tasks(self) -> list[Task]:
        """The cases; read once."""
        return read_tasks(self.request.spec, self.request.data)

    @cached_property
    def backbone(self) -> Backbone:
        """The model."""
        return load_model(self.request.spec, self.progress)

    def spec(self, variant: Variant, **changes: Any) -> RunSpec:
        """What a variant's run measures.

        Args:
            variant: The method.
            **changes: Fields in which it differs from what was asked for.
        """
        settings = variant.with_base(self.request.spec.settings)
        return replace(self.request.spec, editor=variant.editor, settings=settings, **changes)

    def place(self, variant: Variant, spec: RunSpec) -> Path:
        """The folder of a variant's run; sequences are apart from one-step editing."""
        return self.out / (f"{variant.folder}-{spec.setting}-{spec.k}" if spec.in_sequences else variant.folder)

    def editor(self, variant: Variant) -> Editor[Any]:
        """The method of a variant."""
        return api.make_editor(variant.editor, **variant.with_base(self.request.spec.settings))

    def check(self, variant: Variant, **changes: Any) -> None:
        """Refuse a variant that could not be run.

        Raises:
            UnikeError: Its settings, data or folder; nothing was touched.
        """
        spec = self.spec(variant, **changes)
        spec.check()
        method = registry.editors.get(spec.editor)
        method.config_class.parse(dict(spec.settings))
        check_method(method, spec)
        _ = self.tasks
        check_place(self.place(variant, spec))
        self.finished(variant, spec)

    def run(self, variant: Variant, **changes: Any) -> tuple[Path, RunResults]:
        """The run of a variant, made, finished, or read, and its folder.

        Raises:
            UnikeError: As `evaluate`.
        """
        spec = self.spec(variant, **changes)
        out = self.place(variant, spec)
        if (done := self.finished(variant, spec)) is not None:
            return out, done

        def progress(what: str, done: int, total: int) -> None:
            self.progress(f"{variant.name}: editing" if what == "editing" else what, done, total)

        if self.request.workers > 1:
            return out, run_local(spec, out, self.request.data, self.request.workers, progress)
        return out, evaluate(self.backbone, self.editor(variant), self.tasks, out, spec, progress=progress)

    def finished(self, variant: Variant, spec: RunSpec) -> RunResults | None:
        """A variant's run, if it is there to the last case: whatever version made it, and without loading a model.

        Raises:
            UnikeError: Another run is there.
        """
        out = self.place(variant, spec)
        if read_header(out) is None:
            return None
        wanted = {key: value for key, value in asdict(spec).items() if key not in ANY}
        left_open = {"max_new_tokens": None, "dtype": "auto"}
        wanted = {key: value for key, value in wanted.items() if left_open.get(key, MISSING) != value}
        config = registry.editors.get(spec.editor).config_class.parse(dict(spec.settings))
        wanted |= {"config": config.model_dump(mode="json"), "cases": cases_hash(self.tasks)}
        check_same_run(out, wanted)
        run = read_run(out)
        return run if run.finished else None
