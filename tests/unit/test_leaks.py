"""The bench refuses a method that learned from what it would be evaluated on."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from miniature import Scatter
from PIL import Image
from preparing import paint_gallery
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.bench.runner import evaluate
from unike.bench.selection import Task, check_leaks
from unike.core.errors import UnikeError
from unike.data import leaks as leak_guard
from unike.data.leaks import LEAKS, ImageHashes, LeakGuard, Trace, perceptual_hash, read_hashes
from unike.data.queries import EditCase, Query
from unike.editors.unike.editor import UniKE
from unike.editors.unike.knowledge import Knowledge, Triplet


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Learned(Scatter):
    """Has learned from some questions before."""

    traces: Sequence[Trace] = ()

    def learned_from(self, backbone: Backbone) -> Sequence[Trace]:
        return self.traces


ELSEWHERE = ImageHashes("0" * 16, "0f" * 96)


def traces_of(*queries: Query) -> list[Trace]:
    hashes = read_hashes([query.image for query in queries if query.image is not None])
    return [Trace(query.prompt, hashes[query.image] if query.image else ELSEWHERE) for query in queries]


@pytest.fixture
def source(cases: list[EditCase]) -> Task:
    return Task("miniature", "eval", cases)


def refuse(backbone: Backbone, source: Task, traces: Sequence[Trace], out: Path) -> str:
    editor = Learned()
    editor.traces = traces
    with pytest.raises(UnikeError) as caught:
        evaluate(backbone, editor, source, out)
    assert not out.exists() and not (out.parent / "home" / "answers").exists(), "before any work"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_leaks_is_counted_and_the_first_is_named(
    taught: Backbone, source: Task, pictures: list[Path], tmp_path: Path
) -> None:
    like = tmp_path / "like.png"
    picture = Image.open(pictures[1])
    picture.putpixel((3, 3), (0, 0, 0))
    picture.save(like)
    harmless = Trace("Who is that?", ELSEWHERE)
    shared = traces_of(Query("Who sits there?", pictures[0]), Query("Who stands there?", like), Query(" what IS  2?"))
    for trace, leak in zip(shared, LEAKS, strict=True):
        said = refuse(taught, source, [harmless, trace, harmless], tmp_path / "run")
        assert "1 of its 3 sources are in miniature" in said and f"{trace.prompt!r} ({leak})" in said
    assert "3 of its 4 sources" in refuse(taught, source, [harmless, *shared], tmp_path / "run")


def test_a_question_about_everything_is_no_leak(taught: Backbone, source: Task, pictures: list[Path]) -> None:
    editor = Learned()
    editor.traces = [Trace("What is 2?", ImageHashes(f"{n:016x}", "0f" * 96)) for n in range(5)]
    check_leaks(taught, editor, [source])
    editor.traces = editor.traces[:1]
    with pytest.raises(UnikeError, match="1 of its 1 sources"):
        check_leaks(taught, editor, [source])


def test_pictures_are_not_even_read_for_methods_that_learned_from_nothing(
    taught: Backbone, source: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leak_guard, "content_hash", lambda _: pytest.fail("read"))
    check_leaks(taught, Scatter(), [source])


def test_a_bad_picture_is_left_to_those_who_name_its_case(
    taught: Backbone, source: Task, tmp_path: Path, pictures: list[Path]
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    bad = replace(source.cases[0], edit=replace(source.cases[0].edit, image=tmp_path / "bad.png"))
    editor = Learned()
    editor.traces = [Trace("Who is that?", ELSEWHERE)]
    with pytest.raises(UnikeError, match=f"case {bad.case_id}: not an image"):
        evaluate(taught, editor, replace(source, cases=[bad]), tmp_path / "run")
    with pytest.raises(UnikeError, match="not an image"):
        LeakGuard([bad.edit], [])


def test_unike_learned_from_its_triplets(
    make_knowledge: Callable[..., Knowledge], cases: list[EditCase], tmp_path: Path
) -> None:
    backbone = tiny_backbone("llava")
    clean = make_knowledge(backbone)
    asked = [replace(case, edit=replace(case.edit, prompt=f"Why {case.case_id}?"), probes=()) for case in cases]
    source = Task("miniature", "eval", asked)
    (hashes,) = read_hashes(pictures_of(cases)[:1]).values()
    leaking = Triplet("Who is there?", hashes, "this", "that")
    knowledge = {"clean": clean, "leaking": replace(clean, triplets=(*clean.triplets, leaking))}
    for name, known in knowledge.items():
        known.save_pretrained(tmp_path / name)
    check_leaks(backbone, UniKE(knowledge=str(tmp_path / "clean")), [source])
    check_leaks(backbone, UniKE(knowledge=str(tmp_path / "leaking"), only_intrinsic=True), [source])
    message = r"'unike' learned .* 1 of its 13 sources .* 'Who is there\?' \(evaluated picture\)"
    with pytest.raises(UnikeError, match=message):
        check_leaks(backbone, UniKE(knowledge=str(tmp_path / "leaking")), [source])


def pictures_of(cases: Sequence[EditCase]) -> list[Path]:
    return [case.edit.image for case in cases if case.edit.image is not None]


# ---------------------------------------------------------------------- the cache of hashes


def test_a_picture_is_looked_at_once(cache: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    first = read_hashes(pictures, lambda *news: told.append(news))
    assert told == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(leak_guard, "perceptual_hash", lambda _: pytest.fail("looked at again"))
    assert read_hashes(pictures) == first


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": "b"}', '{"a": 1}'])
def test_a_damaged_cache_is_made_again(cache: Path, pictures: list[Path], damage: str) -> None:
    first = read_hashes(pictures)
    (file,) = cache.iterdir()
    file.write_text(damage)
    assert read_hashes(pictures) == first
    assert len(json.loads(file.read_text())) == 3


# ---------------------------------------------------------------------- what is learned from


def test_what_is_evaluated_is_not_learned_from(tmp_path: Path) -> None:
    gallery = paint_gallery(tmp_path)
    copied = tmp_path / "copied.png"
    copied.write_bytes(gallery[1].read_bytes())
    again = tmp_path / "again.jpg"
    Image.open(gallery[2]).resize((40, 40)).save(again, quality=70)
    generic, telling, text = "What is this?", "Is this the famous cat of Downing Street?", "What is 2 + 2?"
    candidates = [Query(generic, picture, "x") for picture in gallery[:8]]
    candidates += [Query(telling, gallery[8], "x"), Query("And who  is THAT?", gallery[9], "x")]
    evaluated = [
        Query(generic, copied),
        Query("Something else", again),
        Query(telling, gallery[20]),
        Query(text),
        Query("and who is that?", None),
    ]
    seen = []
    guard = LeakGuard(evaluated, candidates, lambda done, total: seen.append((done, total)))
    found = [guard.leak(query) for query in candidates]
    assert found == [None, LEAKS[0], LEAKS[1], *[None] * 5, LEAKS[2], LEAKS[2]]
    assert seen[-1] == (13, 13)
    assert guard.leak(Query(text)) == LEAKS[2]
    assert LeakGuard([], candidates).leak(candidates[0]) is None


def flag(*colours: str, size: tuple[int, int] = (90, 60)) -> Image.Image:
    stripes = Image.new("RGB", (3, 1))
    for i, colour in enumerate(colours):
        stripes.paste(colour, (i, 0, i + 1, 1))
    return stripes.resize(size, Image.Resampling.NEAREST)


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_pictures_are_alike_in_their_colours_too() -> None:
    france, italy = flag("#0055a4", "white", "#ef4135"), flag("#008c45", "white", "#cd212a")
    stored = io.BytesIO()
    france.resize((150, 100)).save(stored, "JPEG", quality=60)
    again = bits_apart(perceptual_hash(france), perceptual_hash(Image.open(stored).convert("RGB")))
    assert again <= 12 < 60 < bits_apart(perceptual_hash(france), perceptual_hash(italy))
    assert perceptual_hash(Image.new("RGB", (9, 9), "black")) == 192 * "0"
    assert perceptual_hash(Image.new("RGB", (9, 9), "white")) == 192 * "f"
    grey = [perceptual_hash(Image.new("RGB", (9, 9), (value,) * 3)) for value in (100, 106)]
    assert bits_apart(*grey) == pytest.approx(6 / 255 * 768, abs=3)
