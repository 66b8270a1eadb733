"""What an edit is on disk: two plain files that are read back, replaced as a whole, and never run as code."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from tinies import tiny_backbone

import unike
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.ft import FTConfig, FTEdit
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.editor import UniKEEdit
from unike.edits.edit import Edit
from unike.edits.files import CONFIG_FILE, TENSOR_FILE

FACTS = [Query("Wo ist das?", Path("bilder/Ä 1.png"), "Köln"), Query("2 + 2?", None, "five")]


def some_edit(seed: int = 0, layers: tuple[int, ...] = (-2, -1)) -> UniKEEdit:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"keys": (2, 3, 4), "bias": (2, 3), "values": (2, 3, 4)}
    tensors = {f"{i}.{part}": torch.randn(shape, generator=generator) for i in layers for part, shape in shapes.items()}
    pairs = {"n": 3, "key_init": "raw"}
    config = UniKEConfig.parse(
        {"layers": layers, "clip": None, "pairs": pairs, "ablation": "only_intrinsic", "seed": seed}
    )
    return UniKEEdit(config, tensors, FACTS, fingerprint="0123456789abcdef", source="somewhere/model")


def same(one: Edit, other: Edit) -> bool:
    assert type(one) is type(other)
    assert (one.config, one.facts) == (other.config, other.facts)
    assert (one.fingerprint, one.source) == (other.fingerprint, other.source)
    assert one.tensors.keys() == other.tensors.keys()
    return all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "where"
    some_edit().save_pretrained(folder)
    assert same(Edit.from_pretrained(folder), some_edit())
    assert same(Edit.from_pretrained(str(folder)), some_edit())
    assert same(UniKEEdit.from_pretrained(folder)[1], some_edit()[1])


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path) -> None:
    some_edit().save_pretrained(tmp_path / "one")
    Edit.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in (CONFIG_FILE, TENSOR_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_description_can_be_read_by_people(tmp_path: Path) -> None:
    some_edit().save_pretrained(tmp_path / "edit")
    text = (tmp_path / "edit" / CONFIG_FILE).read_text(encoding="utf-8")
    assert "Köln" in text
    described = json.loads(text)
    assert described["unike"] == unike.__version__
    assert described["editor"] == "unike"
    assert described["config"]["layers"] == [-2, -1]
    assert described["backbone"] == {"source": "somewhere/model", "fingerprint": "0123456789abcdef"}
    assert described["facts"][1] == {"image": None, "picture": None, "prompt": "2 + 2?", "target": "five"}
    assert re.fullmatch("[0-9a-f]{64}", described["sha256"])


def test_another_edit_replaces_the_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "edit"
    some_edit().save_pretrained(folder)
    (folder / "left-over").write_text("of another version")
    other = FTEdit(FTConfig(steps=1), {"fc1": torch.ones(1, 2, 2)}, FACTS[:1], fingerprint="f" * 16, source="x")
    other.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == [TENSOR_FILE, CONFIG_FILE]
    assert same(Edit.from_pretrained(folder), other)
    assert list(tmp_path.iterdir()) == [folder], "no scratch folder is left"


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UnikeError, match="is something else; choose another folder"):
        some_edit().save_pretrained(tmp_path)
    with pytest.raises(UnikeError, match="is something else; choose another folder"):
        some_edit().save_pretrained(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_edit_cannot_be_made_of_two_halves(tmp_path: Path) -> None:
    """Every damage to either file is tested with the command line; here, that both files belong together."""
    some_edit(0).save_pretrained(tmp_path / "one")
    some_edit(1).save_pretrained(tmp_path / "two")
    (tmp_path / "two" / TENSOR_FILE).replace(tmp_path / "one" / TENSOR_FILE)
    with pytest.raises(UnikeError, match="one is damaged: its files are not those that were saved"):
        Edit.from_pretrained(tmp_path / "one")
    with pytest.raises(UnikeError, match=f"cannot read .*{TENSOR_FILE}"):
        Edit.from_pretrained(tmp_path / "two")


@pytest.mark.parametrize(
    ("old", "new"),
    [('"n": 3', '"n": 4'), ("Köln", "Bonn"), ('"fingerprint": "0', '"fingerprint": "1'), ("-2", "-3")],
)
def test_tensors_do_not_go_with_another_description(tmp_path: Path, old: str, new: str) -> None:
    some_edit().save_pretrained(tmp_path)
    text = (tmp_path / CONFIG_FILE).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / CONFIG_FILE).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UnikeError, match="is damaged"):
        Edit.from_pretrained(tmp_path)


def test_every_cut_of_either_file_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "edit"
    some_edit().save_pretrained(folder)
    for name in (CONFIG_FILE, TENSOR_FILE):
        whole = (folder / name).read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 3}:
            (folder / name).write_bytes(whole[:length])
            with pytest.raises(UnikeError, match="is damaged"):
                Edit.from_pretrained(folder)
        (folder / name).write_bytes(whole)
    assert same(Edit.from_pretrained(folder), some_edit())


def test_nothing_in_the_library_reads_a_pickle() -> None:
    source = Path(unike.__file__).parent
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(source)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                assert not names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, where
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert safe.get("weights_only") == "True", where
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", where


# ---------------------------------------------------------------------- edits of version 0.1

OLD = Path(__file__).parents[1] / "data" / "edits_0_1"
"""Made by version 0.1 on the tiny LLaVA, with the first five sums of logits under each."""


@pytest.mark.parametrize("name", ["unike", "t_patcher"])
def test_edits_of_version_0_1_act_as_they_did(name: str) -> None:
    backbone, edit = tiny_backbone("llava"), Edit.from_pretrained(OLD / name)
    expected = json.loads((OLD / "logits.json").read_text(encoding="utf-8"))
    batch = backbone.encode(edit.facts)
    assert backbone.forward(batch).sum(dim=(0, 1))[:5].tolist() == pytest.approx(expected["plain"], abs=1e-3)
    with edit.attached(backbone):
        assert backbone.forward(batch).sum(dim=(0, 1))[:5].tolist() == pytest.approx(expected[name], abs=1e-3)
    assert max(abs(a - b) for a, b in zip(expected[name], expected["plain"], strict=True)) > 0.1
