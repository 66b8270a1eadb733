"""Damaged input of every class ends in success or in one line for the user; nothing else, whatever the damage.

A sample runs with every `make test`; ``make fuzz`` draws 10,000. Each input is drawn by its number alone, so the number
that a failure names makes it again: ``FUZZ_ONLY=edits-123 pytest tests/fuzz``.
"""

import gzip
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import mutations as mutate
import pytest
import services
from PIL import Image
from starlette.testclient import TestClient
from tinies import tiny_backbone

from unike import api, report
from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.bench.results import read_run
from unike.cli import _shared, main
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import seal
from unike.core.images import load_image
from unike.data.datasets.base import open_dataset
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.editors.unike.knowledge import Knowledge
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel

TOTAL = int(os.environ.get("FUZZ", "160"))
ONLY = os.environ.get("FUZZ_ONLY", "")

SHARES = {
    "edits": 0.18,
    "knowledge": 0.08,
    "trained": 0.06,
    "records": 0.18,
    "results": 0.1,
    "images": 0.18,
    "commands": 0.07,
    "models": 0.02,
    "facts": 0.05,
    "stores": 0.04,
    "requests": 0.04,
}
"""Of all inputs, by class."""

RUNS = Path(__file__).parents[2] / "results" / "studies"


@dataclass(frozen=True)
class World:
    """What inputs are made from, and where."""

    backbone: Backbone
    home: Path
    pictures: list[Path]
    folder: Path
    client: TestClient

    def fresh(self) -> Path:
        """An empty folder."""
        place = self.folder / "input"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place


@pytest.fixture(scope="module")
def world(home: Path, at_home: None, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With an edit of every sort of method, saved."""
    folder = tmp_path_factory.mktemp("fuzz")
    backbone = tiny_backbone("llava")
    backbone.save_pretrained(folder / "model")
    anchors = Anchors([Query("What is the capital of Peru?"), Query("Why?")])
    for name, settings in METHODS.items():
        editor = registry.editors.get(name)(anchors=anchors, **settings)
        editor.edit(backbone, Query("What is this?", pictures[0], "a cat")).save_pretrained(folder / "edits" / name)
    write_records(folder / "records", pictures)
    write_pictures(folder / "pictures", pictures[0])
    services.make_store(backbone, pictures, folder / "store")
    with services.served(backbone, folder / "served") as client:
        yield World(backbone, home, pictures, folder, client)


METHODS: dict[str, dict[str, Any]] = {
    "ft": {"steps": 0},
    "t_patcher": {"steps": 0},
    "unike": {"steps": 0},
    "mend": {},
    "answer_cache": {},
}


FORMATS = ("jpg", "png", "webp", "gif", "bmp", "tiff", "ppm", "ico", "dds", "tga", "sgi", "pcx", "eps", "avif")
"""Those that are read, and some that are not."""


def write_records(folder: Path, pictures: list[Path]) -> None:
    folder.mkdir()
    for picture in pictures:
        shutil.copy(picture, folder)
    image, other, third = (picture.name for picture in pictures)
    record = {"src": "What?", "pred": "no", "rephrase": "So, what?", "alt": "yes", "image": image}
    record |= {"image_rephrase": other, "loc": "nq question: who", "loc_ans": "bob", "m_loc": third}
    record |= {"m_loc_q": "What grows here?", "m_loc_a": "roots"}
    (folder / "vqa_eval.json").write_text(json.dumps([record, record | {"src": "Who?"}]))


def write_pictures(folder: Path, picture: Path) -> None:
    folder.mkdir()
    with Image.open(picture) as image:
        for ending in FORMATS:
            image.save(folder / f"0.{ending}")


# ---------------------------------------------------------------------- the classes


def reseal(draw: Random, folder: Path, description: str, tensors: str) -> None:
    """Change one of two sealed files, and seal them again, as a program does that knows how."""
    described, content = json.loads((folder / description).read_text()), (folder / tensors).read_bytes()
    if draw.randrange(2):
        content = mutate.safetensors(draw, content)
        text = json.dumps(described | {"sha256": seal(described, content)})
    else:
        text = mutate.json_text(draw, described)
        try:
            parsed = json.loads(text)
            text = json.dumps(parsed | {"sha256": seal(parsed, content)})
        except (ValueError, RecursionError, TypeError):
            pass
    (folder / description).write_bytes(text.encode(errors="surrogatepass"))
    (folder / tensors).write_bytes(content)


def edits(draw: Random, world: World) -> None:
    name = draw.choice(sorted(METHODS))
    place = world.fresh() / "edit"
    shutil.copytree(world.folder / "edits" / name, place)
    reseal(draw, place, "edit_config.json", "edit.safetensors")
    edit = Edit.from_pretrained(place)
    asked = [Query("What is this?", world.pictures[0])] * len(edit)
    EditedModel(world.backbone, [edit]).generate(asked, max_new_tokens=1)


def knowledge(draw: Random, world: World) -> None:
    place = world.fresh() / "knowledge"
    shutil.copytree(world.home / "knowledge" / world.backbone.fingerprint(), place)
    reseal(draw, place, "knowledge.json", "knowledge.safetensors")
    Knowledge.from_pretrained(place).check(world.backbone)
    anchors = Anchors([Query("Why?")])
    registry.editors.get("unike")(anchors=anchors, knowledge=str(place), steps=0).edit(
        world.backbone, Query("2 + 2?", None, "five")
    )


def trained(draw: Random, world: World) -> None:
    place, name = world.fresh() / "trained", draw.choice(["mend", "ke"])
    shutil.copytree(world.home / "trained" / name / world.backbone.fingerprint(), place)
    reseal(draw, place, "trained.json", "trained.safetensors")
    editor = registry.editors.get(name)(trained=str(place))
    editor.learned_from(world.backbone)
    editor.edit(world.backbone, Query("2 + 2?", None, "five"))


def records(draw: Random, world: World) -> None:
    place = world.fresh() / "records"
    shutil.copytree(world.folder / "records", place)
    path = place / "vqa_eval.json"
    path.write_bytes(mutate.json_text(draw, json.loads(path.read_text())).encode(errors="surrogatepass"))
    open_dataset("mmedit-vqa", place).cases("eval")


def results(draw: Random, world: World) -> None:
    place = world.fresh()
    path = draw.choice(sorted(RUNS.rglob("results.jsonl.gz")))
    lines = gzip.decompress(path.read_bytes()).splitlines()[:4]
    number = draw.randrange(len(lines))
    if draw.randrange(6):
        lines[number] = mutate.json_text(draw, json.loads(lines[number])).encode(errors="surrogatepass")
    else:
        lines[number] = mutate.content(draw, lines[number])
    (place / "results.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    read_run(place)
    measurements = report.read([place])
    report.to_markdown(measurements, report.report_tables(measurements, report.views_of(measurements, None)))
    report.to_csv(measurements, None)


def images(draw: Random, world: World) -> None:
    place = world.fresh() / "image"
    path = draw.choice(sorted((world.folder / "pictures").iterdir()))
    place.write_bytes(mutate.content(draw, path.read_bytes()))
    load_image(place)


def models(draw: Random, world: World) -> None:
    place = world.fresh() / "model"
    shutil.copytree(world.folder / "model", place)
    path = draw.choice(sorted(path for path in place.iterdir() if path.suffix in (".json", ".safetensors")))
    if path.suffix == ".json" and draw.randrange(3):
        path.write_bytes(mutate.json_text(draw, json.loads(path.read_text())).encode(errors="surrogatepass"))
    else:
        path.write_bytes(mutate.content(draw, path.read_bytes()))
    load_backbone(place)


LINES = [
    ["edit", "--prompt", "2 + 2?", "--target", "five", "--editor", "ft", "--set", "steps=1", "--out", "here"],
    ["edit", "--prompt", "2 + 2?", "--target", "five", "--device", "cpu", "--dtype", "float32", "--json"],
    ["ask", "--prompt", "2 + 2?", "--edit", "edit", "--max-new-tokens", "3", "--device", "cpu"],
    ["bench", "--editor", "ft", "--dataset", "pocket-vqa", "--limit", "2", "--k", "2", "--out", "run"],
    ["report", "run", "--format", "csv", "--out", "report.csv", "--protocol", "strict"],
    ["train", "--editor", "mend", "--data", "pocket", "--out", "trained"],
    ["prepare", "--model", "mini", "--data", "pocket", "--out", "prepared"],
    ["study", "alpha", "--out", "study", "--limit", "2"],
    ["models", "check", "mini"],
    ["ls", "editors", "--json"],
]


def commands(draw: Random, world: World) -> None:
    """Up to where a model would be loaded."""
    os.chdir(world.fresh())
    line = mutate.words(draw, draw.choice(LINES))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(_shared, "load", stopped)
        patch.setattr("unike.backbones.load_backbone", stopped)
        patch.setattr("unike.bench.workers.load_backbone", stopped)
        patch.setattr(api, "default_anchors", stopped)
        patch.setattr("unike.backbones.families.mini.build", stopped)
        patch.setattr(sys, "argv", ["unike", *line])
        patch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), errors="backslashreplace"))  # as Python's own is
        main()
    assert ended.value.code in (0, 2, None), (line, ended.value.code)


def stopped(*args: object, **kwargs: object) -> Any:
    raise UnikeError("a model would be loaded now")


def facts(draw: Random, world: World) -> None:
    services.facts(draw, world.folder / "pictures", world.fresh())


def stores(draw: Random, world: World) -> None:
    services.stores(draw, world.folder / "store", world.backbone, world.fresh())


def requests(draw: Random, world: World) -> None:
    services.requests(draw, world.client)


CLASSES: dict[str, Callable[[Random, World], None]] = {
    "edits": edits,
    "knowledge": knowledge,
    "trained": trained,
    "records": records,
    "results": results,
    "images": images,
    "commands": commands,
    "models": models,
    "facts": facts,
    "stores": stores,
    "requests": requests,
}


@pytest.mark.parametrize("name", CLASSES)
def test_damage_ends_in_one_line(
    world: World, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.folder)  # and back
    failed = []
    numbers = range(max(4, round(SHARES[name] * TOTAL)))
    if ONLY:
        wanted, _, number = ONLY.rpartition("-")
        numbers = range(int(number), int(number) + (wanted == name))
    for number in numbers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                CLASSES[name](Random(f"{name}-{number}"), world)
        except UnikeError as error:
            if "\n" in str(error).strip() or len(str(error)) > 20_000:
                failed.append(f"{name}-{number}: more than a line: {str(error)[:200]!r}")
        except Exception as error:
            if ONLY:
                raise
            failed.append(f"{name}-{number}: {type(error).__name__}: {str(error)[:200]}")
    capsys.readouterr()
    assert not failed, f"{len(failed)} of {len(numbers)}:\n" + "\n".join(failed)
