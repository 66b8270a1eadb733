"""What another distribution adds, each in one file: an editor, a family, a data set, a kind of probe, and so on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import unike

FILES = {
    "their_editor": '''
from unike.editors.ft import FT

class Theirs(FT):
    """A method of theirs."""
    name = "their_editor"
''',
    "their_family": '''
from unike.backbones.families.llava import Llava

class Theirs(Llava):
    """A family of theirs."""
    name = "their_family"
    model_types = ("theirs",)
''',
    "their_data": """
from pathlib import Path
from unike.data.datasets.base import Dataset
from unike.data.queries import EditCase, Probe, Query

class Theirs(Dataset):
    name, description, splits, image_root = "their_data", "a data set of theirs", ("eval",), Path()

    @classmethod
    def open(cls, task, folder):
        return cls()

    def cases(self, split, *, skip_bad=False):
        self.check_split(split)
        fact = Query("What is it?", None, "red")
        return [EditCase(f"case-{n}", fact, (Probe("their_kind", Query("Is it?", None, "no")),)) for n in range(2)]
""",
    "their_kind": """
from unike.data.queries import ProbeKind

KIND = ProbeKind("their_kind", "Odd.", "unchanged", "text", "something odd")
""",
    "their_protocol": '''
from unike.bench.protocols.base import Protocol

class Theirs(Protocol):
    """A protocol of theirs."""
    name, views = "their_protocol", {"their_protocol": ("said",)}

    def score(self, response):
        return {"their_protocol/said": float(bool(response.after))}
''',
    "their_study": """
from unike.studies.base import Findings, VariantStudy
from unike.studies.lab import Variant

class Theirs(VariantStudy):
    name, title, asks = "their_study", "Theirs", "Does it work?"

    def variants(self, request):
        return [Variant("theirs", {"steps": 1}, "their_editor")]

    def show(self, lab, measurements):
        return Findings()
""",
    "their_command": '''
from unike.core.options import parse_settings

def their_command(setting: str) -> None:
    """A command of theirs."""
    print(parse_settings([setting]))
''',
}

GROUPS = {
    "their_editor": "unike.editors",
    "their_family": "unike.backbones.families",
    "their_data": "unike.data.datasets",
    "their_kind": "unike.data.queries",
    "their_protocol": "unike.bench.protocols",
    "their_study": "unike.studies",
    "their_command": "unike.cli",
}

PROGRAM = """
import json, shlex, sys
from contextlib import redirect_stdout
from io import StringIO
from unike.cli import main

said = {}
for line in json.loads(sys.argv[1]):
    sys.argv = shlex.split(line)
    with redirect_stdout(StringIO()) as out:
        try:
            main()
        except SystemExit as done:
            assert not done.code, line
    said[line] = out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture
def call(tmp_path: Path) -> Any:
    """Commands in a process of their own, with the files installed; what each of them said."""
    place = tmp_path / "site"
    information = place / "theirs-1.0.dist-info"
    information.mkdir(parents=True)
    for name, text in FILES.items():
        (place / f"{name}.py").write_text(text)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    entries = "".join(f"[{group}]\n{name} = {name}\n" for name, group in GROUPS.items())
    (information / "entry_points.txt").write_text(entries)
    path = os.pathsep.join([str(place), str(Path(unike.__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": path, "UNIKE_HOME": str(tmp_path / "home"), "COLUMNS": "200"}

    def run(*lines: str) -> list[str]:
        command = [sys.executable, "-c", PROGRAM, json.dumps(lines)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout).values())

    return run


@pytest.mark.slow
def test_one_file_adds_each(call: Any, tiny_folder: Path) -> None:
    lists = ("editors", "backbones", "datasets", "probes", "protocols", "studies")
    options = f"--model {tiny_folder} --dataset their_data --protocol their_protocol --max-new-tokens 2"
    *listed, shown, greeted, measured, reported, _ = call(
        *(f"unike ls {what} --json" for what in lists),
        "unike --help",
        "unike their-command a=1",
        f"unike bench {options} --editor their_editor --set steps=1 --out run --json",
        "unike report run",
        f"unike study their-study {options} --out study",
    )
    for what, text, name in zip(lists, listed, FILES, strict=False):
        assert name in {entry["name"] for entry in json.loads(text)[what]}, what
    assert "their-command  A command of theirs." in shown and shown.index("models") < shown.index("their-command")
    assert greeted == "{'a': 1}\n"
    summary = json.loads(measured)["summary"]
    scores = {(row["protocol"], row["scorer"], row["metric"]): row["n"] for row in summary}
    assert scores == {("their_protocol", "said", metric): 2 for metric in ("scope", "reliability", "their_kind")}
    assert "their_protocol, percent" in reported and "| Odd. |" in reported
