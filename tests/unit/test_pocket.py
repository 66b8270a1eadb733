"""PocketEdit's promises, checked on the data that ships: no leakage between splits, and every record usable."""

import importlib.util
import io
import json
import re
from collections import Counter, defaultdict
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unike.core.errors import UnikeError
from unike.data.datasets import pocket

SPLITS = ("pretrain", "train", "dev", "eval")
EDITED = ("train", "dev", "eval")
PICTURES = ("image", "image_rephrase", "m_loc")

Row = dict[str, Any]


@pytest.fixture(scope="module")
def edits() -> list[Row]:
    rows = pocket.read("edits")
    return [row | {"port_new": json.loads(row["port_new"]), "spec": json.loads(row["spec"])} for row in rows]


@pytest.fixture(scope="module")
def images() -> dict[str, Row]:
    rows = pocket.read("images")
    found = {row["image_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def facts() -> dict[tuple[str, str], dict[str, str]]:
    return {(row["domain"], row["concept"]): json.loads(row["facts"]) for row in pocket.read("concepts")}


@pytest.fixture(scope="module")
def thumbnails(images: dict[str, Row]) -> Tensor:
    """``[P, 16, 16, 3]``: a perceptual hash that keeps colour, made of the pictures as they decode."""
    thumbs = []
    for row in images.values():
        picture = Image.open(io.BytesIO(row["webp"]))
        assert (picture.size, picture.mode, picture.format) == ((224, 224), "RGB", "WEBP"), row["image_id"]
        pixels = bytearray(picture.resize((16, 16)).tobytes())
        thumbs.append(torch.frombuffer(pixels, dtype=torch.uint8).reshape(16, 16, 3).float())
    return torch.stack(thumbs)


@pytest.fixture(scope="module")
def alike(images: dict[str, Row], thumbnails: Tensor) -> list[tuple[str, str]]:
    """Pairs of ids whose thumbnails differ by less than 3 of 255 on average, that is, which are one picture."""
    ids, flat = list(images), thumbnails.flatten(1)
    # Averages of 4 x 4 pixels cannot differ more than the pixels do, so they rule nearly every pair out cheaply.
    coarse = thumbnails.reshape(-1, 4, 4, 4, 4, 3).mean(dim=(2, 4)).flatten(1)
    pairs = []
    for start in range(0, len(ids), 512):
        distance = torch.cdist(coarse[start : start + 512], coarse, p=1) / coarse.shape[1]
        left, right = (distance < 3).nonzero(as_tuple=True)
        left, right = left[right > left + start] + start, right[right > left + start]
        same = (flat[left] - flat[right]).abs().mean(dim=1) < 3
        pairs += [(ids[i], ids[j]) for i, j in zip(left[same].tolist(), right[same].tolist(), strict=True)]
    return pairs


def texts(row: Row) -> set[str]:
    """Everything a case asks."""
    ported = {hop["Q&A"]["Question"] for hop in row["port_new"]}
    return {row["src"], row["rephrase"], row["m_loc_q"], row["loc"]} | ported | {s["Question"] for s in row["spec"]}


def share_nothing(sets: dict[str, set[Any]]) -> bool:
    for one, other in combinations(sets, 2):
        assert not sets[one] & sets[other], f"{one} and {other} share {sorted(sets[one] & sets[other])[:10]}"
    return True


def plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


# ---------------------------------------------------------------------- splits


def test_splits_share_no_concept(edits: list[Row], images: dict[str, Row]) -> None:
    concepts: dict[str, set[str]] = defaultdict(set)
    for row in pocket.read("concepts"):
        concepts[row["split"]].add(row["concept"])
    assert set(concepts) == set(SPLITS)
    assert share_nothing(concepts)
    for row in images.values():
        assert row["concept"] in concepts[row["split"]]
    for row in edits:
        assert row["concept"] in concepts[row["split"]]


def test_splits_share_no_image(edits: list[Row], images: dict[str, Row]) -> None:
    used: dict[str, set[str]] = defaultdict(set)
    for row in edits:
        used[row["split"]] |= {row[key] for key in PICTURES}
    used["fit"] = {name for name, row in images.items() if row["role"] == "fit"}
    assert share_nothing(used)
    for row in images.values():
        assert row["role"] in ({"fit", "held"} if row["split"] == "pretrain" else {"edit"})


def test_splits_share_no_picture_that_looks_the_same(alike: list[tuple[str, str]], images: dict[str, Row]) -> None:
    """Nor do the pictures that a base model was trained on and those it was not."""

    def side(image_id: str) -> tuple[str, str]:
        return images[image_id]["split"], images[image_id]["role"]

    assert len(alike) < 100, "the hash tells pictures apart"
    assert [pair for pair in alike if side(pair[0]) != side(pair[1])] == []


def test_splits_share_no_locality_picture_that_looks_the_same(alike: list[tuple[str, str]], edits: list[Row]) -> None:
    split = {row["m_loc"]: row["split"] for row in edits}
    assert [(a, b) for a, b in alike if a in split and b in split and split[a] != split[b]] == []


def test_splits_share_no_wording() -> None:
    wordings: dict[str, set[str]] = defaultdict(set)
    count = Counter[tuple[str, str]]()
    for row in pocket.read("questions"):
        assert plain(row["wording"]) not in wordings[row["split"]], row
        wordings[row["split"]].add(plain(row["wording"]))
        count[row["kind"], row["split"]] += 1
    assert share_nothing(wordings)
    kinds = {kind for kind, _ in count}
    assert {(kind, split): count[kind, split] for kind in kinds for split in SPLITS if count[kind, split] < 5} == {}


def test_splits_share_no_question_as_it_is_asked(edits: list[Row]) -> None:
    asked: dict[str, set[str]] = defaultdict(set)
    for row in edits:
        asked[row["split"]] |= {plain(text) for text in texts(row)}
    assert share_nothing(asked)
    fixed = {plain(row["wording"]) for row in pocket.read("questions") if row["split"] == "pretrain"}
    assert share_nothing(asked | {"pretrain": fixed})


def test_the_wordings_are_those_of_the_builder() -> None:
    path = Path(__file__).parents[2] / "scripts" / "pocket" / "wordings.py"
    spec = importlib.util.spec_from_file_location("pocket_wordings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built = {(kind, split, text) for kind, by in module.QUESTIONS.items() for split, ws in by.items() for text in ws}
    assert {(row["kind"], row["split"], row["wording"]) for row in pocket.read("questions")} == built


# ---------------------------------------------------------------------- records


def test_there_is_enough_of_everything(edits: list[Row]) -> None:
    count = Counter((row["split"], row["task"]) for row in edits)
    assert count["eval", "vqa"] >= 500
    assert count["eval", "caption"] >= 250
    assert count["train", "vqa"] + count["train", "caption"] >= 2000
    assert count["dev", "vqa"] + count["dev", "caption"] >= 200
    assert {split for split, _ in count} == set(EDITED)
    folder = resources.files("unike.data.datasets").joinpath("pocket_data")
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) <= 30 * 2**20


def test_every_text_is_there(edits: list[Row]) -> None:
    assert len({row["case_id"] for row in edits}) == len(edits)
    for row in edits:
        for key in ("src", "rephrase", "alt", "loc", "loc_ans", "m_loc_q", "m_loc_a"):
            assert row[key].strip(), (row["case_id"], key)
        assert row["pred"] == "", "no model's answers are shipped"
        assert not any("{" in text for text in texts(row)), row["case_id"]
        assert plain(row["src"]) != plain(row["rephrase"]), row["case_id"]
        assert row["spec"], row["case_id"]
        if row["task"] == "caption":
            assert 4 <= len(row["alt"].split()) <= 16, row["alt"]


def test_answers_are_the_facts(edits: list[Row], images: dict[str, Row], facts: dict[tuple[str, str], Any]) -> None:
    for row in edits:
        known = facts[row["domain"], row["concept"]]
        if row["task"] == "vqa":
            assert row["alt"] == known[row["kind"]]
        else:
            assert known.get("name", known.get("country")) in row["alt"]
        for other in [hop["Q&A"] for hop in row["port_new"]] + row["spec"]:
            assert other["Answer"] in known.values()
        shown = images[row["m_loc"]]
        assert row["m_loc_a"] in facts[shown["domain"], shown["concept"]].values()


def test_another_picture_of_the_same_thing(
    edits: list[Row], images: dict[str, Row], alike: list[tuple[str, str]]
) -> None:
    same = {frozenset(pair) for pair in alike}
    for row in edits:
        assert images[row["image"]]["concept"] == images[row["image_rephrase"]]["concept"] == row["concept"]
        assert row["image"] != row["image_rephrase"]
        assert frozenset((row["image"], row["image_rephrase"])) not in same, row["case_id"]


def test_locality_is_about_something_else(edits: list[Row], images: dict[str, Row], facts: dict[Any, Any]) -> None:
    concepts: dict[str, set[str]] = defaultdict(set)
    for row in edits:
        shown = images[row["m_loc"]]
        assert (shown["split"], shown["role"]) == ("pretrain", "held"), row["case_id"]
        assert shown["concept"] != row["concept"]
        concepts[row["split"]].add(shown["concept"])
        country = facts[row["domain"], row["concept"]].get("country")
        assert country is None or not re.search(rf"\b{re.escape(country)}\b", row["loc"]), row["case_id"]
    assert share_nothing(concepts)


# ---------------------------------------------------------------------- the loader


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("split", EDITED)
def test_every_record_becomes_a_case(split: str, edits: list[Row], images: dict[str, Row], home: Path) -> None:
    cases = pocket.Pocket().cases(split)
    rows = [row for row in edits if row["split"] == split]
    assert [case.case_id for case in cases] == [row["case_id"] for row in rows]
    for case, row in zip(cases, rows, strict=True):
        probes = {probe.kind: probe.query for probe in case.probes}
        assert set(probes) >= {"t_generality", "m_generality", "t_locality", "m_locality", "specificity"}
        assert Counter(probe.kind for probe in case.probes)["portability"] == len(row["port_new"])
        assert case.edit.target == probes["t_generality"].target == probes["m_generality"].target == row["alt"]
        assert probes["t_generality"].image == case.edit.image
        assert probes["m_generality"].prompt == case.edit.prompt
        assert probes["t_locality"].image is None
        assert case.domain == row["domain"]
    for case, row in list(zip(cases, rows, strict=True))[::50]:
        assert case.edit.image == home / "pocket" / f"{row['image']}.webp"
        assert case.edit.image.read_bytes() == images[row["image"]]["webp"]
    assert not [path for path in home.rglob("*") if path.is_file() and path.suffix != ".webp"], "nothing half-written"


def test_one_task_alone(home: Path) -> None:
    both = [pocket.Pocket(task).cases("dev") for task in ("vqa", "caption")]
    assert {case.case_id for cases in both for case in cases} == {case.case_id for case in pocket.Pocket().cases("dev")}
    assert all(case.case_id.startswith("vqa-") for case in both[0])


def test_questions_to_leave_alone_are_of_the_train_split(edits: list[Row], home: Path) -> None:
    queries = pocket.unrelated(20)
    assert len(queries) == len(set(queries)) == 20
    assert sum(query.image is not None for query in queries) == 10
    asked = {(row["m_loc_q"], row["m_loc"]) for row in edits if row["split"] == "train"}
    asked |= {(row["loc"], None) for row in edits if row["split"] == "train"}
    for query in queries:
        image = query.image and query.image.relative_to(home / "pocket").with_suffix("").as_posix()
        assert (query.prompt, image) in asked


def test_mistakes_are_told(home: Path) -> None:
    with pytest.raises(UnikeError, match=r"no split 'test' \(known: train, dev, eval\)"):
        pocket.Pocket().cases("test")
    with pytest.raises(UnikeError, match="no task 'vaq'"):
        pocket.Pocket("vaq")
    with pytest.raises(UnikeError, match="no picture 'flag/atlantis/twemoji'"):
        pocket.image("flag/atlantis/twemoji")
    (home / "pocket").write_text("")
    with pytest.raises(UnikeError, match=r"cannot unpack PocketEdit to .*; set UNIKE_HOME"):
        pocket.image("flag/kenya/twemoji")
