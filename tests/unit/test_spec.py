"""A run is described once: what was typed is what is kept, and what is kept can be typed again."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from reports import HEADER, write

import unike
from unike.bench.header import Header
from unike.bench.results import read_header
from unike.bench.spec import RunSpec
from unike.cli import app
from unike.core.errors import UnikeError
from unike.core.options import declared

ROOT = Path(__file__).parents[2]

KEPT = sorted({path.parent for path in (ROOT / "results").rglob("results*.jsonl*")})
"""Every run whose results are kept in the repository."""


COMMANDS: Any = typer.main.get_command(app)
BENCH = COMMANDS.commands["bench"]


def parse(command: str) -> RunSpec:
    """What ``unike bench`` makes of a command that has no place for its results yet."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("unike", "bench")
    return RunSpec.from_options(BENCH.make_context(name, [*words, "--out", "x"]).params)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())

SPECS = st.builds(
    RunSpec,
    model=st.sampled_from(["mini", "a folder/with 'quotes'", "organisation/name"]),
    editor=st.sampled_from(["unike", "ft"]),
    settings=st.dictionaries(st.from_regex("[a-z_]+", fullmatch=True), st.one_of(VALUES, st.lists(VALUES, max_size=3))),
    dataset=st.sampled_from(["pocket-vqa", "mmedit-vqa+mmedit-caption"]),
    split=st.sampled_from(["eval", "dev"]),
    limit=st.one_of(st.none(), st.integers(50, 99)),
    seed=st.integers(0, 9),
    batch=st.integers(1, 32),
    protocols=st.sampled_from([("strict",), ("mmedit", "strict"), ("strict", "teacher_forced")]),
    max_new_tokens=st.one_of(st.none(), st.integers(1, 64)),
    engine=st.sampled_from(["fast", "plain"]),
    skip_bad=st.booleans(),
    device=st.sampled_from(["auto", "cuda:1"]),
    dtype=st.sampled_from(["auto", "bfloat16"]),
    quantize=st.sampled_from([None, "4bit"]),
    trust_remote_code=st.booleans(),
)

IN_SEQUENCES = st.fixed_dictionaries(
    {
        "setting": st.sampled_from(["sequential", "cross-task"]),
        "k": st.integers(20, 50),
        "evaluate_at": st.sampled_from([(), (1,), (1, 10, 20)]),
        "sample": st.one_of(st.none(), st.integers(1, 9)),
    }
)


@given(SPECS, st.one_of(st.just({}), IN_SEQUENCES))
def test_a_spec_becomes_the_command_that_makes_it(spec: RunSpec, more: dict[str, Any]) -> None:
    whole = RunSpec(**{name: getattr(spec, name) for name in declared(RunSpec)} | more)
    assert parse(whole.command()) == whole


def test_what_is_not_typed_is_the_default() -> None:
    assert parse("unike bench --dataset pocket-vqa") == RunSpec()
    assert parse("unike bench --dataset vlkeb --setting sequential").k == 10
    assert parse("unike bench --dataset vlkeb --protocol mmedit --protocol mmedit").protocols == ("mmedit",)
    with pytest.raises(UnikeError, match="unknown protocol 'loose'"):
        parse("unike bench --dataset vlkeb --protocol loose")


def test_every_field_is_an_option() -> None:
    assert all(field.option and field.option.help for field in declared(RunSpec).values())


def test_a_header_is_what_was_written() -> None:
    assert Header.from_json(json.loads(json.dumps(HEADER.to_json()))) == HEADER


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: str(folder.relative_to(ROOT / "results")))
def test_every_header_that_is_kept_is_read(folder: Path) -> None:
    header = read_header(folder)
    assert header is not None and header.counts.edited > 0
    assert header.spec.settings.items() <= header.config.items()
    assert parse(header.spec.command()) == header.spec
    assert Header.from_json(header.to_json()) == header


LIGHT = """
import sys
from unike.cli import main
sys.argv = ["unike", *sys.argv[1:]]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
heavy = {"torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "words", [["report", "{run}", "--format", "html", "--out", "{out}"], ["bench", "--help"], ["--help"]]
)
def test_reports_and_help_load_no_torch(tmp_path: Path, words: list[str]) -> None:
    write(tmp_path / "run", editor="unike", settings={"k": 3})
    told = [word.format(run=tmp_path / "run", out=tmp_path / "page.html") for word in words]
    environment = os.environ | {"PYTHONPATH": str(Path(unike.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", LIGHT, *told], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
