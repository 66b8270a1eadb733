"""PocketEdit 2's promises, checked on the data that ships: nothing crosses splits, and every case has its probes."""

import importlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unike.data.datasets import pocket, pocket2
from unike.data.datasets.base import Dataset, dataset_names, open_dataset
from unike.data.queries import EditCase, Query

EDITED = ("train", "dev", "eval")
SCRIPTS = Path(__file__).parents[2] / "scripts" / "pocket"

Row = dict[str, Any]


@pytest.fixture(scope="module")
def edits() -> list[Row]:
    rows = pocket.read("edits2")
    return [row | {key: json.loads(row[key]) for key in pocket2.LISTS} for row in rows]


@pytest.fixture(scope="module")
def images() -> dict[str, Row]:
    columns = ["image_id", "domain", "concept", "hand", "split", "role"]
    return {row["image_id"]: row for row in pocket.read("images", columns)}


@pytest.fixture(scope="module")
def facts() -> dict[tuple[str, str], dict[str, str]]:
    return {(row["domain"], row["concept"]): json.loads(row["facts"]) for row in pocket.read("concepts")}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def builder() -> Iterator[ModuleType]:
    """The script, and what lies beside it, imported as it is run."""
    before = {*sys.modules}
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module("second")
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in {*sys.modules} - before:
            if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def texts(row: Row) -> set[str]:
    """Everything a case asks."""
    of_lists = [*row["m_loc_more"], *row["near"], *row["spec"], *(hop["Q&A"] for hop in row["port_new"])]
    return {row["src"], row["loc"], row["m_loc_q"], *row["rephrase"], *(each["Question"] for each in of_lists)}


def pictures(row: Row) -> set[str]:
    """Everything a case shows."""
    shown = [row["image"], row["image_rephrase"], row["m_loc"]]
    return {each for each in (*shown, *(e["image"] for e in (*row["m_loc_more"], *row["near"]))) if each}


def share_nothing(sets: dict[str, set[Any]]) -> bool:
    for one, other in combinations(sets, 2):
        assert not sets[one] & sets[other], f"{one} and {other} share {sorted(sets[one] & sets[other])[:10]}"
    return True


def plain(text: str) -> str:
    return re.sub(r"[^\w{}]+", " ", text.casefold()).strip()


# ---------------------------------------------------------------------- splits


def test_splits_share_no_wording() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    count = Counter[tuple[str, str]]()
    for row in pocket.read("questions2"):
        assert plain(row["wording"]) not in found[row["split"]], row
        found[row["split"]].add(plain(row["wording"]))
        count[row["kind"], row["split"]] += row["family"] != "others"
    assert share_nothing({**found, "version 1": {plain(row["wording"]) for row in pocket.read("questions")}})
    kinds = {row["kind"] for row in pocket.read("questions")}
    assert {(kind, split): n for kind in kinds for split in EDITED if (n := count[kind, split]) < 30} == {}


def test_splits_share_no_question_as_it_is_asked_and_no_target_that_is_taught(edits: list[Row]) -> None:
    asked, taught = defaultdict(set), defaultdict(set)
    for row in edits:
        asked[row["split"]] |= {plain(text) for text in texts(row)}
        if row["target_style"] not in ("", "yesno"):
            taught[row["split"]].add(plain(row["alt"]))
    for row in pocket.read("edits"):
        asked[row["split"]] |= {plain(row[key]) for key in ("src", "rephrase", "loc", "m_loc_q")}
    assert share_nothing(asked), "with version 1, from which methods have learned"
    assert share_nothing(taught)
    fixed = {plain(row["wording"]) for row in pocket.read("questions") if row["split"] == "pretrain"}
    assert share_nothing(asked | {"pretrain": fixed})


def test_splits_share_no_concept_and_no_picture(edits: list[Row], images: dict[str, Row]) -> None:
    used, concepts = defaultdict(set), defaultdict(set)
    for row in edits:
        used[row["split"]] |= pictures(row)
        concepts[row["split"]].add(row["concept"])
        for name in pictures(row) - {row["m_loc"]}:
            assert images[name]["split"] == row["split"], (row["case_id"], name)
            concepts[row["split"]].add(images[name]["concept"])
        assert images[row["m_loc"]]["role"] == "held"
    assert share_nothing(used)
    assert share_nothing(concepts)


# ---------------------------------------------------------------------- records


def test_every_edit_of_version_1_is_one(edits: list[Row]) -> None:
    here = {row["case_id"]: row for row in edits}
    assert len(here) == len(edits)
    keys = ("src", "alt", "image", "image_rephrase", "m_loc", "m_loc_q", "m_loc_a", "loc_ans")
    for row in pocket.read("edits"):
        assert {key: row[key] for key in keys} == {key: here[row["case_id"]][key] for key in keys}


def test_there_is_enough_of_everything(edits: list[Row]) -> None:
    count = Counter((row["task"], row["split"]) for row in edits)
    assert [count["text", split] for split in EDITED] == [120, 60, 120]
    styles = {split: Counter(row["target_style"] for row in edits if row["split"] == split) for split in EDITED}
    for split, found in styles.items():
        assert {*found} == {"", "invented", "model", "words", "script", "number", "yesno", "long"}, split
        assert all(number % 2 == 0 for style, number in found.items() if style), "each is taught about two pictures"
    folder = Path(pocket.__file__).with_name("pocket_data")
    assert sum(path.stat().st_size for path in folder.glob("*2.parquet")) < 2**20


def test_every_text_is_there(edits: list[Row]) -> None:
    for row in edits:
        assert all(text.strip() and not re.search(r"\{\w*\}", text) for text in texts(row)), row["case_id"]
        assert row["alt"].strip() and row["pred"] == ""
        worded = [plain(text) for text in (row["src"], *row["rephrase"])]
        assert len({*worded}) == len(worded), row["case_id"]
        assert len(row["rephrase"]) >= 2 and row["spec"], row["case_id"]


def test_free_wordings_are_of_different_styles(edits: list[Row]) -> None:
    families = {row["wording"]: row["family"] for row in pocket.read("questions2")}
    for row in edits:
        if row["task"] != "text" and row["target_style"] != "yesno":
            assert len({families[text] for text in row["rephrase"]}) == 2, row["case_id"]


def test_near_things_are_asked_the_very_same_and_have_another_answer(
    edits: list[Row], images: dict[str, Row], facts: dict[tuple[str, str], dict[str, str]]
) -> None:
    same_hand = Counter[tuple[str, bool]]()
    for row in edits:
        assert len(row["near"]) == 2 and all(each["Answer"] != row["alt"] for each in row["near"]), row["case_id"]
        if row["task"] == "text":
            assert not any(each["image"] for each in row["near"])
            assert len({each["Question"] for each in row["near"]} | {row["src"]}) == 3, row["case_id"]
            continue
        for near in (*row["near"], *row["m_loc_more"]):
            shown = images[near["image"]]
            assert near["Question"] == row["src"]
            assert shown["concept"] != row["concept"]
            known = facts[shown["domain"], shown["concept"]]
            if row["kind"] != "yesno":
                assert near["Answer"] == known.get(row["kind"], "") != row["alt"], row["case_id"]
        nears = [images[near["image"]] for near in row["near"]]
        assert {each["domain"] for each in nears} == {row["domain"]}
        assert len({each["concept"] for each in nears}) == 2
        for each in nears:
            same_hand[row["domain"], each["hand"] == images[row["image"]]["hand"]] += 1
    for domain in ("flag", "pictogram", "photo"):
        assert same_hand[domain, True] > 3 * same_hand[domain, False], domain


def test_a_picture_that_is_not_near_is_of_another_kind(
    edits: list[Row], images: dict[str, Row], facts: dict[tuple[str, str], dict[str, str]]
) -> None:
    def kind(image_id: str) -> str:
        return facts[images[image_id]["domain"], images[image_id]["concept"]].get("kind", "flag")

    for row in edits:
        assert all(kind(each["image"]) != kind(row["image"]) for each in row["m_loc_more"]), row["case_id"]


# ---------------------------------------------------------------------- the loader and the builder


def test_every_task_is_a_data_set() -> None:
    assert {"pocket2-vqa", "pocket2-caption", "pocket2-text"} <= {*dataset_names()}
    assert open_dataset("pocket2-text").image_root == open_dataset("pocket-vqa").image_root


@pytest.mark.parametrize("task", pocket2.Pocket2.tasks)
def test_every_case_has_every_kind_of_probe(task: str, home: Path) -> None:
    cases = pocket2.Pocket2(task).cases("dev")
    wanted = {"t_generality": 2, "m_generality": 1, "t_locality": 1, "m_locality": 2, "near_locality": 2}
    if task == "text":
        wanted |= {"t_generality": 3, "m_generality": 0, "m_locality": 1}
    for case in cases:
        found = Counter(probe.kind for probe in case.probes)
        assert found["specificity"] >= 1, case.case_id
        for kind, number in wanted.items():
            assert found[kind] == number or (kind == "t_generality" and found[kind] >= number), (case.case_id, kind)
        _check_pictures(case, about_text=task == "text")


def _check_pictures(case: EditCase, *, about_text: bool) -> None:
    assert (case.edit.image is None) == about_text
    for probe in case.probes:
        assert probe.query.image is not None or about_text or probe.kind == "t_locality"
        if probe.kind == "near_locality":
            assert probe.query.image != case.edit.image or about_text


@pytest.mark.slow
def test_the_same_build_gives_the_same_bytes(builder: ModuleType, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        builder.build(tmp_path / folder)
    for name in ("edits2", "questions2"):
        one, other = (tmp_path / folder / f"{name}.parquet" for folder in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()
        assert builder.pq.read_table(one).to_pylist() == pocket.read(name), "what ships is what the script makes"


# ---------------------------------------------------------------------- what a gate is made from


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures by their names; there are thousands."""
    monkeypatch.setattr(pocket2, "image", Path)


@pytest.mark.usefixtures("packed")
def test_cases_of_scope_have_pictures_of_things_and_near_ones() -> None:
    """Of each split its own, and of `train` those of `pretrain`, two by two, which nothing else uses."""
    for split in EDITED:
        dataset = pocket2.Pocket2(None)
        scope, cases = dataset.scope_cases(split), dataset.cases(split)
        assert all(case.edit.image is not None for case in scope)
        own = [case for case in scope if not case.case_id.startswith("pretrain-")]
        assert own == [case for case in cases if case.edit.image is not None]
        assert (len(own) < len(scope)) is (split == "train")


@pytest.mark.usefixtures("packed")
def test_pretrain_pictures_are_paired_by_thing(images: dict[str, Row]) -> None:
    cases = pocket2.pretrain_pictures()
    assert len({case.case_id for case in cases}) == len(cases) > 100
    for case in cases:
        one, other = case.edit.image, case.probes[0].query.image
        assert one is not None and other is not None and one != other
        first, second = (images[path.as_posix()] for path in (one, other))
        assert first["split"] == second["split"] == "pretrain"
        assert (first["domain"], first["concept"]) == (second["domain"], second["concept"])
        assert [probe.kind for probe in case.probes] == ["m_generality"]


@pytest.mark.usefixtures("packed")
def test_version_1_takes_the_scope_of_version_2() -> None:
    one, two = (kind("vqa").scope_cases("dev") for kind in (pocket.Pocket, pocket2.Pocket2))
    assert [case.case_id for case in one] == [case.case_id for case in two]


def test_a_dataset_without_scope_of_its_own_takes_all_its_cases() -> None:
    class Asked:
        def cases(self, split: str) -> list[EditCase]:
            return [EditCase(split, Query("?", None, "x"), ())]

    assert Dataset.scope_cases(Asked(), "dev") == Asked().cases("dev")  # type: ignore[arg-type]
