"""How the code is laid out: a module knows what is below it, never what is above; files and functions are short."""

import ast
import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unike

ROOT = Path(unike.__file__).parent

LAYERS = [
    {"core"},
    {"data"},
    {"backbones"},
    {"edits"},
    {"editors"},
    {"api"},
    {"store"},
    {"bench"},
    {"report"},
    {"export"},
    {"studies"},
    {"reproduce"},
    {"serve"},
    {"cli"},
    {"__main__"},
]
"""From the bottom to the top; a part may import from the parts below it and from itself."""

LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

PUBLIC = "__init__"
"""``unike/__init__.py`` names what is public, and imports all but two things on first use."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(module: str, *, top_level: bool = False) -> set[str]:
    """Every module that a module imports; `from unike.editors import base` is ``unike.editors.base``.

    Args:
        module: Its dotted name.
        top_level: Only what is imported with the module itself: not in functions, not for the type checker.
    """
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    if top_level:
        nodes, waiting = [], list(tree.body)
        while waiting:
            node = waiting.pop()
            nodes.append(node)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                waiting += node.orelse
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else str(node.module) for name in full}
    return found


def part_of(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else PUBLIC


def own(module: str, **kwargs: bool) -> set[str]:
    return {name for name in imports(module, **kwargs) if name.split(".")[0] == "unike"}


def test_every_module_has_its_place() -> None:
    assert {part_of(module) for module in MODULES} - {PUBLIC} <= LEVEL.keys(), (
        "say in LAYERS where the new part belongs"
    )


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) != PUBLIC])
def test_modules_import_from_below_only(module: str) -> None:
    level = LEVEL[part_of(module)]
    for other in own(module):
        if part_of(other) == PUBLIC:
            assert part_of(module) in ("cli", "__main__"), f"{module} imports {other}, which is for users"
        elif part_of(other) != part_of(module):
            assert LEVEL[part_of(other)] < level, f"{module} imports {other}"


def entries(part: str) -> list[str]:
    """The modules of a package that are entries of a registry."""
    room = f"unike.{part}."
    shared = {"base", *getattr(importlib.import_module(room[:-1]), "SHARED", ())}
    below = {name: name.removeprefix(room).split(".")[0] for name in MODULES if name.startswith(room)}
    return [name for name, entry in below.items() if entry not in shared and not entry.startswith("_")]


@pytest.mark.parametrize("module", entries("editors"))
def test_editors_know_no_other_editor_family_or_data_set(module: str) -> None:
    own_room = ".".join(module.split(".")[:3])
    for other in own(module):
        if part_of(other) == "editors":
            room = other.split(".")[2] if other.count(".") > 1 else ""
            assert other.startswith(own_room) or room in ("base", "common", "trained"), f"{module} imports {other}"


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) in ("edits", "editors")])
def test_what_edits_knows_no_family(module: str) -> None:
    assert not [name for name in own(module) if name.startswith("unike.backbones.families")], module


BUILT_ON = {
    "unike.backbones.families.mini": "unike.backbones.families.llava",  # it is a LLaVA
    "unike.backbones.families.instructblip": "unike.backbones.families.blip2",  # its Q-Former reads the question
}


@pytest.mark.parametrize("module", entries("backbones.families"))
def test_families_know_no_other_family(module: str) -> None:
    families = {name for name in own(module) if name.startswith("unike.backbones.families.")}
    assert families <= {module, BUILT_ON.get(module)}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("unike.data.datasets")])
def test_data_sets_hold_paths_and_strings(module: str) -> None:
    heavy = {"torch", "transformers", "PIL", "numpy", "torchvision"}
    assert not {name.split(".")[0] for name in imports(module, top_level=True)} & heavy


def test_nothing_imports_in_circles() -> None:
    graph = {module: {name for name in own(module, top_level=True) if name != module} for module in MODULES}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in graph:
        visit(module, ())


LIGHT = """
import sys
import unike
from unike.core import registry
names = registry.editors.names() + registry.backbones.names() + registry.datasets.names()
unike.UnikeError, unike.__version__
heavy = {"torch", "transformers", "PIL", "numpy", "pyarrow", "safetensors", "pydantic"} & set(sys.modules)
assert not heavy, heavy
assert set(unike.__all__) <= {*dir(unike), *unike._HOMES}
"""


def test_importing_the_package_imports_nothing_heavy() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", LIGHT], check=True, env=environment)


def test_public_names_are_sorted_and_there() -> None:
    assert list(unike.__all__) == sorted(unike.__all__)
    assert all(hasattr(unike, name) for name in unike.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unike.nothing


# ---------------------------------------------------------------------- files, functions, names

CHECKOUT = ROOT.parents[1]

SOURCES = sorted(
    path
    for folder in ("src", "tests", "scripts", "benchmarks", "examples")
    for path in (CHECKOUT / folder).rglob("*.py")
)

TESTS = sorted((CHECKOUT / "tests").rglob("*.py"))

LONGEST_FILE, LONGEST_FUNCTION = 400, 60

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_names(tree: ast.Module) -> set[str]:
    """Private functions, classes, attributes and variables that a file makes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if is_private(name)}


def names_used(tree: ast.Module) -> set[str]:
    """Names that a file asks others for: attributes, imports, and what is given to `setattr` and its like."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in MODULES}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {name for name in found if is_private(name)}


def test_no_file_is_long() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert len(lines) > 100
    assert not {str(path): count for path, count in lines.items() if count > LONGEST_FILE}


def test_no_function_is_long() -> None:
    functions = [(path, node) for path in MODULES.values() for node in ast.walk(parsed(path))]
    long = [
        f"{path}: {node.name}"
        for path, node in functions
        if isinstance(node, FUNCTIONS) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]
    assert not long


def test_every_room_says_what_it_is_for() -> None:
    for path in MODULES.values():
        if path.name == "__init__.py":
            assert ast.get_docstring(parsed(path)), f"{path}: say in a paragraph what it is for"


def test_tests_need_no_private_names() -> None:
    """Of ours, that is; what a library keeps to itself has no other name."""
    ours = set().union(*(private_names(parsed(path)) for path in MODULES.values()))
    assert len(ours) > 50
    for path in TESTS:
        tree = parsed(path)
        assert not (names_used(tree) & ours) - private_names(tree), path
