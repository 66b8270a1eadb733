"""What the documentation names is there: commands, files, names; its pictures are what the code is; its Python runs."""

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import reports
import torch
import typer
from tinies import tiny_backbone

import unike
from unike import api
from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import token_nll
from unike.cli import app
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.options import parse_settings
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

TEXTS = [
    *PAGES,
    *(ROOT / name for name in ("NOTICE", "Makefile", "pyproject.toml")),
    *(path for folder in ("benchmarks", "examples", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))),
]
"""Whatever names files and modules to a reader."""

SOURCES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("src", "tests", "benchmarks", "examples", "scripts")
    for path in (ROOT / folder).rglob("*.py")
]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, *languages: str) -> list[str]:
    """The text of each block of a page in some languages."""
    return [text for language, text in BLOCK.findall(path.read_text(encoding="utf-8")) if language in languages]


COMMANDS = [
    (path.name, line)
    for path in PAGES
    for block in blocks(path, "console", "sh")
    for line in re.findall(r"^(?:\$ )?(unike .*?)(?:\s+#.*)?$", block, re.MULTILINE)
]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------------- commands


def parse(line: str) -> None:
    """As the command would, up to where it begins to work: its options, and the settings of an editor."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    given = command.make_context("unike", words).params
    if command.name in ("edit", "bench", "study"):
        editor = registry.editors.get(given.get("editor") or "unike")
        editor.config_class.parse(parse_settings(given["settings"] or ()))


@pytest.mark.parametrize("document", sorted({name for name, _ in COMMANDS}))
def test_every_command_option_and_setting_exists(document: str) -> None:
    for name, line in COMMANDS:
        if name == document:
            parse(line)


def test_one_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("unike bench --editor ft --model mini --out x --dataset y --no-such-option")
    with pytest.raises(UnikeError, match="unknown setting 'no_such_setting'"):
        parse("unike bench --editor ft --model mini --out x --dataset y --set no_such_setting=1")
    with pytest.raises(KeyError):
        parse("unike models chekc x")


# ---------------------------------------------------------------------- files and names

MADE_BY_THE_READER = ("benchmarks/results", "results/ft", "src/unike/editors/ffn_lora.py")
"""Paths that begin so are what a command or a contributor writes."""


@pytest.mark.parametrize("document", TEXTS, ids=relative)
def test_every_path_that_is_named_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.-])((?:src|scripts|benchmarks|tests|examples|docs)/[\w./-]*\w)", text))
    for path in named:
        assert path.startswith(MADE_BY_THE_READER) or (ROOT / path).exists(), path
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert path.startswith(MADE_BY_THE_READER) or any(f"/{known}".endswith(f"/{path}") for known in SOURCES), path


@pytest.mark.parametrize("document", [path for path in TEXTS if path.suffix == ".md"], ids=relative)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        assert link.startswith("http") or (document.parent / link).exists(), link


@pytest.mark.parametrize("document", TEXTS, ids=relative)
def test_every_name_of_the_package_exists(document: Path) -> None:
    for name in set(re.findall(r"(?<![\w./-])unike(?:\.[A-Za-z_]\w*)+", document.read_text(encoding="utf-8"))):
        assert name.endswith(".json") or exists(name), name


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_a_name_that_is_gone_would_be_found() -> None:
    assert exists("unike.core.registry.Registry") and exists("unike.edits.edited")
    assert not exists("unike.types") and not exists("unike.edits.edited.Edited")


def test_the_files_that_are_an_equation_are_there() -> None:
    """Those that docs/method.md has in its headings."""
    headings = [line for line in (ROOT / "docs" / "method.md").read_text().splitlines() if line.startswith("## ")]
    named = [path for line in headings for path in re.findall(r"`([\w/.]+)`", line)]
    assert len(named) >= 6
    for path in named:
        assert (ROOT / "src" / "unike" / path).exists(), path


def test_the_functions_that_are_an_equation_are_there() -> None:
    """Those that docs/method.md names at the end of an equation's line."""
    equations = blocks(ROOT / "docs" / "method.md", "")
    named = [
        name for block in equations for name in re.findall(r" {4,}([A-Za-z]\w+(?:\.\w+)?)(?:, \w+)?$", block, re.M)
    ]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/unike/editors").rglob("*.py"))
    assert len(named) >= 8
    for name in named:
        last = name.split(".")[-1]
        assert re.search(rf"(?:def|class) {last}\b", code), name


# ---------------------------------------------------------------------- what is made: pictures and tables


@pytest.fixture(scope="module")
def made() -> Iterator[Callable[[str], ModuleType]]:
    """A file of ``scripts/docs``, by its name; these import one another."""
    before = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts" / "docs")
        yield importlib.import_module
    for name in {*sys.modules} - before:
        if "scripts/docs/" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def rooms(made: Callable[[str], ModuleType]) -> ModuleType:
    return made("rooms")


@pytest.fixture(scope="module")
def table(made: Callable[[str], ModuleType]) -> ModuleType:
    return made("table")


def test_readmes_table_is_what_the_lines_say(table: ModuleType) -> None:
    text = table.between.put(table.README, table.BEGIN, table.END, table.tables())
    assert table.README.read_text(encoding="utf-8") == text, f"make the table anew: {table.COMMAND}"


def test_a_line_that_says_something_else_changes_the_table(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a row has its run's own settings, is of the cases that all have, and stands where its scope puts it."""
    kinds = ("reliability", "t_generality", "m_generality", "t_locality", "m_locality", "near_locality")
    units = {name: [reports.case(name, kinds=kinds)] for name in "abcd"}
    reports.write(tmp_path / "ft", units, config={**reports.HEADER.config, "lr": 0.25}, dtype="bfloat16")
    reports.write(tmp_path / "unike", units | {"e": [reports.case("e", kinds, kinds)]}, **reports.unike())
    few = {name: [reports.case(name, ["near_locality"] * (name == "a"), kinds)] for name in "ab"}
    reports.write(tmp_path / "ke", few, editor="ke", config={})
    block = table.Block("one-step", {"ke": "", "ft": "lr {lr}", "unike": ""}, cases="ft")
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert table.table(block).splitlines() == [
        f"| one-step (n = 4) | scope | {' | '.join(kinds).replace('_', '-')} |",
        "|---|---|---|---|---|---|---|---|",
        "| `ft`, lr 0.25 † | 100 | 100 | 100 | 100 | 100 | 100 | 100 |",
        "| `unike` | 100 | 100 | 100 | 100 | 100 | 100 | 100 |",
        "| `ke` (n = 2) | 50.0 | 100 | 100 | 100 | 100 | 100 | 50.0 |",
    ]


def test_the_rooms_are_drawn_as_the_imports_are(rooms: ModuleType) -> None:
    for path, text in rooms.drawn().items():
        assert path.read_text(encoding="utf-8") == text, f"draw {relative(path)} anew: python scripts/docs/rooms.py"


def test_an_import_that_is_new_changes_the_picture(rooms: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "unike"
    for name, text in {
        "core": "",
        "data": "from unike.core import x",
        "edits": "def f():\n    import unike.data.y",
    }.items():
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text(f'"""{name.title()}."""\n{text}\n')
    (package / "core" / "x.py").touch()
    (package / "data" / "y.py").touch()
    graph = rooms.graph_of(package)
    assert graph == {"core": set(), "data": {"core"}, "edits": {"data"}}
    assert rooms.ordered(graph) == ["edits", "data", "core"]
    before = rooms.picture(graph)
    (package / "edits" / "z.py").write_text("from unike.core.x import something")
    assert rooms.picture(rooms.graph_of(package)) != before
    assert "edits imports core, data" in rooms.picture(rooms.graph_of(package))


def test_values_of_the_picture_are_classes_of_the_code() -> None:
    picture = (ROOT / "docs" / "data-flow.svg").read_text(encoding="utf-8")
    words = re.findall(r">([^<>]+)</text>", picture)
    named = {name for text in words for name in re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", text)}
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "unike").rglob("*.py"))
    assert {"EditCase", "SplitState", "EditedModel", "RowsEdited", "CaseResult", "RunSpec"} <= named
    for name in named:
        assert re.search(rf"^class {name}\b", code, re.MULTILINE), name


# ---------------------------------------------------------------------- Python


WITH_PYTHON = [path for path in PAGES if blocks(path, "python")]


@pytest.mark.parametrize("document", WITH_PYTHON, ids=relative)
def test_what_its_python_imports_exists(document: Path) -> None:
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    assert not name.startswith("unike") or exists(name), name


@pytest.fixture
def tiny(tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, at_home: None) -> Iterator[Backbone]:
    """A tiny model in the place of whatever a page loads, in a folder with the pictures that pages name."""
    model = tiny_backbone("llava")
    monkeypatch.chdir(tmp_path)
    for name, picture in zip(("flag.png", "a.png", "b.png"), pictures, strict=True):
        Path(name).write_bytes(picture.read_bytes())
    monkeypatch.setattr(unike, "load_backbone", lambda source: model)
    monkeypatch.setattr(api, "default_anchors", lambda: Anchors([Query("What is two plus two?")]))
    return model


@pytest.mark.parametrize("name", ["README.md", "docs/data-flow.md"])
def test_its_python_runs(name: str, tiny: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    known: dict[str, Any] = {}
    for block in blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), known)
    assert isinstance(known["edit"], unike.Edit)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ModuleType]:
    """The editor that CONTRIBUTING has in full, as the file that it says."""

    def read() -> ModuleType:
        text, *_ = (block for block in blocks(ROOT / "CONTRIBUTING.md", "python") if "class FFNLoRA(" in block)
        (tmp_path / "ffn_lora.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "ffn_lora", raising=False)
        return importlib.import_module("ffn_lora")

    return read


def test_the_editor_that_contributing_has_in_full_edits(
    example: Callable[[], ModuleType], tiny: Backbone, facts: list[Query]
) -> None:
    editor = example().FFNLoRA(rank=8, steps=10)
    model = unike.EditedModel(tiny)
    edits = editor.edit(tiny, facts)
    before, labels = model.target_logits(facts), tiny.encode(facts).labels
    after = unike.EditedModel(tiny, [edits]).target_logits(facts)
    assert (token_nll(after, labels) < token_nll(before, labels)).all()
    unchanged = example().FFNLoRA(steps=0).edit(tiny, facts)
    assert torch.equal(unike.EditedModel(tiny, [unchanged]).target_logits(facts), before)
    rows = unike.RowsEdited(tiny, [[edits[0]], [], [edits[2], edits[0]]]).target_logits(facts)
    assert rows.shape == before.shape
