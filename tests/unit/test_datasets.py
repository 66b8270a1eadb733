"""From records to cases, and MMEdit's real files: what is read, and what is said about files that are not right."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.datasets.base import Dataset, all_tasks, dataset_names, open_dataset
from unike.data.datasets.mmedit import MMEdit
from unike.data.datasets.vlkeb import VLKEB
from unike.data.queries import Probe, Query
from unike.data.records import REQUIRED, case_from_record

RECORD = {
    "src": "Is it sunny?",
    "pred": "no",
    "rephrase": "Is the weather clear and bright?",
    "alt": "yes",
    "image": "val2014/COCO_val2014_000000000001.jpg",
    "image_rephrase": "val2014_image_rephrase/1_COCO_val2014_000000000001.png",
    "loc": "nq question: who wrote the iliad",
    "loc_ans": "Homer",
    "m_loc": "val2014/COCO_val2014_000000000002.jpg",
    "m_loc_q": "What does this grow from?",
    "m_loc_a": "roots",
}


# ---------------------------------------------------------------------- one record


def test_a_record_becomes_a_case() -> None:
    more = {
        "port_new": [{"port_type": "1-hop", "Q&A": {"Question": "And then?", "Answer": "rain"}}],
        "spec": [{"Question": "Where?", "Answer": "outside"}],
    }
    root = Path("images")
    case = case_from_record(RECORD | more, case_id="7", image=root.joinpath, where="x", domain="photo")
    picture = root / RECORD["image"]
    assert (case.case_id, case.domain) == ("7", "photo")
    assert case.edit == Query("Is it sunny?", picture, "yes")
    assert case.probes == (
        Probe("t_generality", Query("Is the weather clear and bright?", picture, "yes")),
        Probe("m_generality", Query("Is it sunny?", root / RECORD["image_rephrase"], "yes")),
        Probe("t_locality", Query("nq question: who wrote the iliad", None, "Homer")),
        Probe("m_locality", Query("What does this grow from?", root / RECORD["m_loc"], "roots")),
        Probe("portability", Query("And then?", picture, "rain"), 1),
        Probe("specificity", Query("Where?", picture, "outside")),
    )
    assert not any("no" in (q.target or "") for q in [case.edit, *(p.query for p in case.probes)]), "pred is not used"


@pytest.mark.parametrize("key", REQUIRED)
def test_a_key_that_is_missing_is_named(key: str) -> None:
    record = {name: value for name, value in RECORD.items() if name != key}
    with pytest.raises(UnikeError, match=f"^file, record 3: {key} missing$"):
        case_from_record(record, case_id="7", image=Path, where="file, record 3")


@pytest.mark.parametrize(("key", "message"), [("alt", r"the target \(alt\)"), ("src", r"the prompt \(src\)")])
def test_an_empty_text_is_refused(key: str, message: str) -> None:
    with pytest.raises(UnikeError, match=f"file, record 3: {message} is empty"):
        case_from_record(RECORD | {key: " "}, case_id="7", image=Path, where="file, record 3")


@pytest.mark.parametrize("name", registry.datasets.names())
def test_every_data_set_says_what_it_is(name: str) -> None:
    found = registry.datasets.get(name)
    assert issubclass(found, Dataset)
    assert found.name == name
    assert found.description and "\n" not in found.description
    assert "eval" in found.splits


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"port_new": [{"Q&A": {"Question": "?"}}]}, "port_new is not a list of questions with answers"),
        ({"spec": "none"}, "spec is not a list of questions with answers"),
        ({"port_new": [{"Q&A": {"Question": "?", "Answer": " "}}]}, "the answer to a question of port_new is empty"),
        ({"spec": [{"Question": " ", "Answer": "a"}]}, "the question for specificity is empty"),
        ({"rephrase": ""}, "the question for t_generality is empty"),
        ({"spec": [{"Question": "\ud800?", "Answer": "a"}]}, "question 0 of spec is not valid text"),
    ],
)
def test_further_probes_that_are_bad_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UnikeError, match=f"file, record 3: {message}"):
        case_from_record(RECORD | more, case_id="7", image=Path, where="file, record 3")


NO_TEXT = [(None, "null"), (True, "true"), (math.nan, "NaN"), (math.inf, "Infinity"), ({"a": 1}, '{"a": 1}')]


@pytest.mark.parametrize(("value", "told"), NO_TEXT, ids=[told for _, told in NO_TEXT])
def test_what_is_neither_text_nor_a_number_is_no_answer(value: Any, told: str) -> None:
    hop = {"Q&A": {"Question": "?", "Answer": value}}
    for more, what in (
        [({key: value}, key) for key in REQUIRED]
        + [({"port_new": [hop]}, "answer 0 of port_new"), ({"spec": [hop["Q&A"]]}, "answer 0 of spec")]
        + [
            ({"alt": ["yes", value]}, "alt"),
            ({"port_new": [{"Q&A": {"Question": value, "Answer": "a"}}]}, "question 0"),
        ]
    ):
        with pytest.raises(UnikeError) as error:
            case_from_record(RECORD | more, case_id="7", image=Path, where="file, record 3")
        assert str(error.value).startswith(f"file, record 3: {what}")
        assert str(error.value).endswith(f" is {told}, not text")


def test_a_list_of_answers_means_any_of_them() -> None:
    hops = [
        {"Q&A": {"Question": "Which?", "Answer": ["rain", " snow ", "rain"]}},
        {"Q&A": {"Question": "n?", "Answer": 7}},
    ]
    more = {"alt": ["yes", "sure"], "port_new": hops, "spec": [{"Question": "Where?", "Answer": ["in", "out"]}]}
    case = case_from_record(RECORD | more, case_id="7", image=Path, where="x")
    assert (case.edit.target, case.edit.also) == ("yes", ("sure",))
    found = {(probe.kind, probe.query.prompt): (probe.query.target, *probe.query.also) for probe in case.probes}
    assert found["portability", "Which?"] == ("rain", "snow")
    assert found["portability", "n?"] == ("7",)
    assert found["specificity", "Where?"] == ("in", "out")
    assert found["m_generality", RECORD["src"]] == ("yes", "sure")
    assert case.edit.accepts("Sure.") and case.edit.accepts("yes") and not case.edit.accepts("no")
    assert case.edit.question == Query(case.edit.prompt, case.edit.image), "what a model is asked has no answer"
    with pytest.raises(UnikeError, match="x: alt is an empty list; give at least one answer"):
        case_from_record(RECORD | {"alt": []}, case_id="7", image=Path, where="x")


def test_a_record_may_have_several_questions_of_a_kind() -> None:
    more = {
        "rephrase": ["Sunny?", "Is the sun out?"],
        "m_loc_more": [{"image": "c.png", "Question": "Is it sunny?", "Answer": ""}],
        "near": [
            {"image": "d.png", "Question": "Is it sunny?", "Answer": "no"},
            {"image": None, "Question": "Is it ever sunny?", "Answer": ["yes", "at times"]},
        ],
    }
    case = case_from_record(RECORD | more, case_id="7", image=Path, where="x")
    asked = [(probe.kind, probe.query) for probe in case.probes]
    picture = Path(RECORD["image"])
    assert [query for kind, query in asked if kind == "t_generality"] == [
        Query("Sunny?", picture, "yes"),
        Query("Is the sun out?", picture, "yes"),
    ]
    assert [query for kind, query in asked if kind == "m_locality"][1:] == [Query("Is it sunny?", Path("c.png"), "")]
    assert [query for kind, query in asked if kind == "near_locality"] == [
        Query("Is it sunny?", Path("d.png"), "no"),
        Query("Is it ever sunny?", None, "yes", ("at times",)),
    ]
    for key in ("m_loc_more", "near"):
        assert case_from_record(RECORD | {key: None}, case_id="7", image=Path, where="x").probes == (
            case_from_record(RECORD, case_id="7", image=Path, where="x").probes
        )
        for bad, message in (
            ({}, f"{key} is not a list"),
            ([{"image": "a.png"}], f"{key} is not a list"),
            ([{"image": True, "Question": "?", "Answer": ""}], f"image 0 of {key} is true, not text"),
            (["?"], f"{key} is not a list"),
        ):
            with pytest.raises(UnikeError, match=f"file, record 3: {message}"):
                case_from_record(RECORD | {key: bad}, case_id="7", image=Path, where="file, record 3")
    with pytest.raises(UnikeError, match="x: rephrase is an empty list; give at least one"):
        case_from_record(RECORD | {"rephrase": []}, case_id="7", image=Path, where="x")


def test_an_edit_may_be_about_text_alone() -> None:
    lone = {"image": None, "image_rephrase": None}
    case = case_from_record(RECORD | lone, case_id="7", image=Path, where="x")
    assert case.edit == Query("Is it sunny?", None, "yes")
    assert [probe.kind for probe in case.probes] == ["t_generality", "t_locality", "m_locality"]
    assert case.probes[0].query.image is None


@pytest.mark.parametrize("key", ["port_new", "spec"])
def test_null_means_absent(key: str) -> None:
    case = case_from_record(RECORD | {key: None}, case_id="7", image=Path, where="x")
    assert case == case_from_record(RECORD, case_id="7", image=Path, where="x")


def test_data_sets_are_opened_by_the_name_of_their_task(tmp_path: Path) -> None:
    pocket2 = ["pocket2-vqa", "pocket2-caption", "pocket2-text"]
    assert dataset_names() == ["mmedit-vqa", "mmedit-caption", "pocket-vqa", "pocket-caption", *pocket2, "vlkeb"]
    opened = open_dataset("mmedit-caption", tmp_path)
    assert isinstance(opened, MMEdit)
    assert (opened.task, opened.folder, opened.image_root) == ("caption", tmp_path, tmp_path)
    assert len(open_dataset("pocket-caption").cases("dev")) == 76
    assert all_tasks("pocket-vqa") == all_tasks("pocket") == ["pocket-vqa", "pocket-caption"]
    assert all_tasks("vlkeb") == ["vlkeb"]
    with pytest.raises(UnikeError, match="unknown data set 'mmedit'; did you mean 'mmedit-vqa'"):
        open_dataset("mmedit")
    with pytest.raises(UnikeError, match="name none"):
        open_dataset("pocket-vqa", tmp_path)


# ---------------------------------------------------------------------- MMEdit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MMEdit in miniature: the second record has no target."""
    for number, name in enumerate([RECORD["image"], RECORD["image_rephrase"], RECORD["m_loc"]]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    records = [RECORD, RECORD | {"alt": " "}, RECORD | {"src": "How many?", "alt": 2}]
    for name in ("vqa_train.json", "vqa_eval.json", "caption_train_edit.json", "caption_eval_edit.json"):
        (tmp_path / name).write_text(json.dumps(records))
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    """Change the third record of the evaluation split; a value of None takes the key out."""
    path = folder / "vqa_eval.json"
    records = json.loads(path.read_text())
    records[2] = {key: value for key, value in (records[2] | changes).items() if value is not None}
    path.write_text(json.dumps(records))


def test_mmedit_reads_its_files_and_counts_what_it_skips(folder: Path) -> None:
    for task in ("vqa", "caption"):
        for split in MMEdit.splits:
            data = MMEdit(folder, task=task)
            cases = data.cases(split)
            assert [case.case_id for case in cases] == [f"{task}-{split}-00000", f"{task}-{split}-00002"]
            assert data.skipped == 1
            assert [case.edit.target for case in cases] == ["yes", "2"]
            assert {probe.kind for case in cases for probe in case.probes} == {
                "t_generality",
                "m_generality",
                "t_locality",
                "m_locality",
            }
            assert cases[0].edit.image == folder / RECORD["image"]
            data.cases(split)
            assert data.skipped == 1, "of one reading"


def test_mmedit_lies_in_the_cache_folder_unless_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder.parent / "home"
    home.mkdir()
    folder.rename(home / "mmedit")
    monkeypatch.setenv("UNIKE_HOME", str(home))
    assert len(MMEdit().cases("eval")) == 2


def test_what_is_missing_is_listed(folder: Path) -> None:
    nowhere = folder / "nowhere"
    with pytest.raises(UnikeError) as error:
        MMEdit(nowhere).cases("eval")
    told = str(error.value)
    assert told.startswith(f"vqa_eval.json, train2014/, val2014/, val2014_image_rephrase/ missing in {nowhere}; ")
    assert "EasyEdit" in told and "\n" not in told
    (folder / "vqa_eval.json").unlink()
    with pytest.raises(UnikeError, match=r"^vqa_eval\.json, train2014/ missing in"):
        MMEdit(folder).cases("eval")
    (folder / "val2014").rename(folder / "elsewhere")
    with pytest.raises(UnikeError, match=r"^val2014/ missing in"):
        MMEdit(folder).cases("train")


def test_mmedit_reads_easyedits_folders_of_tasks(folder: Path) -> None:
    expected = MMEdit(folder, "caption").cases("eval")
    for task in MMEdit.tasks:
        (folder / task).mkdir()
        for path in folder.glob(f"{task}_*.json"):
            path.rename(folder / task / path.name)
    assert MMEdit(folder, "caption").has("eval") and MMEdit(folder).has("train")
    assert MMEdit(folder, "caption").cases("eval") == expected


def test_what_lies_one_folder_away_is_told(folder: Path) -> None:
    (folder / "vqa_eval.json").rename(folder / "val2014" / "vqa_eval.json")
    below = folder / "val2014"
    with pytest.raises(UnikeError, match=rf"; vqa_eval\.json is in {below}: name that folder, or move it; MMEdit is"):
        MMEdit(folder).cases("eval")
    with pytest.raises(UnikeError, match=rf"; val2014/ is in {folder}, val2014_image_rephrase/ is in {folder}: name"):
        MMEdit(below).cases("eval")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"src": "a"},\n {"src" "b"}]', r"vqa_eval\.json, line 2, column 9: not JSON"),
        (b"", r"vqa_eval\.json, line 1, column 1: not JSON"),
        (b'[{"src": "\xff"}]', r"vqa_eval\.json, byte 10: not UTF-8"),
        (b"{}", r"vqa_eval\.json: not a JSON list"),
        (b"[3]", r"vqa_eval\.json, record 0: not a JSON object"),
        (b"[" * 100_000, r"vqa_eval\.json: nested too deep"),
        (b"[" + b"9" * 5000 + b"]", r"vqa_eval\.json: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(folder: Path, content: bytes, message: str) -> None:
    (folder / "vqa_eval.json").write_bytes(content)
    with pytest.raises(UnikeError, match=message):
        MMEdit(folder).cases("eval")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: change(folder, rephrase=None, loc=None), "rephrase, loc missing"),
        (lambda folder: change(folder, alt=None), "alt missing"),
        (lambda folder: change(folder, src=" "), r"the prompt \(src\) is empty"),
        (lambda folder: change(folder, alt="a\nb"), r"the target \(alt\) has several lines, and an answer is one"),
        (lambda folder: change(folder, alt=True), "alt is true, not text"),
        (lambda folder: change(folder, alt=float("nan")), "alt is NaN, not text"),
        (lambda folder: change(folder, m_loc_q=["a", "b"]), r'm_loc_q is \["a", "b"\], not text'),
        (lambda folder: change(folder, alt="\ud800"), r'alt is not valid text: "\\ud800"'),
        (lambda folder: change(folder, image="val2014/none.jpg"), "image not found: .*none.jpg"),
        (lambda folder: change(folder, m_loc="val2014"), "image not found: .*val2014"),
    ],
)
def test_a_bad_record_is_named_with_file_and_index(folder: Path, edit: Callable[[Path], None], message: str) -> None:
    edit(folder)
    with pytest.raises(UnikeError, match=rf"vqa_eval\.json, record 2: {message}"):
        MMEdit(folder).cases("eval")


def test_unknown_tasks_and_splits_are_refused(folder: Path) -> None:
    with pytest.raises(UnikeError, match=r"mmedit has no task 'vaq' \(known: vqa, caption\)"):
        MMEdit(folder, task="vaq")
    with pytest.raises(UnikeError, match=r"mmedit has no split 'dev' \(known: train, eval\)"):
        MMEdit(folder).cases("dev")


def test_bad_records_can_be_left_out_and_counted(folder: Path) -> None:
    path = folder / "vqa_eval.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps([*records, 3, RECORD | {"m_loc": "val2014/none.jpg"}, RECORD | {"src": ["?"]}]))
    data = MMEdit(folder)
    assert [case.case_id for case in data.cases("eval", skip_bad=True)] == ["vqa-eval-00000", "vqa-eval-00002"]
    assert data.skipped == 4


# ---------------------------------------------------------------------- VLKEB


@pytest.fixture
def vlkeb(tmp_path: Path) -> Path:
    """VLKEB in miniature."""
    names = {"image": "m.01/google_1.jpg", "image_rephrase": "m.01/google_2.jpg", "m_loc": "m.02/google_1.jpg"}
    for name in names.values():
        path = tmp_path / "VLKEB_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    hops = [{"port_type": f"{n}-hop", "Q&A": {"Question": f"{n}?", "Answer": n}} for n in (1, 2)]
    (tmp_path / "train.json").write_text(json.dumps([RECORD | names]))
    (tmp_path / "eval_multihop.json").write_text(json.dumps([RECORD | names | {"port_new": hops}, RECORD | names]))
    return tmp_path


@pytest.mark.parametrize("images", ["VLKEB_images", "mmkb_images", "VLKEB_images/mmkb_images"])
def test_vlkeb_reads_its_files(vlkeb: Path, images: str) -> None:
    (vlkeb / "VLKEB_images").rename(vlkeb / "pictures")
    (vlkeb / images).parent.mkdir(exist_ok=True)
    (vlkeb / "pictures").rename(vlkeb / images)
    data = open_dataset("vlkeb", vlkeb)
    first, second = data.cases("eval")
    assert (first.case_id, second.case_id) == ("vlkeb-eval-00000", "vlkeb-eval-00001")
    assert first.edit.image == vlkeb / images / "m.01/google_1.jpg"
    hops = [(probe.query.target, probe.hop) for probe in first.probes if probe.kind == "portability"]
    assert hops == [("1", 1), ("2", 2)]
    assert [case.case_id for case in data.cases("train")] == ["vlkeb-train-00000"]


def test_vlkeb_says_what_is_missing(vlkeb: Path) -> None:
    (vlkeb / "eval_multihop.json").unlink()
    with pytest.raises(UnikeError, match=r"^eval_multihop\.json missing in .*kaggle.com/datasets/hymanh/vlkeb-data"):
        VLKEB(vlkeb).cases("eval")
    (vlkeb / "VLKEB_images").rename(vlkeb / "elsewhere")
    with pytest.raises(UnikeError, match=r"^VLKEB_images/ missing in"):
        VLKEB(vlkeb).cases("train")


def test_vlkeb_lies_in_the_cache_folder_unless_told(vlkeb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(vlkeb.parent))
    assert VLKEB().folder == vlkeb.parent / "vlkeb"
