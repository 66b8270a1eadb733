"""Tensors of loaded edits that are read when an input calls upon them: to be seen in memory alone, not in an answer."""

import copy
import dataclasses
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import ramps
import torch
from people import ASKED, PEOPLE, edits_about_people, home_of
from safetensors.torch import save
from tinies import TINIES, tiny_backbone

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.folders import replace_folder
from unike.editors.unike.knowledge import Knowledge
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel, RowsEdited
from unike.edits.files import CONFIG_FILE, SAVED, TENSOR_FILE, taken_apart
from unike.edits.saved import RECENT, FileSource
from unike.edits.stack import attached


@pytest.fixture(autouse=True)
def shipped_ramps() -> Iterator[None]:
    """Names that differ share nothing."""
    with ramps.words():
        yield


@pytest.fixture(autouse=True)
def nothing_recent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is not kept with an edit is read from its file each time."""
    RECENT.clear()
    monkeypatch.setattr(RECENT, "limit", 0)
    yield
    RECENT.clear()


@pytest.fixture(scope="module", params=sorted(TINIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(request.param)


@pytest.fixture(scope="module")
def made(
    backbone: Backbone, make_knowledge: Callable[..., Knowledge], tmp_path_factory: pytest.TempPathFactory
) -> list[Edit]:
    return edits_about_people(backbone, make_knowledge, tmp_path_factory.mktemp("knowledge"))


def saved(edits: Sequence[Edit], folder: Path) -> list[Path]:
    places = [folder / name for name in PEOPLE]
    for edit, place in zip(edits, places, strict=True):
        edit.save_pretrained(place)
    return places


@pytest.fixture
def places(made: list[Edit], tmp_path: Path) -> list[Path]:
    return saved(made, tmp_path)


def loaded(places: Sequence[Path]) -> list[Edit]:
    return [Edit.from_pretrained(place) for place in places]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders whose tensors are read, as they are."""
    names: list[str] = []
    read_it = FileSource.read

    def watched(source: FileSource) -> bytes:
        names.append(Path(source.path).parent.name)
        return read_it(source)

    monkeypatch.setattr(FileSource, "read", watched)
    return names


def test_a_loaded_stack_is_bit_for_bit_the_one_in_memory(
    backbone: Backbone, made: list[Edit], places: list[Path]
) -> None:
    stack, batch = loaded(places), backbone.encode(ASKED)
    plain = backbone.forward(batch)
    with attached(backbone, made):
        expected, answers = backbone.forward(batch), backbone.generate(ASKED, max_new_tokens=4)
    with attached(backbone, stack):
        assert torch.equal(backbone.forward(batch), expected)
        assert backbone.generate(ASKED, max_new_tokens=4) == answers
    assert not torch.equal(expected, plain)
    rows = [[made, made[1:2]], [stack, stack[1:2]]]
    one, other = (RowsEdited(backbone, sets) for sets in rows)
    targets = [home_of(PEOPLE[4], "in a tree"), home_of(PEOPLE[1], "in a tree")]
    assert torch.equal(one.target_logits(targets), other.target_logits(targets))


def test_every_tensor_is_what_it_was(made: list[Edit], places: list[Path]) -> None:
    for edit, same in zip(made, loaded(places), strict=True):
        assert same.tensors.keys() == edit.tensors.keys() and len(same.tensors) == len(edit.tensors)
        for name, tensor in edit.tensors.items():
            assert torch.equal(same.tensors[name], tensor) and same.tensors[name].dtype == tensor.dtype, name


def test_nothing_is_read_of_an_edit_that_no_row_calls_upon(
    backbone: Backbone, places: list[Path], read: list[str]
) -> None:
    model = EditedModel(backbone, loaded(places))
    assert read == []
    model.generate([home_of("Rosa Parks")], max_new_tokens=2)
    assert read == [], "what the gate compares with stays in memory"
    model.generate(ASKED[:1], max_new_tokens=2)
    assert set(read) == {PEOPLE[4]}
    read.clear()
    model.generate(ASKED[:1], max_new_tokens=2)
    assert read == [], "the stack keeps what was called upon lately"
    first, second = model.edits[:2]
    RowsEdited(backbone, [[first, second], [second]]).generate([ASKED[1], home_of("Rosa Parks")], max_new_tokens=2)
    assert set(read) == {PEOPLE[1]}, "nor of one that another row has"


# ---------------------------------------------------------------------- what may become of a file meanwhile


def test_an_edit_without_copies_is_read_too(made: list[Edit], tmp_path: Path) -> None:
    """As files were before rows that are copies were kept once."""
    described, _ = taken_apart(made[0])
    before = dataclasses.replace(SAVED, version=1)
    replace_folder(tmp_path / "edit", before.files(described, save(dict(made[0].tensors))), known_by=CONFIG_FILE)
    found = Edit.from_pretrained(tmp_path / "edit").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in made[0].tensors.items())


@pytest.fixture
def llava() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture
def kept(llava: Backbone, make_knowledge: Callable[..., Knowledge], tmp_path: Path) -> list[Path]:
    """Folders of edits of one model."""
    return saved(edits_about_people(llava, make_knowledge, tmp_path / "knowledge"), tmp_path / "edits")


def flip_a_byte(place: Path) -> None:
    content = bytearray((place / TENSOR_FILE).read_bytes())
    content[-40] ^= 1
    (place / TENSOR_FILE).write_bytes(content)


def cut(place: Path) -> None:
    (place / TENSOR_FILE).write_bytes((place / TENSOR_FILE).read_bytes()[:-100])


def replace(place: Path) -> None:
    Edit.from_pretrained(place.with_name(PEOPLE[0])).save_pretrained(place)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "was changed since an edit was loaded from it; load the edit anew"),
        (cut, "was changed since an edit was loaded from it; load the edit anew"),
        (replace, "was changed since an edit was loaded from it; load the edit anew"),
        (shutil.rmtree, "from which an edit was loaded: No such file or directory; bring it back"),
    ],
)
def test_a_file_that_is_another_is_refused_when_it_is_needed(
    llava: Backbone, kept: list[Path], damage: Callable[[Path], None], message: str
) -> None:
    model = EditedModel(llava, loaded(kept))
    other = model.generate(ASKED[1:], max_new_tokens=2)
    damage(kept[4])
    with pytest.raises(UnikeError, match=message) as caught:
        model.generate(ASKED[:1], max_new_tokens=2)
    assert "\n" not in str(caught.value) and str(kept[4]) in str(caught.value)
    assert model.generate(ASKED[1:], max_new_tokens=2) == other, "others are called upon as ever"
    plain = llava.forward(llava.encode(ASKED[1:]))
    with pytest.raises(UnikeError), model.attached():
        llava.forward(llava.encode(ASKED[:1]))
    assert torch.equal(llava.forward(llava.encode(ASKED[1:])), plain), "nothing is left of the pass"


def test_a_file_that_comes_back_serves_again(llava: Backbone, kept: list[Path], tmp_path: Path) -> None:
    model = EditedModel(llava, loaded(kept))
    expected = EditedModel(llava, loaded(kept)).generate(ASKED, max_new_tokens=4)
    kept[4].rename(tmp_path / "away")
    with pytest.raises(UnikeError):
        model.generate(ASKED, max_new_tokens=4)
    shutil.copytree(tmp_path / "away", kept[4])
    assert model.generate(ASKED, max_new_tokens=4) == expected


def test_what_was_loaded_lately_needs_no_file(
    llava: Backbone, kept: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RECENT, "limit", 1 << 24)
    model = EditedModel(llava, loaded(kept))
    expected = EditedModel(llava, loaded(kept)).generate(ASKED, max_new_tokens=4)
    for place in kept:
        shutil.rmtree(place)
    assert model.generate(ASKED, max_new_tokens=4) == expected


# ---------------------------------------------------------------------- an edit as ever


def test_rows_copies_and_pickles_read_when_they_are_asked(kept: list[Path], read: list[str]) -> None:
    edit = Edit.from_pretrained(kept[0])
    others = [edit[0], edit.rows([0, 0]), edit.to("cpu"), edit.like(edit.tensors, edit.facts)]
    others += [copy.deepcopy(edit), pickle.loads(pickle.dumps(edit))]
    assert read == []
    for other in others:
        for name, tensor in edit.tensors.items():
            assert torch.equal(other.tensors[name], torch.cat([tensor] * len(other))), name
    assert read
    with pytest.raises(KeyError):
        edit.tensors["no such tensor"]


def test_what_is_handed_out_is_ones_own(kept: list[Path]) -> None:
    edit = Edit.from_pretrained(kept[0])
    before = {name: tensor.clone() for name, tensor in edit.tensors.items()}
    for name in before:
        edit.tensors[name].zero_()
    assert all(torch.equal(edit.tensors[name], tensor) for name, tensor in before.items())


def test_threads_read_the_same(llava: Backbone, kept: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RECENT, "limit", 30_000)  # of a few edits at most: they take each other's place
    stack = loaded(kept)
    expected = [EditedModel(llava, stack).generate([home_of(name)], max_new_tokens=3)[0] for name in PEOPLE]
    found: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        model = EditedModel(llava, stack[number % 2 :] + stack[: number % 2])
        found[number] = [model.generate([home_of(name)], max_new_tokens=3)[0] for name in PEOPLE]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(6), expected)
